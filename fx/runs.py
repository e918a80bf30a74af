"""Runs: one folder for each set of settings and snapshot; what is finished is not done twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from extract.errors import FxError
from extract.files import write_whole
from fx.output import to_json

RESULT = "result.json"


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
        If the result is damaged.
    """
    file = directory / RESULT
    if fresh:
        for leftover in (file, directory / "training.safetensors"):
            leftover.unlink(missing_ok=True)
    if not file.exists():
        return None
    try:
        result = json.loads(file.read_text())
    except ValueError as error:
        raise FxError(f"{file} is damaged ({error}); repeat the run with --fresh") from error
    if not isinstance(result, dict):
        raise FxError(f"{file} is damaged (no object); repeat the run with --fresh")
    return result


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
