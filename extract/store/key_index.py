"""Which row belongs to a key: digests in the order of their first 8 bytes, in 44 bytes a key.

A dictionary of Python's takes 150. Keys are SHA-256 digests, so that hardly two of them begin
alike; those that do are told apart by the rest.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Set

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
KeyRows = NDArray[np.uint8]  # of shape (n, 32)
# keys that came last are in a set of Python's up to so many, or such a share of those before
MOST_RECENT, RECENT_SHARE = 1 << 16, 0.125


class KeyIndex(Mapping[bytes, int]):
    """Row number of every key, in the order of the rows.

    Parameters
    ----------
    keys : uint8 array of shape (n, 32), kept
    usable : bool array of shape (n,); which rows count, by default all
    """

    def __init__(self, keys: KeyRows, usable: NDArray[np.bool_] | None = None) -> None:
        self.keys_by_row = keys
        rows = np.arange(len(keys)) if usable is None else np.flatnonzero(usable)
        beginnings = _beginnings(keys)[rows]
        order = np.argsort(beginnings)
        self._rows = rows[order].astype(np.min_scalar_type(max(len(keys), 1)))
        self._beginnings = beginnings[order]
        # bisect takes a third of the time that searchsorted takes for a single key
        self._view = memoryview(self._beginnings.data)

    def find(self, keys: Collection[bytes]) -> NDArray[np.int64]:
        """Find the rows of keys: int64 array of shape (len(keys),), -1 where there is none."""
        wanted = as_key_rows(keys)
        beginnings = _beginnings(wanted)
        found = np.full(len(wanted), -1)
        # in their order, so that what is near in memory is looked at together
        asked = np.argsort(beginnings)
        at = np.searchsorted(self._beginnings, beginnings[asked])
        while len(asked):
            going_on = at < len(self)
            going_on[going_on] = self._beginnings[at[going_on]] == beginnings[asked[going_on]]
            asked, at = asked[going_on], at[going_on]
            rows = self._rows[at]
            same = (self.keys_by_row[rows] == wanted[asked]).all(axis=1)
            found[asked[same]] = rows[same]
            asked, at = asked[~same], at[~same] + 1
        return found

    def __getitem__(self, key: bytes) -> int:
        if len(key) != KEY_BYTES:
            raise KeyError(key)
        beginning = int.from_bytes(key[:8], "big")
        at = bisect_left(self._view, beginning)
        while at < len(self) and self._view[at] == beginning:
            row = int(self._rows[at])
            if self.keys_by_row[row].tobytes() == key:
                return row
            at += 1
        raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        return (self.keys_by_row[row].tobytes() for row in np.sort(self._rows))

    def __len__(self) -> int:
        return len(self._rows)


class GrowingKeys(Set[bytes]):
    """Keys to which others are added: an index, and a set of those that came last.

    Parameters
    ----------
    index : of the keys that there are
    """

    def __init__(self, index: KeyIndex) -> None:
        self._index = index
        self._recent: set[bytes] = set()

    def update(self, keys: Iterable[bytes]) -> None:
        """Add keys."""
        self._recent.update(key for key in keys if key not in self._index)
        if len(self._recent) > max(MOST_RECENT, RECENT_SHARE * len(self._index)):
            parts = self._index.keys_by_row[np.sort(self._index._rows)], as_key_rows(self._recent)
            self._index, self._recent = KeyIndex(np.concatenate(parts)), set()

    def __contains__(self, key: object) -> bool:
        return key in self._recent or key in self._index

    def __iter__(self) -> Iterator[bytes]:
        yield from self._index
        yield from self._recent

    def __len__(self) -> int:
        return len(self._index) + len(self._recent)


def as_key_rows(keys: Collection[bytes]) -> KeyRows:
    """Lay keys below each other: uint8 array of shape (len(keys), 32)."""
    return np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), KEY_BYTES)


def _beginnings(keys: KeyRows) -> NDArray[np.uint64]:
    """First 8 bytes of keys as numbers, in the keys' order."""
    return np.ascontiguousarray(keys[:, :8]).view(">u8")[:, 0].astype(np.uint64)
