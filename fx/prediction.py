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
    from extract import find_images, look

    engine, probabilities, classes = _open_model(model, options)
    source = find_images(images)
    progress = begin("predicting")
    paths: list[str] = []
    failed = [{"path": path, "reason": reason} for path, reason in source.skipped]

    def batches() -> Iterator[NDArray[np.uint8]]:
        import numpy as np

        waiting: list[NDArray[np.uint8]] = []
        for done, looked in enumerate(look(source, engine.preprocessing), 1):
            progress(done, len(source.entries))
            if looked.pixels is None:
                failed.append({"path": looked.row.path, "reason": looked.row.note})
                continue
            paths.append(looked.row.path)
            waiting.append(looked.pixels)
            if len(waiting) == engine.batch_size:
                yield np.stack(waiting)
                waiting = []
        if waiting:
            yield np.stack(waiting)

    labels: list[tuple[str, float]] = []
    for outputs in engine.run(batches()):
        for row in probabilities(outputs):
            best = int(row.argmax())
            labels.append((classes[best], float(row[best])))
    predictions = [
        {"path": path, "label": label, "probability": probability}
        for path, (label, probability) in zip(paths, labels, strict=True)
    ]
    return {"model": str(model), "predictions": predictions, "failed": failed}


def _open_model(model: Path, options: Options) -> tuple[Engine, Probabilities, tuple[str, ...]]:
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


def _open_head(folder: Path, options: Options) -> tuple[Engine, Probabilities, tuple[str, ...]]:
    from extract import load_backbone, make_spec, resolve_device
    from fx.options import open_engine
    from heads import load_head

    head = load_head(folder)
    backbone = load_backbone(
        str(head.spec["backbone"]),
        weights=str(head.source["weights"]),
        size=int(head.spec["size"]),
    )
    precision = str(head.spec["numerics"])
    on_cpu = resolve_device(options.device).type == "cpu"
    if options.precision == "auto" and not (on_cpu and precision == "fp16"):
        options = dataclasses.replace(options, precision=precision)
    engine = open_engine(options, backbone)
    head.check_spec(make_spec(backbone, engine.precision))
    return engine, head.predict_proba, head.classes


def _open_network(folder: Path, options: Options) -> tuple[Engine, Probabilities, tuple[str, ...]]:
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
    return engine, lambda logits: softmax(logits.astype("float64"), axis=1), model.classes
