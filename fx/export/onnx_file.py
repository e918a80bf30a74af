"""A graph written as an ONNX file, and checked."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from extract.errors import FxError
from extract.files import check_room, disk_full_as_fx_error, place, write_whole
from fx.export.graph import Exportable, open_as_graph
from fx.export.runtime import load_file
from fx.runs import Run
from fx.stages.card import model_card
from fx.stages.models import folder_of
from fx.stages.records import ExportedModel, FinetunedModel, HeadResult, MeasuredModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPES = ((120, 160), (97, 64))  # of the images that a file is tried with, height and width
MOST_BYTES = 2**31 - 1  # of a file, which is one protobuf message
TOLERANCE = 1e-3  # of a probability


def export_onnx(model: Path, file: Path) -> ExportedModel:
    """Write a head, with the networks below it, or a fine-tuned network as one ONNX file.

    Its input ``images`` is uint8 (n, height, width, 3), its output ``probabilities`` float32
    (n, classes); n, height and width may vary from call to call. ``fx.classes`` (a JSON list),
    ``fx.spec``, ``fx.metrics`` and ``fx.weights_licence`` are in its metadata. A card beside it,
    ``FILE.onnx.md``, says the rest.

    Parameters
    ----------
    model : folder of a fitted head or a fine-tuned network
    file : to write; one that is there is replaced

    Raises
    ------
    CannotWrite
        If there is no room for it, or nothing can be written there.
    FxError
        If there is no such model, it cannot be traced, what writes ONNX is not installed, or the
        file does not give the probabilities of the model.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FxError(
            "exporting takes onnxscript and onnxruntime, which are not installed: "
            "pip install 'fx-images[export]'"
        ) from error
    if file.suffix.lower() != ".onnx":
        raise FxError(f"the file's name must end with .onnx; got {file}")
    opened = open_as_graph(model)
    numbers = sum(t.numel() * t.element_size() for t in opened.graph.state_dict().values())
    if numbers > MOST_BYTES:
        raise FxError(f"the model takes {numbers / 1e9:.1f} GB, and a file of ONNX 2.1 at the most")
    check_room(file, numbers)
    data = _traced(opened)
    difference = _checked(opened, data)
    measured = _result_of(model)
    # README.onnx would have a card named as another's
    card = file.with_name(f"{file.name}.md")
    exported = ExportedModel(
        path=str(place(file)),
        model=str(place(model)),
        classes=opened.classes,
        megabytes=len(data) / 1e6,
        largest_difference=difference,
        card=str(place(card)) if measured else None,
    )
    with disk_full_as_fx_error(file.parent):
        write_whole(file, data)
        if measured:
            write_whole(card, model_card(measured, exported))
    return exported


def _result_of(model: Path) -> MeasuredModel | None:
    """Read what a model was measured as; None where that was not kept with it."""
    folder = folder_of(model)
    kind = HeadResult if (folder / "head.json").exists() else FinetunedModel
    return Run(folder).kept(kind)


def _traced(opened: Exportable) -> bytes:
    """Write the graph as ONNX."""
    import onnx

    example = torch.zeros(2, *SHAPES[0], 3, dtype=torch.uint8)
    some = torch.export.Dim.DYNAMIC
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # of what the exporter itself will change
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                opened.graph,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_shapes={"images": {0: some, 1: some, 2: some}},
                verbose=False,
            )
    finally:
        logging.disable(before)
    assert program is not None, "torch has only the dynamo exporter's result"
    proto = program.model_proto
    onnx.helper.set_model_props(proto, opened.properties)
    data: bytes = proto.SerializeToString()
    return data


def _checked(opened: Exportable, data: bytes) -> float:
    """Run a file and the graph on images of noise; return the largest difference.

    Raises FxError where it is larger than rounding explains.
    """
    classifier = load_file(data)
    drawn = np.random.default_rng(0)
    largest = 0.0
    for height, width in SHAPES:
        coarse = drawn.integers(0, 256, (3, height // 8, width // 8, 3), dtype=np.uint8)
        images = coarse.repeat(8, axis=1).repeat(8, axis=2)
        with torch.inference_mode():
            wanted: NDArray[np.float32] = opened.graph(torch.from_numpy(images)).numpy()
        largest = max(largest, float(np.abs(classifier.probabilities(images) - wanted).max()))
    if not largest <= TOLERANCE:
        raise FxError(
            f"the exported file gives other probabilities, by up to {largest:.2g}; "
            "predict with the model's folder"
        )
    return largest
