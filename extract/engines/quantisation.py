"""Networks in int8: quantised after training, on the user's own images, and known by their bytes.

Quantisation depends on the images that it is calibrated on, so a quantised network is kept and
used again: its hash is part of what the features mean.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from extract.backbones import Backbone
from extract.engines.devices import INT8
from extract.engines.without_telemetry import without_telemetry
from extract.errors import FxError
from extract.files import check_room, read_regular, write_whole
from extract.images import ImageSource, load_images
from extract.store import NETWORK_SUFFIXES, FeatureStore

if TYPE_CHECKING:
    import openvino

# Images to calibrate on: more changed nothing in features of the photographs.
CALIBRATION_IMAGES = 200
# bytes of a network's graph and of its tensors
LARGEST = 2**26, 2**30
XML_BYTES = 1_500  # of an operation in a graph's file, about


@dataclass(frozen=True)
class Quantised:
    """A quantised network in OpenVINO's format, which holds no code to run.

    Attributes
    ----------
    graph : bytes, XML
    tensors : bytes
    """

    graph: bytes
    tensors: bytes

    @property
    def hash(self) -> str:
        """SHA-256, in hex, of the graph and its tensors."""
        digest = hashlib.sha256(self.graph)
        digest.update(self.tensors)
        return digest.hexdigest()

    def write(self, folder: Path) -> None:
        """Write the network's two files into a folder; raises as ``write_whole`` does."""
        for suffix, data in zip(NETWORK_SUFFIXES, (self.graph, self.tensors), strict=True):
            write_whole(folder / f"network{suffix}", data)

    @classmethod
    def read(cls, folder: Path) -> Quantised:
        """Read what ``write`` wrote.

        Raises
        ------
        FxError
            If a file is missing, is no regular file, or is larger than any network's.
        """
        found = []
        for suffix, largest in zip(NETWORK_SUFFIXES, LARGEST, strict=True):
            file = folder / f"network{suffix}"
            try:
                found.append(read_regular(file, largest))
            except FileNotFoundError as error:
                raise FxError(f"{file} is missing; fit the head again") from error
            except OSError as error:
                reason = error.strerror or error
                raise FxError(f"{file} cannot be read ({reason}); fit the head again") from error
        return cls(*found)

    def at_batch_size(self, batch_size: int) -> openvino.Model:
        """Read the network for batches of one size."""
        with without_telemetry():
            import openvino

        model = openvino.Core().read_model(self.graph, self.tensors)
        _, *shape = model.input(0).shape
        model.reshape([batch_size, *shape])
        return model


def quantised_network(
    backbone: Backbone,
    store: FeatureStore,
    source: ImageSource,
    progress: Callable[[int, int], None] | None = None,
) -> Quantised:
    """Find the int8 network of a backbone in a store, or make it and keep it there.

    Parameters
    ----------
    backbone : with one layer
    store : FeatureStore
    source : images to calibrate on, where there is no network yet
    progress : called before and after one is made

    Raises
    ------
    FxError
        If it cannot be made, or the backbone has several layers.
    """
    if len(backbone.layers) > 1:
        raise FxError("--precision int8 takes one --layer at a time; run fx extract once for each")
    (layer,) = backbone.layers
    wanted = {
        "backbone": backbone.name,
        "weights": backbone.weights_hash,
        "layer": layer,
        "preprocessing": backbone.preprocessing.to_dict(),
        "numerics": INT8,
    }
    for feature_set in sorted(store.sets(), key=lambda s: -s.last_written):
        if {name: feature_set.spec.get(name) for name in wanted} == wanted:
            # a damaged one is made again, and its features with it
            with suppress(FxError):
                name = str(feature_set.spec["network"])
                found = Quantised(*store.read_network(name))
                if found.hash == name:
                    return found
    report = progress or (lambda done, total: None)
    report(0, 1)
    made = quantise(backbone, _calibration_images(source, backbone))
    with store.lock():
        store.write_network(made.hash, (made.graph, made.tensors))
    report(1, 1)
    return made


def _calibration_images(source: ImageSource, backbone: Backbone) -> list[NDArray[np.uint8]]:
    """Read some images, spread evenly over all of them."""
    step = max(1, len(source.entries) // CALIBRATION_IMAGES)
    some = replace(source, entries=source.entries[::step][:CALIBRATION_IMAGES])
    loaded = load_images(some, backbone.preprocessing)
    return [image.pixels for image in loaded if image.pixels is not None]


def quantise(backbone: Backbone, pixels: Sequence[NDArray[np.uint8]]) -> Quantised:
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
    # it asks for a CUDA compiler, which nobody needs here
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        # it greets on stdout, which may be promised to one JSON object
        with redirect_stdout(io.StringIO()), without_telemetry():
            import nncf
    except ImportError as error:
        raise FxError(
            "--precision int8 needs NNCF, which is not installed; pip install 'fx-images[int8]'"
        ) from error
    from extract.engines.openvino_engine import OpenVINOEngine

    if not pixels:
        raise FxError("no readable image to calibrate int8 on; give some, or use --precision fp32")
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
    # OpenVINO writes to files alone
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.xml"
        _save(model, file)
        return Quantised(file.read_bytes(), file.with_suffix(".bin").read_bytes())


def _save(model: openvino.Model, file: Path) -> None:
    with without_telemetry():
        import openvino

    try:
        openvino.save_model(model, file, compress_to_fp16=False)
    except RuntimeError:
        # it names neither the place nor the reason
        operations = model.get_ops()
        constants = [one for one in operations if one.get_type_name() == "Constant"]
        needs = sum(one.get_byte_size() for one in constants) + XML_BYTES * len(operations)
        check_room(file.parent, needs)
        raise
