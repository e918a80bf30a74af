"""Runs: one folder for each set of settings and snapshot; what is finished is not done twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Required, TypedDict, TypeVar

import msgspec

from extract.errors import FxError
from extract.files import check_depth, read_record, write_whole
from fx.output import to_json
from fx.records import Record

RESULT = "result.json"

Result = TypeVar("Result", bound=Record)


class Run(msgspec.Struct, frozen=True):
    """All that decides a result, and where the result is kept.

    Attributes
    ----------
    directory : of this run alone
    identity : resolved settings and the snapshot's fingerprint, JSON values
    """

    directory: Path
    identity: dict[str, Any] = {}

    @classmethod
    def of(cls, out: Path, name: str, identity: dict[str, Any]) -> Run:
        """Name the folder by what the run is, for people, and by the hash of its identity."""
        canonical = json.dumps(identity, sort_keys=True, default=str)
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        safe = name.replace("/", "_").replace(":", "-")
        return cls(out / f"{safe}-{digest}", identity)

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.directory / RESULT).exists()

    def forget(self) -> None:
        """Make it unfinished, and have a training begin anew."""
        for name in (RESULT, "training.safetensors"):
            (self.directory / name).unlink(missing_ok=True)

    def result(self, kind: type[Result]) -> Result:
        """Read the result of a finished run.

        Raises
        ------
        FxError
            If it is damaged, or another kind of result.
        """
        file = self.directory / RESULT
        try:
            return kind.from_json(read_record(file, dict[str, Any]))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise FxError(f"{file} is damaged ({reason}); repeat the run with `fresh`") from error

    def finish(self, result: Record) -> None:
        """Write the result, which makes the run finished.

        Raises
        ------
        CannotWrite
            If there is no room, or nothing can be written there.
        """
        write_whole(self.directory / RESULT, to_json(result) + "\n")


def run_directory(out: Path, name: str, identity: dict[str, Any]) -> Path:
    """Name the folder of a run by what it is and the hash of all that decides its result.

    Parameters
    ----------
    out : folder of all runs
    name : for people
    identity : resolved settings and the snapshot's fingerprint, JSON values
    """
    canonical = json.dumps(identity, sort_keys=True, default=str)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    safe = name.replace("/", "_").replace(":", "-")
    return out / f"{safe}-{digest}"


def finished(directory: Path, *, fresh: bool = False) -> dict[str, Any] | None:
    """Return the result of a finished run, or None; ``fresh`` forgets it.

    Raises
    ------
    FxError
        If the result is damaged, or no result.
    """
    file = directory / RESULT
    if fresh:
        for leftover in (file, directory / "training.safetensors"):
            leftover.unlink(missing_ok=True)
    if not file.exists():
        return None
    try:
        read_record(file, _Result)
        result = read_record(file, dict[str, Any])
        check_depth(result)
    except (OSError, ValueError) as error:
        raise FxError(
            f"{file} is damaged ({getattr(error, 'strerror', None) or error}); "
            "repeat the run with --fresh"
        ) from error
    return result


class _Result(TypedDict, total=False):
    """What is printed or compared of a result, where it is there."""

    seconds: Required[float]
    backbone: str
    path: str
    classes: list[str]
    notes: list[str]
    strategy: str
    seed: int
    n_train: int
    n_test: int
    epochs: int
    best_epoch: int
    trainable_parameters: int
    c: float
    accuracy: float
    accuracy_ci: tuple[float, float]
    majority: float
    balanced_accuracy: float
    macro_f1: float
    top5: float | None
    log_loss: float
    ece: float
    measured_by: str
    confusion: list[list[int]]
    predicted: list[int]
    confidence: list[float]
    truth: list[int]
    shared_seconds: float
    peak_memory_mb: float
    deployed_mb: float
    predict_ms: float


def finish(directory: Path, result: object) -> dict[str, Any]:
    """Write a run's result, which makes it finished, and return it as JSON values.

    Raises
    ------
    CannotWrite
        If there is no room, or nothing can be written there.
    """
    text = to_json(result)
    write_whole(directory / RESULT, text + "\n")
    record: dict[str, Any] = json.loads(text)
    return record
