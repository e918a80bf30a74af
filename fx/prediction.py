"""Labels for new images, from a head on features or a fine-tuned network."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fx.options import Options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract import Engine

    Probabilities = Callable[[NDArray[np.float32]], NDArray[np.float64]]
    # and how many crops of an image are averaged
    Opened = tuple[Engine, Probabilities, tuple[str, ...], int]

Begin = Callable[[str], Callable[[int, int], None]]


def predict_images(model: Path, images: Path, options: Options, *, begin: Begin) -> dict[str, Any]:
    """Label every readable image.

    Parameters
    ----------
    model : folder that ``fx fit-head`` or ``fx finetune`` wrote
    images : folder, table, or one image
    options : device, precision and batch size
    begin : given what is being done, returns a progress callback

    Returns
    -------
    ``predictions``, a list of ``path``, ``label``, ``probability``; ``failed``, a list of ``path``
    and ``reason``

    Raises
    ------
    FxError
        If the model is none, or there are no images.
    """
    from extract import batched, find_images, look, mean_of_crops

    engine, probabilities, classes, crops = _open_model(model, options)
    source = find_images(images)
    progress = begin("predicting")
    paths: list[str] = []
    failed = [{"path": path, "reason": reason} for path, reason in source.skipped]

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for done, looked in enumerate(look(source, engine.preprocessing, crops=crops), 1):
            progress(done, len(source.entries))
            if looked.pixels is None:
                failed.append({"path": looked.row.path, "reason": looked.row.note})
            else:
                paths.append(looked.row.path)
                yield looked.pixels

    labels: list[tuple[str, float]] = []
    batches = engine.run(batched(pictures(), engine.batch_size))
    for outputs in mean_of_crops(batches, crops):
        for row in probabilities(outputs):
            best = int(row.argmax())
            labels.append((classes[best], float(row[best])))
    predictions = [
        {"path": path, "label": label, "probability": probability}
        for path, (label, probability) in zip(paths, labels, strict=True)
    ]
    return {"model": str(model), "predictions": predictions, "failed": failed}


def _open_model(model: Path, options: Options) -> Opened:
    from extract import FxError

    folder = model.parent if model.is_file() else model
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


def _open_head(folder: Path, options: Options) -> Opened:
    from extract import Quantised, load_backbone, make_spec, resolve_device
    from fx.options import open_engine
    from heads import load_head

    head = load_head(folder)
    layer, crops = str(head.spec["layer"]), int(head.spec["crops"])
    backbone = load_backbone(
        str(head.spec["backbone"]),
        weights=str(head.source["weights"]),
        size=int(head.spec["size"]),
    ).at_layers([layer])
    precision = str(head.spec["numerics"])
    on_cpu = resolve_device(options.device).type == "cpu"
    if options.precision == "auto" and not (on_cpu and precision == "fp16"):
        options = dataclasses.replace(options, precision=precision)
    quantised = Quantised.read(folder) if options.precision == "int8" else None
    engine = open_engine(options, backbone, quantised)
    head.check_spec(
        make_spec(
            backbone, engine.precision, layer=layer, crops=crops, network_hash=engine.network_hash
        )
    )
    return engine, head.predict_proba, head.classes, crops


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
    return engine, lambda logits: softmax(logits.astype("float64"), axis=1), model.classes, 1
