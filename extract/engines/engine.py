"""Inference engine: with ``devices``, the one place that knows devices and memory formats.

A network sees batches of one fixed shape, the last one padded, so that a row does not depend on
its neighbours. CUDA was tried on one card, an H200 (``pytest -m gpu``); MPS never was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from extract.engines.devices import (
    INT8,
    NO_INT8,
    PRECISIONS,
    resolve_device,
    resolve_precision,
    without_tf32,
)
from extract.errors import FxError
from extract.images import Preprocessing

if TYPE_CHECKING:
    from extract.engines.quantisation import Quantised

ENGINES = ("auto", "torch", "openvino")
# Batches whose results are still under way on a GPU while the next ones are prepared.
AHEAD = 2


def default_batch_size(device: torch.device, engine: str, size: int) -> int:
    """Images in a batch, where nobody says.

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


@dataclass(frozen=True)
class Engine:
    """Runs a frozen network on uint8 pixels.

    Attributes
    ----------
    module : takes normalised float32 images (n, 3, size, size); put into inference mode here
    preprocessing : gives mean and std
    device : where it runs
    precision : ``fp32``, ``bf16`` or ``fp16`` (autocast)
    batch_size : images in one forward pass, at least 1
    """

    module: torch.nn.Module
    preprocessing: Preprocessing
    device: torch.device
    precision: str = "fp32"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise FxError(f"the batch size must be at least 1; got {self.batch_size}")
        self.module.eval().to(self.device).to(memory_format=torch.channels_last)

    @property
    def network_hash(self) -> str | None:
        """SHA-256 of a network that is not the module itself: one that was quantised."""
        return None

    def signature(self) -> dict[str, Any]:
        """Engine and library versions: rows of another signature are compared before more come."""
        packages = ("torch", "torchvision", "timm", "pillow", "numpy")
        return {
            "engine": f"torch-{self.device.type}",
            "versions": {package: version(package) for package in packages},
        }

    def run(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Compute features batch by batch, in order.

        Parameters
        ----------
        batches : uint8 arrays of shape (at most batch_size, size, size, 3)

        Yields
        ------
        float32 array of shape (images in the batch, …): what the module returns
        """
        started: deque[tuple[_PendingBatch, NDArray[np.uint8]]] = deque()
        ahead = AHEAD if self.device.type == "cuda" else 0
        for pixels in batches:
            started.append((self._start(pixels), pixels))
            if len(started) > ahead:
                yield self._finish(*started.popleft())
        while started:
            yield self._finish(*started.popleft())

    def compute(self, pixels: torch.Tensor, precision: str) -> torch.Tensor:
        """Return float32 features of a uint8 tensor (n, size, size, 3), both on the device."""
        images = normalise(pixels, self.preprocessing)
        numerics = torch.autocast(
            self.device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32"
        )
        with numerics, without_tf32():
            features: torch.Tensor = self.module(images)
        return features.float()

    def _start(self, pixels: NDArray[np.uint8]) -> _PendingBatch:
        with torch.inference_mode():
            given = torch.from_numpy(pad(pixels, self.batch_size))
            if self.device.type != "cuda":
                return _PendingBatch(
                    self.compute(given.to(self.device), self.precision).cpu(), None
                )
            with torch.cuda.stream(self._copies):
                # beside the batch before it, which still computes
                on_device = given.pin_memory().to(self.device, non_blocking=True)
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._copies)
            on_device.record_stream(computing)
            features = self.compute(on_device, self.precision)
            arrived = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            arrived.copy_(features, non_blocking=True)
            return _PendingBatch(arrived, computing.record_event())

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _finish(self, started: _PendingBatch, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        if started.event is not None:
            started.event.synchronize()
        return self._finite(started.features.numpy()[: len(pixels)], pixels)

    def _finite(
        self, features: NDArray[np.float32], pixels: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        """Compute rows again in fp32 that the engine's precision has overflowed."""
        broken = ~np.isfinite(features).reshape(len(features), -1).all(axis=1)
        if broken.any() and self.precision != "fp32":
            with torch.inference_mode():
                given = torch.from_numpy(pad(pixels, self.batch_size)).to(self.device)
                again = self.compute(given, "fp32").cpu().numpy()
            features[broken] = again[: len(pixels)][broken]
        return features


@dataclass(frozen=True)
class _PendingBatch:
    """Features that a GPU may not have sent yet: they are there once the event has happened."""

    features: torch.Tensor
    event: torch.cuda.Event | None


def make_engine(
    module: torch.nn.Module,
    preprocessing: Preprocessing,
    *,
    name: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    identity: str | None = None,
    quantised: Quantised | None = None,
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
    quantised : the module's network in int8

    Raises
    ------
    FxError
        If the engine, device or precision is unknown or not to be had here.
    """
    if name not in ENGINES:
        raise FxError(f"unknown engine {name!r}; choose one of {', '.join(ENGINES)}")
    place = resolve_device(device)
    numerics = resolve_precision(precision, place)
    if name == "openvino" and place.type != "cpu":
        raise FxError(f"OpenVINO runs on CPUs here; got device {place.type}; use --engine torch")
    if numerics == INT8 and (name == "torch" or quantised is None):
        raise FxError(NO_INT8)
    kind = "torch" if name == "torch" or place.type != "cpu" else "openvino"
    size = default_batch_size(place, kind, preprocessing.size) if batch_size is None else batch_size
    if kind == "torch":
        return Engine(module, preprocessing, place, numerics, size)
    from extract.engines.openvino_engine import OpenVINOEngine

    return OpenVINOEngine(module, preprocessing, place, numerics, size, identity, quantised)


def pad(pixels: NDArray[np.uint8], batch_size: int) -> NDArray[np.uint8]:
    """Fill a batch up with black images: array of shape (batch_size, size, size, 3)."""
    missing = batch_size - len(pixels)
    if not missing:
        return pixels
    return np.concatenate([pixels, np.zeros((missing, *pixels.shape[1:]), np.uint8)])


def normalise(pixels: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Turn pixels into what a network expects.

    Parameters
    ----------
    pixels : uint8 tensor of shape (n, size, size, 3)

    Returns
    -------
    float32 tensor of shape (n, 3, size, size) in channels_last order: (pixels / 255 - mean) / std
    """
    # (n, h, w, c) seen as (n, c, h, w) is channels_last already: no copy
    images = pixels.permute(0, 3, 1, 2).float()
    mean, std = (_on(pixels.device, values) for values in (preprocessing.mean, preprocessing.std))
    return (images / 255 - mean) / std


@cache
def _on(device: torch.device, channels: tuple[float, ...]) -> torch.Tensor:
    """Keep a number a channel on a device: bringing it there waits for all that is under way."""
    with torch.inference_mode(False):
        return torch.tensor(channels, device=device).view(1, 3, 1, 1)
