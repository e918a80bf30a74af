"""A head on disk: `head.safetensors` (its arrays) and `head.json` (all the rest).

Loading rebuilds plain scikit-learn objects, once the arrays are known to be those that the record
was written with. Heads of older versions have `head.skops` instead.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from extract.errors import FxError, one_line
from extract.files import (
    LARGEST_RECORD,
    check_depth,
    check_room,
    decoded,
    open_regular,
    read_regular,
    refuse_holes,
    write_whole,
)
from heads.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, WIDER, Calibration
from heads.evaluation import Evaluation
from heads.head import Head, Source
from heads.kinds import HEADS
from heads.learner import Candidate, Learner, State

MODEL, RECORD = "head.safetensors", "head.json"
OLDER_MODEL = "head.skops"
FORMAT, OLDER_FORMAT = 4, 3
# bytes of a model, which keeps 200,000 rows at most
LARGEST_MODEL = 2**32


class _Format(msgspec.Struct, frozen=True):
    """Of what version a head.json is."""

    format: int


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What head.json says; the fields are those of `Head`, and what they may be."""

    format: int
    kind: str
    kernel: str | None
    normalize: str
    class_weight: str | None
    classes: tuple[str, ...]
    c: Annotated[float, msgspec.Meta(gt=0)]
    folds: Annotated[int, msgspec.Meta(ge=0)]
    n_train: Annotated[int, msgspec.Meta(ge=1)]
    notes: tuple[str, ...]
    calibration: Calibration
    search: tuple[Candidate, ...]
    metrics: dict[str, Any] | None
    spec: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str] = {}
    # heads of older versions do not say
    model_sha256: str | None = None


# written as they are; metrics and source have forms of their own
_AS_IN_HEAD = [
    *("kind", "kernel", "normalize", "class_weight", "classes", "c", "folds", "n_train"),
    *("notes", "calibration", "search", "spec"),
]


def save_head(head: Head, directory: str | os.PathLike[str]) -> None:
    """Write a head into a directory, which is made where it is not there.

    Parameters
    ----------
    head : Head
    directory : path of a folder; a head in it is replaced

    Raises
    ------
    CannotWrite
        If there is no room for it, or nothing can be written there.
    """
    folder = Path(directory)
    model = save(head.learner.state(head.pipeline))
    record = _Record(
        **{name: getattr(head, name) for name in _AS_IN_HEAD},
        format=FORMAT,
        metrics=head.metrics.as_dict() if head.metrics else None,
        source=head.source.as_dict(),
        versions={name: version(name) for name in ("numpy", "scikit-learn", "safetensors")},
        # a run that is killed between the two leaves no record with another's model
        model_sha256=hashlib.sha256(model).hexdigest(),
    )
    text = json.dumps(msgspec.to_builtins(record), indent=2, allow_nan=False) + "\n"
    # one without the other is no head
    check_room(folder, len(model) + len(text))
    write_whole(folder / MODEL, model)
    write_whole(folder / RECORD, text)
    (folder / OLDER_MODEL).unlink(missing_ok=True)


def load_head(directory: str | os.PathLike[str]) -> Head:
    """Read a head that `save_head` wrote, in this version or an older one.

    Raises
    ------
    FxError
        Where a file is missing or damaged, or is none that fx writes.
    """
    folder = Path(directory)
    with _one_error(folder / RECORD):
        record = _read_record(folder / RECORD)
        learner = _learner_of(record)
        metrics = None if record.metrics is None else Evaluation.from_dict(record.metrics)
        source = Source.from_dict(record.source)
    model = folder / (MODEL if record.format == FORMAT else OLDER_MODEL)
    with _one_error(model), open_regular(model, LARGEST_MODEL) as (file, status):
        refuse_holes(status)
        state = _read_state(model, file, record, learner)
    try:
        if state is None:
            raise ValueError("the model of another record")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = learner.rebuild(state, record.classes, record.c)
            fields = {name: getattr(record, name) for name in _AS_IN_HEAD}
            head = Head(**fields, pipeline=pipeline, source=source, metrics=metrics)
            found = head.predict_proba(np.zeros((2, head.dim), dtype=np.float32))
        if found.shape != (2, len(head.classes)) or not np.isfinite(found).all():
            raise ValueError("no probabilities")
    except Exception as error:  # arrays that do not fit fail in as many ways as there are heads
        raise FxError(
            f"head cannot be read; got a model in {model} that does not fit {RECORD}; fit it again"
        ) from error
    return head


def _read_record(path: Path) -> _Record:
    """Parse head.json."""
    data = read_regular(path, LARGEST_RECORD)
    found = decoded(data, _Format).format
    if found not in (FORMAT, OLDER_FORMAT):
        raise ValueError(f"format {found!r} instead of {FORMAT}")
    record = decoded(data, _Record)
    check_depth(record.spec)
    least, most = MIN_TEMPERATURE / WIDER, MAX_TEMPERATURE * WIDER
    if not least <= record.calibration.temperature <= most:
        raise ValueError(f"a temperature of {record.calibration.temperature:g}")
    return record


def _learner_of(record: _Record) -> Learner:
    """Make what fitted a head; raises ValueError where there is nothing such."""
    try:
        kind = HEADS[record.kind]
        learner = kind.learner(record.normalize, record.class_weight, record.kernel)
    except FxError as error:
        raise ValueError(str(error).partition(";")[0]) from error
    if learner.kernel != record.kernel:
        raise ValueError(f"the kernel {record.kernel!r}, of which {record.kind} has none")
    return learner


def _read_state(path: Path, file: BinaryIO, record: _Record, learner: Learner) -> State | None:
    """Read the arrays of a model; None where they were not written with the record."""
    opened: Any = file  # hashlib's and skops' types want less or more of it than they use
    if record.format == OLDER_FORMAT:
        # where it is used: skops imports all of scikit-learn, which takes as long as torch
        from heads.files import older

        older.check_types(path, file)
    file.seek(0)
    if record.model_sha256 not in (None, hashlib.file_digest(opened, "sha256").hexdigest()):
        return None
    if record.format == OLDER_FORMAT:
        try:
            return learner.state(older.read_pipeline(file))
        except (AttributeError, KeyError, TypeError):
            return None
    with safe_open(path, framework="np") as arrays:
        if set(arrays.keys()) != set(learner.arrays):
            return None
        # copies are aligned in memory as the arrays were that were saved: products are bitwise so
        return {name: np.array(arrays.get_tensor(name)) for name in learner.arrays}


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Say in one line what is wrong with a file of a head."""
    try:
        yield
    except FxError:
        raise
    except OSError as error:
        raise FxError(
            f"head cannot be read; got {one_line(error)} for {path}; give the folder that a head "
            "was saved in"
        ) from error
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes
        said = f"got {one_line(error)} in {path}"
        raise FxError(f"head cannot be read; {said}; fit it again") from error
