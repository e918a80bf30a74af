"""Which row belongs to a key: a hash table in 37 bytes a key, of which 32 are the key.

A dictionary of Python's takes 150. The multipliers of the hash are drawn anew in every process, so
that no store can be made in which look-ups take long.
"""

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from operator import mul

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32
KeyRows = NDArray[np.uint8]  # of shape (n, 32)
_HALVES, _MODULUS = struct.Struct("=8I").unpack, 1 << 64
PER_BUCKET = 4  # keys, about, that share their hash's first bits
# keys that came last are in a set of Python's up to so many, or such a share of those before
MOST_RECENT, RECENT_SHARE = 1 << 16, 0.25


class KeyIndex(Mapping[bytes, int]):
    """Row number of every key, in the order of the rows.

    Parameters
    ----------
    keys : uint8 array of shape (n, 32)
    usable : bool array of shape (n,); which rows count, by default all
    """

    def __init__(self, keys: KeyRows, usable: NDArray[np.bool_] | None = None) -> None:
        rows = np.arange(len(keys)) if usable is None else np.flatnonzero(usable)
        bits = max(1, (len(rows) // PER_BUCKET).bit_length())
        self._shift = np.uint64(64 - bits)
        # multilinear hashing of 32-bit words (D. Lemire and O. Kaser, "Strongly Universal String
        # Hashing is Fast", 2014)
        self._multipliers = np.random.default_rng().integers(1 << 64, size=8, dtype=np.uint64)
        self._as_python = self._multipliers.tolist(), int(self._shift)
        buckets = self._buckets(keys[rows])
        order = np.argsort(buckets)
        place = np.min_scalar_type(max(1, len(keys)))
        self.keys_in_table, self._rows = keys[rows[order]], rows[order].astype(place)
        counts = np.bincount(buckets, minlength=1 << bits)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(place)

    def _buckets(self, keys: KeyRows) -> NDArray[np.intp]:
        words = np.ascontiguousarray(keys).view(np.uint32)
        hashes = np.zeros(len(keys), np.uint64)
        for word, multiplier in zip(words.T, self._multipliers, strict=True):
            hashes += word * multiplier
        return (hashes >> self._shift).astype(np.intp)

    def find(self, keys: Collection[bytes]) -> NDArray[np.int64]:
        """Find the rows of keys: int64 array of shape (len(keys),), -1 where there is none."""
        wanted = as_key_rows(keys)
        buckets = self._buckets(wanted)
        found = np.full(len(wanted), -1)
        # in the table's order, so that what is near in memory is looked at together
        asked = np.argsort(buckets)
        at = self._starts[buckets[asked]].astype(np.intp)
        stop = self._starts[buckets[asked] + 1]
        while len(asked):
            inside = at < stop
            asked, at, stop = asked[inside], at[inside], stop[inside]
            same = (self.keys_in_table[at] == wanted[asked]).all(axis=1)
            found[asked[same]] = self._rows[at[same]]
            asked, at, stop = asked[~same], at[~same] + 1, stop[~same]
        return found

    def __getitem__(self, key: bytes) -> int:
        if len(key) == KEY_BYTES:
            # as `find` does, for a single key in a tenth of the time
            multipliers, shift = self._as_python
            bucket = (sum(map(mul, _HALVES(key), multipliers)) % _MODULUS) >> shift
            for at in range(self._starts[bucket], self._starts[bucket + 1]):
                if self.keys_in_table[at].tobytes() == key:
                    return int(self._rows[at])
        raise KeyError(key)

    def __iter__(self) -> Iterator[bytes]:
        return (self.keys_in_table[at].tobytes() for at in np.argsort(self._rows))

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

    def add(self, keys: Sequence[bytes]) -> list[int]:
        """Add keys, and say which of them were not there: their places among those given."""
        rows = self._index.find(keys)
        new = [at for at in np.flatnonzero(rows < 0).tolist() if keys[at] not in self._recent]
        self._recent.update(keys[at] for at in new)
        if len(self._recent) > max(MOST_RECENT, RECENT_SHARE * len(self._index)):
            parts = self._index.keys_in_table, as_key_rows(self._recent)
            self._index, self._recent = KeyIndex(np.concatenate(parts)), set()
        return new

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
