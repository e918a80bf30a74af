"""Networks in int8: quantised after training, on the user's own images, and known by their bytes.

Quantisation depends on the images that it is calibrated on, so a quantised network is kept and
used again: its hash is part of what the features mean.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from extract.backbones import Backbone, make_spec
from extract.engines.devices import INT8
from extract.engines.openvino_engine import TELEMETRY, OpenVINOEngine, import_openvino
from extract.errors import FxError
from extract.files import check_room
from extract.images import ImageSource, load_images
from extract.imports import in_place_of
from extract.store import FeatureStore, StoredNetwork

if TYPE_CHECKING:
    import openvino

# Images to calibrate on: more changed nothing in features of the photographs.
CALIBRATION_IMAGES = 200
XML_BYTES = 1_500  # of an operation in a graph's file, about


@dataclass(frozen=True)
class Int8Engine(OpenVINOEngine):
    """Runs a network in int8 in place of the module; what of it is not in int8 is in fp32."""

    network: StoredNetwork = field(kw_only=True)

    @property
    def tolerance(self) -> float:
        """Largest relative distance of two rows that this engine may compute for one image."""
        return 5e-2

    @property
    def network_hash(self) -> str:
        """SHA-256 of the quantised network."""
        return self.network.hash

    def graph(self) -> openvino.Model:
        """Return the network for batches of this engine's size."""
        model = import_openvino().Core().read_model(self.network.graph, self.network.tensors)
        _, *shape = model.input(0).shape
        model.reshape([self.batch_size, *shape])
        return model


def quantised_network(
    backbone: Backbone,
    store: FeatureStore,
    source: ImageSource,
    begin: Callable[[str], Callable[[int, int], None]] | None = None,
) -> StoredNetwork:
    """Find the int8 network of a backbone in a store, or make it and keep it there.

    Parameters
    ----------
    backbone : with one layer
    store : FeatureStore
    source : images to calibrate on, where there is no network yet
    begin : called with what begins where one is made; what it returns, with steps done and in all

    Raises
    ------
    FxError
        If it cannot be made, or the backbone has several layers.
    """
    if len(backbone.layers) > 1:
        raise FxError("`precision=int8` takes one `layer` at a time; extract each on its own")
    (layer,) = backbone.layers
    for feature_set in sorted(store.sets(), key=lambda s: -s.last_written):
        name, crops = feature_set.spec.network, feature_set.spec.crops
        wanted = make_spec(backbone, INT8, layer=layer, crops=crops, network_hash=name)
        if name and feature_set.spec == wanted:
            # a damaged one is made again, and its features with it
            with suppress(FxError):
                found = store.read_network(name)
                if found.hash == name:
                    return found
    report = begin("quantising") if begin else lambda done, total: None
    report(0, 1)
    # some images, spread evenly over all of them
    step = max(1, len(source.entries) // CALIBRATION_IMAGES)
    some = replace(source, entries=source.entries[::step][:CALIBRATION_IMAGES])
    loaded = load_images(some, backbone.preprocessing)
    made = quantise(backbone, [image.pixels for image in loaded if image.pixels is not None])
    with store.lock():
        store.write_network(made)
    report(1, 1)
    return made


def quantise(backbone: Backbone, pixels: Sequence[NDArray[np.uint8]]) -> StoredNetwork:
    """Quantise a backbone to int8 (NNCF's post-training quantisation).

    Parameters
    ----------
    backbone : Backbone
    pixels : uint8 arrays of shape (1, size, size, 3), images like those to come

    Raises
    ------
    NoRoom
        If there is no room for temporary files.
    FxError
        If NNCF is not installed, or there is no image.
    """
    # it looks for a CUDA compiler, which is not needed here
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        # it greets on stdout, which may be promised to one JSON object
        with redirect_stdout(io.StringIO()), in_place_of(TELEMETRY):
            import nncf
    except ImportError as error:
        raise FxError(
            "`precision=int8` needs NNCF, which is not installed; pip install 'fx-images[int8]'"
        ) from error
    if not pixels:
        raise FxError("no readable image to calibrate int8 on; give some, or `precision=fp32`")
    engine = OpenVINOEngine(
        backbone.module, backbone.preprocessing, torch.device("cpu"), "fp32", batch_size=1
    )
    nncf.set_log_level("ERROR")
    with redirect_stdout(io.StringIO()):
        model = nncf.quantize(
            engine.graph(),
            nncf.Dataset(list(pixels)),
            subset_size=len(pixels),
            preset=nncf.QuantizationPreset.MIXED,
            # the slow one: with the fast one, heads on mobilenet_v2 lose 0.5 to 1.2 points
            fast_bias_correction=False,
        )
    # OpenVINO writes to files only
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.xml"
        save_network(model, file)
        return StoredNetwork(file.read_bytes(), file.with_suffix(".bin").read_bytes())


def save_network(model: openvino.Model, file: Path) -> None:
    """Write a network in OpenVINO's format: an XML file, and a ``.bin`` beside it.

    Raises
    ------
    NoRoom
        If there is no room for it.
    """
    try:
        import_openvino().save_model(model, file, compress_to_fp16=False)
    except RuntimeError:
        # OpenVINO names neither the place nor the reason
        operations = model.get_ops()
        constants = [one for one in operations if one.get_type_name() == "Constant"]
        needs = sum(one.get_byte_size() for one in constants) + XML_BYTES * len(operations)
        check_room(file.parent, needs)
        raise
