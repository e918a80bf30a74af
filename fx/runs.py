"""Runs: one folder for each identity; what is finished is not done twice.

An identity is all that decides a result and nothing else: two runs have one folder where they would
give the same. It is made here, for heads, networks and comparisons; the cells of a comparison lie
in its folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from extract.errors import FxError, one_line
from extract.files import Place, delete, read_record, upload, working_folder, write_whole
from extract.records import Record
from fx.output import to_json

if TYPE_CHECKING:
    from extract.images import Snapshot
    from extract.store import FeatureSet

RESULT = "result.json"

Result = TypeVar("Result", bound=Record)


class Run(msgspec.Struct, frozen=True):
    """Where a result is kept.

    Attributes
    ----------
    directory : of this run alone
    """

    directory: Path

    @classmethod
    def of(
        cls,
        out: Place,
        name: str,
        snapshot: Snapshot,
        features: Sequence[FeatureSet],
        **settings: Any,
    ) -> Run:
        """Name the folder by what the run is, for people, and by the hash of its identity.

        Parameters
        ----------
        out : folder of all runs; on object storage, each is worked on in a folder of this machine
        name : for people
        snapshot : of the images, known by its rows and not by its name
        features : sets that the result depends on, known by what they hold of the snapshot's
            images: neither how nor when they were computed
        settings : JSON values; each as it comes to be (``cpu``, not ``auto``), so that what is the
            default is the same where it is given, and what has no effect as if it were not given

        Raises
        ------
        FxError
            If features of the snapshot's images are missing.
        """
        from heads.evaluation import VERSION

        keys = [row.key for row in snapshot.rows if row.split]
        identity = {
            "settings": settings,
            "snapshot": snapshot.fingerprint,
            # a split that was given is measured on, where one by hash may say too little
            "test_was_given": snapshot.test_was_given,
            # not the names of the sets, which are others once damage has been mended or garbage
            # dropped
            "features": [one.digest(keys) for one in features],
            "version": VERSION,
        }
        # a number of NumPy is the same number
        canonical = json.dumps(identity, sort_keys=True, default=lambda number: number.item())
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
        safe = name.replace("/", "_").replace(":", "-")
        return cls(working_folder(out / f"{safe}-{digest}"))

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.directory / RESULT).exists()

    def forget(self) -> None:
        """Make it unfinished, and have a training begin anew."""
        for name in (RESULT, "training.safetensors"):
            delete(self.directory / name)

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
            said = f"{file} is damaged ({one_line(error)})"
            raise FxError(f"{said}; repeat the run with `fresh`") from error

    def kept(self, kind: type[Result]) -> Result | None:
        """Read the result of a part of a run; None where it has to be made, or made again."""
        try:
            return self.result(kind)
        except FxError:
            return None

    def finish(self, result: Record) -> None:
        """Write the result, which makes the run finished.

        Raises
        ------
        CannotWrite
            If there is no room, or nothing can be written there.
        """
        write_whole(self.directory / RESULT, to_json(result) + "\n")
        upload(self.directory)
