"""Runs: one folder for each set of settings and snapshot; what is finished is not done twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from extract.errors import FxError
from extract.files import read_record, write_whole
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
