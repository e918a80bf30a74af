"""Fitted heads and fine-tuned networks, opened to predict with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from extract.backbones import load_backbone, make_spec
from extract.engines import Engine, make_engine, resolve_device
from extract.errors import FxError
from extract.files import fetched, place
from extract.store import Spec, StoredNetwork
from fx.options import Options, open_engine
from heads.files import load_head
from heads.head import Head

if TYPE_CHECKING:
    from finetune.training import FinetunedModel

# sets of features whose networks are open at once
MOST_SETS = 32


@dataclass(frozen=True)
class OpenModel:
    """A model that is ready to predict.

    Attributes
    ----------
    engines : their outputs stand side by side; with each, how many crops of an image it averages
    probabilities : of the engines' outputs, float32 array of shape (n, d), those of the classes
    classes : in the order of the probabilities' columns
    opened : the head, or the network, as it was read
    """

    engines: list[tuple[Engine, int]]
    probabilities: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    classes: tuple[str, ...]
    opened: Head | FinetunedModel


def open_model(model: Path, options: Options) -> OpenModel:
    """Open a fitted head or a fine-tuned network.

    Raises
    ------
    FxError
        If it is none, or the network below a head cannot be had.
    """
    folder = folder_of(model)
    if not folder.exists():
        raise FxError(
            f"no model at {place(model)}; give the folder of a head or of a fine-tuned network"
        )
    if (folder / "head.json").exists():
        return _open_head(folder, options)
    if (folder / "model.json").exists():
        return _open_network(folder, options)
    raise FxError(
        f"{folder} holds neither head.json nor model.json; "
        "give the folder of a head or of a fine-tuned network"
    )


def folder_of(model: Path) -> Path:
    """Folder of a model that is named by it or by a file in it, fetched from object storage."""
    where = place(model)
    return fetched(where.parent if where.is_file() else where)


def _open_head(folder: Path, options: Options) -> OpenModel:
    head = load_head(folder)
    try:
        wanted = _wanted(head.spec, head.source.weights)
    except ValueError as error:
        raise FxError(
            f"head cannot be read; got {error} in {folder / 'head.json'}; fit it again"
        ) from error
    engines, found, dim = [], [], 0
    for spec, weights in wanted:
        layer, crops = spec.layer, spec.crops
        backbone = load_backbone(
            spec.backbone, weights=weights, size=spec.size, channels=spec.channels
        ).at_layers([layer])
        dim += backbone.dim
        precision = spec.numerics
        on_cpu = resolve_device(options.device).type == "cpu"
        asked = options
        if options.precision == "auto" and not (on_cpu and precision == "fp16"):
            asked = dataclasses.replace(options, precision=precision)
        engine = open_engine(asked, backbone, lambda: StoredNetwork.read(folder))
        engines.append((engine, crops))
        found.append(
            make_spec(
                backbone,
                engine.precision,
                layer=layer,
                crops=crops,
                network_hash=engine.network_hash,
            ).to_dict()
        )
    head.check_spec(found[0] if len(found) == 1 else {"features": found})
    if dim != head.dim:
        raise FxError(
            f"head cannot be read; got a model of {head.dim} numbers an image in {folder} where "
            f"head.json means features of {dim}; fit it again"
        )
    return OpenModel(engines, head.predict_proba, head.classes, head)


def _wanted(spec: dict[str, Any], weights: Sequence[str]) -> list[tuple[Spec, str]]:
    """Pair the specs of a head with their weights; raises ValueError where they are none."""
    specs = msgspec.convert(spec.get("features", [spec]), list[Spec])
    if not 0 < len(specs) <= MOST_SETS:
        raise ValueError(f"{len(specs)} sets of features, where 1 to {MOST_SETS} can be joined")
    return list(zip(specs, weights, strict=True))


def _open_network(folder: Path, options: Options) -> OpenModel:
    # where it is used: heads are opened without it
    from finetune.training import load_model

    model = load_model(folder)
    # features, and not logits, come out of the engine: limits are of those
    engine = make_engine(
        model.network.backbone,
        model.preprocessing,
        name=options.engine,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
    )

    weight, bias = (one.detach().double().numpy() for one in model.network.classifier.parameters())

    def probabilities(features: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray(softmax(features @ weight.T + bias, axis=1))

    return OpenModel([(engine, 1)], probabilities, model.classes, model)
