"""Labels for new images, from a head on features or a fine-tuned network."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.options import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract import Engine, ImageSource

    Probabilities = Callable[[NDArray[np.float32]], NDArray[np.float64]]
    # engines whose outputs stand side by side, and how many crops of an image each averages
    Opened = tuple[list[tuple[Engine, int]], Probabilities, tuple[str, ...]]

Begin = Callable[[str], Callable[[int, int], None]]

LABELLED_AT_ONCE = 256
WARM_BATCHES = 4  # that are not timed


def predict_images(
    model: Path,
    images: Path,
    options: Options,
    *,
    reject: float | None = None,
    conformal: float | None = None,
    begin: Begin,
) -> dict[str, Any]:
    """Label every readable image.

    Parameters
    ----------
    model : folder that ``fx fit-head`` or ``fx finetune`` wrote
    images : folder, table, or one image
    options : device, precision and batch size
    reject : share of pictures like the training ones that may be answered with None, for being as
        unlike them as those from elsewhere; of heads alone
    conformal : how often ``labels``, a set for each image, holds the true one; of heads alone
    begin : given what is being done, returns a progress callback

    Returns
    -------
    ``predictions``, a list of ``path``, ``label``, ``probability``, and ``distance`` or ``labels``
    where asked for; ``failed``, a list of ``path`` and ``reason``; ``rejected``, how many have no
    label; ``mean_set_size``

    Raises
    ------
    FxError
        If the model is none, or there are no images.
    """
    import numpy as np

    from extract import find_images
    from heads import Limits

    engines, probabilities, classes = _open_model(model, options)
    source = find_images(images)
    total = len(engines) * len(source.entries)
    progress = begin("predicting")
    failed = [{"path": path, "reason": reason} for path, reason in source.skipped]
    looked_at = itertools.count(1)
    streams = [
        _vectors(source, engine, crops, lambda: progress(next(looked_at), total))
        for engine, crops in engines
    ]
    asked = reject is not None or conformal is not None
    limits = Limits.load(_folder_of(model)) if asked else None
    farthest = limits.farthest(reject) if limits and reject is not None else None
    least = limits.least_probability(conformal) if limits and conformal is not None else None
    predictions: list[dict[str, Any]] = []
    known: list[tuple[str, NDArray[np.float32]]] = []

    def label() -> None:
        features = np.stack([vector for _, vector in known])
        for (path, _), row in zip(known, probabilities(features), strict=True):
            best = int(row.argmax())
            found: dict[str, Any] = {
                "path": path,
                "label": classes[best],
                "probability": float(row[best]),
            }
            if least is not None:
                found["labels"] = [classes[i] for i in np.argsort(-row) if row[i] >= least]
            predictions.append(found)
        if limits and farthest is not None:
            for found, distance in zip(
                predictions[-len(known) :], limits.distance(features), strict=True
            ):
                found["distance"] = float(distance)
                if distance > farthest:
                    found["label"] = None
        known.clear()

    for found in zip(*streams, strict=True):
        path, vectors = found[0][0], [vector for _, vector in found]
        reasons = [reason for reason in vectors if isinstance(reason, str)]
        if reasons:
            failed.append({"path": path, "reason": reasons[0]})
        else:
            known.append((path, np.concatenate(vectors)))
        if len(known) == LABELLED_AT_ONCE:
            label()
    if known:
        label()
    record: dict[str, Any] = {"model": str(model), "predictions": predictions, "failed": failed}
    if farthest is not None:
        record["rejected"] = sum(one["label"] is None for one in predictions)
    if least is not None:
        sizes = [len(one["labels"]) for one in predictions]
        record["mean_set_size"] = float(np.mean(sizes)) if sizes else None
    return record


def milliseconds_a_picture(model: Path, files: Sequence[Path], options: Options) -> float:
    """Time predictions with a model that is loaded: decoding, then the network, then the rest.

    Parameters
    ----------
    model : as in ``predict_images``
    files : images, any number; those that cannot be read are left out
    options : device, precision and batch size
    """
    import numpy as np

    from extract import ImageEntry, ImageSource

    engines, probabilities, _ = _open_model(model, options)
    entries = tuple(ImageEntry(str(file), None, None, None) for file in files)
    source = ImageSource(Path("/"), "unlabelled", entries, ())
    timed = [seconds_a_picture(engine, source, crops) for engine, crops in engines]
    features = np.concatenate([vectors for _, vectors in timed], axis=1)
    begun = time.perf_counter()
    probabilities(features)
    rest = (time.perf_counter() - begun) / len(features)
    return 1000 * (rest + sum(seconds for seconds, _ in timed))


def seconds_a_picture(
    engine: Engine, source: ImageSource, crops: int
) -> tuple[float, NDArray[np.float32]]:
    """Time decoding and then the network, with as many images as the source has.

    Returns
    -------
    the seconds, and the network's outputs, float32 array of shape (images that can be read, d)
    """
    import numpy as np

    from extract import FxError, batched, look, mean_of_crops

    begun = time.perf_counter()
    looked = look(source, engine.preprocessing, crops=crops)
    pixels = [image.pixels for image in looked if image.pixels is not None]
    if not pixels:
        raise FxError(f"none of the {len(source.entries)} images to be timed can be read")
    seconds = (time.perf_counter() - begun) / len(pixels)
    batches = list(batched(pixels, engine.batch_size))
    done = list(mean_of_crops(engine.run(iter(batches)), crops))
    # once more for the time: of what is returned first, the network was still being compiled
    again = itertools.islice(itertools.cycle(batches), WARM_BATCHES + max(4, len(batches)))
    times = [time.perf_counter() for _ in engine.run(again)]
    images = (len(times) - WARM_BATCHES) * len(pixels) / len(batches)
    return seconds + (times[-1] - times[WARM_BATCHES - 1]) / images, np.concatenate(done)


def _vectors(
    source: ImageSource, engine: Engine, crops: int, tick: Callable[[], None]
) -> Iterator[tuple[str, NDArray[np.float32] | str]]:
    """Path and output of every image, in order; in an output's place, why there is none."""
    from extract import batched, look, mean_of_crops

    order: deque[tuple[str, str]] = deque()

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for looked in look(source, engine.preprocessing, crops=crops):
            tick()
            order.append((looked.row.path, looked.row.note if looked.pixels is None else ""))
            if looked.pixels is not None:
                yield looked.pixels

    batches = engine.run(batched(pictures(), engine.batch_size))
    for outputs in mean_of_crops(batches, crops):
        for vector in outputs:
            while order[0][1]:
                yield order.popleft()
            yield order.popleft()[0], vector
    yield from order


def _open_model(model: Path, options: Options) -> Opened:
    from extract import FxError

    folder = _folder_of(model)
    if not folder.exists():
        raise FxError(f"no model at {model}; give a folder that fx fit-head or fx finetune wrote")
    if (folder / "head.json").exists():
        return _open_head(folder, options)
    if (folder / "model.json").exists():
        return _open_network(folder, options)
    raise FxError(
        f"{folder} holds neither head.json nor model.json; "
        "give a folder that fx fit-head or fx finetune wrote"
    )


def _folder_of(model: Path) -> Path:
    return model.parent if model.is_file() else model


def _open_head(folder: Path, options: Options) -> Opened:
    from extract import Quantised, channels_of, load_backbone, make_spec, resolve_device
    from fx.options import open_engine
    from heads import load_head

    head = load_head(folder)
    specs = head.spec.get("features", [head.spec])
    sources = head.source.get("features", [head.source])
    engines, found = [], []
    for spec, made in zip(specs, sources, strict=True):
        layer, crops = str(spec["layer"]), int(spec["crops"])
        backbone = load_backbone(
            str(spec["backbone"]),
            weights=str(made["weights"]),
            size=int(spec["size"]),
            channels=channels_of(spec),
        ).at_layers([layer])
        precision = str(spec["numerics"])
        on_cpu = resolve_device(options.device).type == "cpu"
        asked = options
        if options.precision == "auto" and not (on_cpu and precision == "fp16"):
            asked = dataclasses.replace(options, precision=precision)
        quantised = Quantised.read(folder) if asked.precision == "int8" else None
        engine = open_engine(asked, backbone, quantised)
        engines.append((engine, crops))
        found.append(
            make_spec(
                backbone,
                engine.precision,
                layer=layer,
                crops=crops,
                network_hash=engine.network_hash,
            )
        )
    head.check_spec(found[0] if len(found) == 1 else {"features": found})
    return engines, head.predict_proba, head.classes


def _open_network(folder: Path, options: Options) -> Opened:
    from scipy.special import softmax

    from extract import make_engine
    from finetune import load_model

    model = load_model(folder)
    engine = make_engine(
        model.network,
        model.preprocessing,
        name=options.engine,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
    )
    return [(engine, 1)], lambda logits: softmax(logits.astype("float64"), axis=1), model.classes
