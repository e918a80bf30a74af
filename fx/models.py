"""Fitted heads and fine-tuned networks, opened to predict with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fx.options import Options, open_engine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from extract import Engine


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to predict.

    Attributes
    ----------
    engines : their outputs stand side by side; with each, how many crops of an image it averages
    probabilities : of the engines' outputs, float32 array of shape (n, d), those of the classes
    classes : in the order of the probabilities' columns
    """

    engines: list[tuple[Engine, int]]
    probabilities: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    classes: tuple[str, ...]


def open_model(model: Path, options: Options) -> OpenModel:
    """Open what ``fx fit-head`` or ``fx finetune`` wrote.

    Raises
    ------
    FxError
        If it is none, or the network below a head cannot be had.
    """
    from extract import FxError

    folder = folder_of(model)
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


def folder_of(model: Path) -> Path:
    """Folder of a model that is named by it or by a file in it."""
    return model.parent if model.is_file() else model


def _open_head(folder: Path, options: Options) -> OpenModel:
    from extract import Quantised, channels_of, load_backbone, make_spec, resolve_device
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
    return OpenModel(engines, head.predict_proba, head.classes)


def _open_network(folder: Path, options: Options) -> OpenModel:
    import numpy as np
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

    def probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(softmax(logits.astype(np.float64), axis=1))

    return OpenModel([(engine, 1)], probabilities, model.classes)
