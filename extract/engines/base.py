"""What every inference engine does: batches of one fixed shape in, finite features out, in order.

The last batch is padded, so that a row does not depend on its neighbours.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from extract.engines.devices import DTYPES, without_tf32
from extract.errors import FxError
from extract.images import Preprocessing

Run = Callable[[Iterable[NDArray[np.uint8]]], Iterator[NDArray[np.float32]]]

# Largest relative distance between a stored row and the same row computed again.
TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}


@dataclass(frozen=True)
class Engine(ABC):
    """Runs a frozen network on uint8 pixels.

    Attributes
    ----------
    module : takes normalised float32 images (n, 3, size, size); put into inference mode here
    preprocessing : gives mean and std
    device : where it runs
    precision : numerics class of the features: ``fp32``, ``bf16`` or ``fp16``
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

    @abstractmethod
    def run(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Compute features batch by batch, in order.

        Parameters
        ----------
        batches : uint8 arrays of shape (at most batch_size, size, size, 3)

        Yields
        ------
        float32 array of shape (images in the batch, …): what the module returns
        """

    def resident(self) -> Run:
        """Return ``run`` that keeps what it has prepared from call to call; for one thread."""
        return self.run

    def with_threads(self, threads: int) -> Self:
        """Return the same engine with so many threads of a CPU, in a process of its own."""
        torch.set_num_threads(threads)
        return self

    @property
    def tolerance(self) -> float:
        """Largest relative distance of two rows that this engine may compute for one image."""
        return TOLERANCES[self.precision]

    @property
    def network_hash(self) -> str | None:
        """SHA-256 of the network that runs in the module's place, None where the module runs."""
        return None

    @property
    @abstractmethod
    def name(self) -> str:
        """What computes the features, recorded with them."""

    @property
    def numerics(self) -> dict[str, str | int]:
        """What decides the last bits of a row, besides network and pixels: JSON values."""
        return {"engine": self.name, "precision": self.precision, "batch_size": self.batch_size}

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that take part.

        Before rows of another engine or of other versions are added, some are compared.
        """
        packages = ("torch", "torchvision", "timm", "pillow", "numpy")
        return {package: version(package) for package in packages}

    def compute(self, pixels: torch.Tensor, precision: str) -> torch.Tensor:
        """Return float32 features of a uint8 tensor (n, size, size, 3), both on the device."""
        images = normalise(pixels, self.preprocessing)
        numerics = torch.autocast(
            self.device.type, dtype=DTYPES[precision], enabled=precision != "fp32"
        )
        with numerics, without_tf32():
            features: torch.Tensor = self.module(images)
        return features.float()

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
