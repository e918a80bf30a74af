"""OpenVINO engine for CPUs: pixels in as bytes, normalisation inside the compiled graph."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from extract.engines.base import Engine, Run, pad
from extract.files import cache_directory
from extract.imports import in_place_of

if TYPE_CHECKING:
    import openvino

# OpenVINO takes bf16 by itself where the processor has it, so the precision is always named.
HINTS = {"fp32": "f32", "bf16": "bf16"}
# Converted graphs that are kept: to convert takes 2 to 7 seconds. They are compiled anew at each
# start, which takes 0.1 to 0.4; keeping what is compiled saves half of that and was not worth it.
GRAPHS_KEPT = 16
TO_WRITE = 3600.0  # seconds that writing one may take at most
# Batches that wait for a free core, which goes on without waiting for this thread: extraction with
# a quick network takes 7 % less time (efficientnet_lite0 in bf16, 2,000 photographs).
WAITING = 2

# It reports to a server of Google's which networks are converted, each from a process that it
# forks: unwanted, and it would outlive a command that is interrupted. Where it is not installed,
# OpenVINO and NNCF do nothing in its place.
TELEMETRY = "openvino_telemetry"


@dataclass(frozen=True)
class OpenVINOEngine(Engine):
    """Runs a frozen network through OpenVINO, several batches at a time.

    Attributes
    ----------
    identity : names the network's tensors; where given, the converted graph is kept on disk
    threads : of the CPU; None for as many as it has cores
    """

    identity: str | None = None
    threads: int | None = None

    @property
    def name(self) -> str:
        """``openvino``."""
        return "openvino"

    def versions(self) -> dict[str, str]:
        """Versions of the libraries that take part."""
        return super().versions() | {"openvino": version("openvino")}

    def run(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Compute features batch by batch, in order; see ``Engine.run``."""
        batches = iter(batches)
        # asked for before the network is compiled: there may be nothing to compute
        for first in batches:
            yield from self.resident()(itertools.chain([first], batches))

    def with_threads(self, threads: int) -> Self:
        """Return the same engine with so many threads; see ``Engine.with_threads``."""
        return replace(self, threads=threads)

    def resident(self) -> Run:
        """Compile the network; see ``Engine.resident``."""
        hints: dict[str, str | int] = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": HINTS.get(self.precision, "f32"),
        }
        if self.threads is not None:
            hints["INFERENCE_NUM_THREADS"] = self.threads
        compiled = import_openvino().Core().compile_model(self.graph(), "CPU", hints)
        count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + WAITING
        return partial(self._run, [compiled.create_infer_request() for _ in range(count)])

    def _run(
        self, requests: Sequence[Any], batches: Iterable[NDArray[np.uint8]]
    ) -> Iterator[NDArray[np.float32]]:
        batches = iter(batches)
        pixels = next(batches, None)
        free = deque(requests)
        running: deque[tuple[Any, NDArray[np.uint8], NDArray[np.uint8]]] = deque()
        try:
            while pixels is not None or running:
                if pixels is None or not free:
                    request, asked, _ = running.popleft()
                    request.wait()
                    features = np.array(request.get_output_tensor(0).data[: len(asked)], np.float32)
                    free.append(request)
                    yield self._finite(features, asked)
                if pixels is not None and free:
                    request = free.popleft()
                    given = pad(pixels, self.batch_size)
                    # not copied: `running` keeps it alive
                    request.start_async({0: given}, share_inputs=True)
                    running.append((request, pixels, given))
                    pixels = next(batches, None)
        finally:  # where it was left early
            for request, *_ in running:
                request.wait()

    def graph(self) -> openvino.Model:
        """Return the network to run: kept from an earlier start, or converted."""
        if self.identity is None:
            return self._convert()
        about = [self.identity, self.preprocessing.to_dict(), self.batch_size, self.versions()]
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
        # a damaged file is only a lost cache
        with suppress(OSError, RuntimeError):
            file = cache_directory() / f"{digest}.xml"
            if file.exists():
                return import_openvino().Core().read_model(file)
        model = self._convert()
        # and a folder that cannot be written to is no reason to stop
        with suppress(OSError, RuntimeError):
            file = cache_directory() / f"{digest}.xml"
            unfinished = file.with_name(f"{digest}-{os.getpid()}.xml")
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                import_openvino().save_model(model, unfinished, compress_to_fp16=False)
                unfinished.with_suffix(".bin").replace(file.with_suffix(".bin"))
                unfinished.replace(file)
            finally:
                _delete(unfinished)
            _tidy(file.parent)
        return model

    def _convert(self) -> openvino.Model:
        openvino = import_openvino()

        size = self.preprocessing.size
        example = torch.zeros(self.batch_size, 3, size, size)
        with torch.inference_mode(), warnings.catch_warnings():
            # tracing warns of every Python number that it makes a constant
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                self.module, example, check_trace=False
            )
            model = openvino.convert_model(
                traced, example_input=example, input=[openvino.PartialShape(example.shape)]
            )
        steps = openvino.preprocess.PrePostProcessor(model)
        steps.input().tensor().set_element_type(openvino.Type.u8)
        steps.input().tensor().set_layout(openvino.Layout("NHWC"))
        steps.input().model().set_layout(openvino.Layout("NCHW"))
        steps.input().preprocess().convert_element_type(openvino.Type.f32).mean(
            [255 * value for value in self.preprocessing.mean]
        ).scale([255 * value for value in self.preprocessing.std])
        return steps.build()


def _tidy(directory: Path) -> None:
    """Delete the oldest graphs, and what processes that were killed have not finished."""
    kept = sorted(directory.glob("*.xml"), key=lambda path: path.stat().st_mtime)
    for old in kept[:-GRAPHS_KEPT]:
        _delete(old)
    for part in directory.glob("*-*.*"):
        if time.time() - part.stat().st_mtime > TO_WRITE:
            part.unlink(missing_ok=True)


def _delete(graph: Path) -> None:
    graph.unlink(missing_ok=True)
    graph.with_suffix(".bin").unlink(missing_ok=True)


def import_openvino() -> Any:
    """Import OpenVINO, which takes half a second, without its telemetry."""
    with in_place_of(TELEMETRY):
        import openvino
        import openvino.preprocess

    return openvino
