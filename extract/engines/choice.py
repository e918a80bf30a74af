"""Which engine runs a network, on which device and in batches of what size."""

from collections.abc import Callable

import torch

from extract.engines.base import Engine
from extract.engines.devices import INT8, NO_INT8, resolve_device, resolve_precision
from extract.engines.int8 import Int8Engine
from extract.engines.openvino_engine import OpenVINOEngine
from extract.engines.torch_engine import TorchEngine
from extract.errors import FxError
from extract.images import Preprocessing
from extract.store import StoredNetwork

ENGINES = ("auto", "torch", "openvino")


def default_batch_size(device: torch.device, engine: str, size: int) -> int:
    """Images in a batch, by default.

    OpenVINO is 50 to 75 % quicker on four images of 224 pixels than on 32 (mobilenet_v2, fp32 and
    bf16), and 4 to 11 % on eight or four of 128 pixels than on 12 (resnet50 but its last block,
    fp32): what lies between two layers stays in the processor's cache. An H200 does 15,000 images
    a second of mobilenet_v2 in fp16 with batches of 64, 25,000 with 128 and 27,000 with 256.
    Of large images there are fewer, so that a batch takes no more memory than one of 384 pixels.
    """
    if engine == "openvino":
        return min(32, max(1, 4 * 224 // size))
    most = 32 if device.type == "cpu" else 128
    return min(most, max(1, most * 384**2 // size**2))


def make_engine(
    module: torch.nn.Module,
    preprocessing: Preprocessing,
    *,
    name: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    identity: str | None = None,
    quantised: Callable[[], StoredNetwork] | None = None,
) -> Engine:
    """Choose and make an engine.

    Parameters
    ----------
    module, preprocessing : as in ``Engine``
    name : ``torch``, ``openvino`` (CPUs only), or ``auto``: OpenVINO on CPUs
    device : ``auto``, ``cpu``, ``cuda`` or ``mps``
    precision : ``auto``, ``fp32``, ``bf16``, ``fp16``, or ``int8`` with ``quantised``
    batch_size : images in one forward pass; None for what suits the engine
    identity : names the module's tensors, so that what is converted can be kept
    quantised : gives the module's network in int8; called where that is what runs

    Raises
    ------
    FxError
        If the engine, device or precision is unknown or not available here.
    """
    if name not in ENGINES:
        raise FxError(f"unknown engine {name!r}; choose one of {', '.join(ENGINES)}")
    place = resolve_device(device)
    numerics = resolve_precision(precision, place)
    if name == "openvino" and place.type != "cpu":
        raise FxError(f"OpenVINO runs on CPUs here; got device {place.type}; use `engine=torch`")
    if numerics == INT8 and (name == "torch" or quantised is None):
        raise FxError(NO_INT8)
    kind = "torch" if name == "torch" or place.type != "cpu" else "openvino"
    size = default_batch_size(place, kind, preprocessing.size) if batch_size is None else batch_size
    if numerics == INT8 and quantised is not None:
        return Int8Engine(module, preprocessing, place, numerics, size, network=quantised())
    if kind == "torch":
        return TorchEngine(module, preprocessing, place, numerics, size)
    return OpenVINOEngine(module, preprocessing, place, numerics, size, identity)
