"""Reading features: the committed rows of one spec, checked as they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from extract.errors import FxError

ROW_ARRAYS = ("features", "keys", "hashes")

Spec = dict[str, Any]


def spec_id(spec: Spec) -> str:
    """Name a spec: its backbone and 12 hex digits of the SHA-256 of its canonical JSON."""
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
    return f"{str(spec['backbone']).replace('/', '_')}-{digest}"


@dataclass(frozen=True)
class Damage:
    """Committed rows that cannot be read back as they were written.

    Attributes
    ----------
    group : name of the sub-group
    start, stop : first row, and one past the last
    reason : what is wrong, with the file's name
    """

    group: str
    start: int
    stop: int
    reason: str


class FeatureSet:
    """The committed rows of one spec: what a reader sees is fixed when this object is made."""

    def __init__(self, group: zarr.Group, path: Path) -> None:
        self.group = group
        self.path = path
        attributes = group.attrs.asdict()
        self.name = path.name
        self.spec = cast(Spec, attributes["spec"])
        self.dim = int(cast(int, attributes["dim"]))
        self.committed = int(cast(int, attributes["committed"]))
        self.runs = cast(list[dict[str, Any]], attributes["runs"])
        self.weights_source = str(attributes["weights_source"])
        self.damaged = [tuple(span) for span in cast(list[list[int]], attributes["damaged"])]
        self._rows: dict[bytes, int] | None = None

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one of the row arrays: ``features``, ``keys`` or ``hashes``."""
        array = cast("zarr.Array[Any]", self.group[name])
        # all zeros are written, too: a shard that is not there is a shard that was lost
        return array.with_config({"write_empty_chunks": True})

    def _read(self, name: str) -> NDArray[Any]:
        missing = self.missing_shards(name)
        if missing:
            raise FxError(
                f"the store lacks {missing[0]}; "
                f"run fx store verify {self.path.parent}, then fx extract"
            )
        try:
            return np.asarray(self.array(name)[: self.committed])
        except ValueError as error:
            raise FxError(
                f"{self.path / name} is damaged ({error}); "
                f"run fx store verify {self.path.parent}, then fx extract"
            ) from error

    @property
    def last_written(self) -> int:
        """Time of the last extraction that added rows, nanoseconds since 1970; 0 for none."""
        return max((int(run["taken_ns"]) for run in self.runs), default=0)

    @property
    def rows(self) -> dict[bytes, int]:
        """Row number of every committed key, without rows given up or known to be damaged."""
        if self._rows is None:
            keys = self._read("keys")
            self._rows = {key.tobytes(): row for row, key in enumerate(keys) if key.any()}
            if self.damaged:
                bad = {row for start, stop in self.damaged for row in range(start, stop)}
                self._rows = {key: row for key, row in self._rows.items() if row not in bad}
        return self._rows

    def features(self, keys: Sequence[bytes]) -> NDArray[np.float32]:
        """Read the features of some images.

        Parameters
        ----------
        keys : SHA-256 digests of image files, 32 bytes each

        Returns
        -------
        float32 array of shape (len(keys), dim), in the order of ``keys``

        Raises
        ------
        FxError
            If a key has no row here, or a chunk fails its checksum.
        """
        return self._take("features", keys).astype(np.float32, copy=False)

    def hashes(self, keys: Sequence[bytes]) -> NDArray[np.uint8]:
        """Read perceptual hashes: uint8 array of shape (len(keys), 32)."""
        return self._take("hashes", keys)

    def _take(self, name: str, keys: Sequence[bytes]) -> NDArray[Any]:
        rows = self.rows
        absent = sum(key not in rows for key in keys)
        if absent:
            raise FxError(
                f"{absent} of {len(keys)} images have no features in {self.path}; "
                "run fx extract again"
            )
        return self._read(name)[[rows[key] for key in keys]]

    def forget_rows(self) -> None:
        """Let the next look-up read the keys again: the writer has changed them."""
        self._rows = None

    def missing_shards(self, name: str) -> list[Path]:
        """Shard files that the committed rows need and lack (Zarr would read zeros)."""
        array = self.array(name)
        rows = (array.shards or array.chunks)[0]
        numbers = range(-(-self.committed // rows))
        files = (self.path / name / "c" / str(number) / "0" for number in numbers)
        return [file for file in files if not file.exists()]

    def damage(self) -> list[Damage]:
        """Read every committed row back, checksums included, and list the ranges that fail."""
        found = []
        for name in ROW_ARRAYS:
            array = self.array(name)
            missing = set(self.missing_shards(name))
            step = (array.shards or array.chunks)[0]
            for start in range(0, self.committed, step):
                stop = min(start + step, self.committed)
                file = self.path / name / "c" / str(start // step) / "0"
                reason = f"{file} is missing" if file in missing else ""
                if not reason:
                    try:
                        array[start:stop]
                    except Exception as error:  # any decoder's failure means the same here
                        reason = f"{file}: {error}"
                if reason:
                    found.append(Damage(self.name, start, stop, reason))
        return found


def generation(name: str) -> int:
    """Generation of a feature set, from its name: 0, or what follows ``.g``."""
    return int(name.split(".g")[1]) if ".g" in name else 0
