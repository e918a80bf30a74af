"""PyTorch's engine. CUDA was tried on one card, an H200 (``pytest -m gpu``); MPS never was."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from extract.engines.base import Engine, pad

# Batches whose results are still under way on a GPU while the next ones are prepared.
AHEAD = 2


@dataclass(frozen=True)
class TorchEngine(Engine):
    """Runs a frozen network in PyTorch, under autocast where the precision is not fp32."""

    @property
    def name(self) -> str:
        """``torch-`` and the device."""
        return f"torch-{self.device.type}"

    def run(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Compute features batch by batch, in order; see ``Engine.run``."""
        started: deque[tuple[torch.Tensor, torch.cuda.Event | None, NDArray[np.uint8]]] = deque()
        ahead = AHEAD if self.device.type == "cuda" else 0
        for pixels in batches:
            started.append((*self._start(pixels), pixels))
            if len(started) > ahead:
                yield self._finish(*started.popleft())
        while started:
            yield self._finish(*started.popleft())

    def _start(self, pixels: NDArray[np.uint8]) -> tuple[torch.Tensor, torch.cuda.Event | None]:
        """Give features that a GPU may not have sent yet: they are there after the event."""
        with torch.inference_mode():
            given = torch.from_numpy(pad(pixels, self.batch_size))
            if self.device.type != "cuda":
                return self.compute(given.to(self.device), self.precision).cpu(), None
            with torch.cuda.stream(self._copies):
                # beside the batch before it, which still computes
                on_device = given.pin_memory().to(self.device, non_blocking=True)
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._copies)
            on_device.record_stream(computing)
            features = self.compute(on_device, self.precision)
            arrived = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            arrived.copy_(features, non_blocking=True)
            return arrived, computing.record_event()

    @cached_property
    def _copies(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def _finish(
        self, features: torch.Tensor, event: torch.cuda.Event | None, pixels: NDArray[np.uint8]
    ) -> NDArray[np.float32]:
        if event is not None:
            event.synchronize()
        return self._finite(features.numpy()[: len(pixels)], pixels)
