"""Keys are found as a dictionary finds them, in a third of its memory."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extract.store import key_index
from extract.store.key_index import GrowingKeys, KeyIndex, as_key_rows

# few bytes, so that keys share their beginnings, and 0, which ends strings elsewhere
KEYS = st.lists(
    st.tuples(st.sampled_from([b"\0", b"\x01", b"\xff"]), st.integers(0, 3), st.booleans()),
    unique_by=lambda key: key[:2],
    max_size=12,
)


def key_of(beginning: bytes, end: int) -> bytes:
    return beginning * 31 + bytes([end])


@given(KEYS, st.lists(st.tuples(st.sampled_from([b"\0", b"\x01", b"\xff"]), st.integers(0, 4))))
def test_keys_are_found_as_in_a_dictionary(
    stored: list[tuple[bytes, int, bool]], asked: list[tuple[bytes, int]]
) -> None:
    keys = [key_of(*key[:2]) for key in stored]
    usable = np.array([key[2] for key in stored], bool)
    index = KeyIndex(as_key_rows(keys), usable)
    plain = {key: row for row, key in enumerate(keys) if usable[row]}
    assert list(index.items()) == list(plain.items())
    wanted = [key_of(*key) for key in asked]
    assert index.find(wanted).tolist() == [plain.get(key, -1) for key in wanted]
    assert [index.get(key) for key in wanted] == [plain.get(key) for key in wanted]


def test_what_is_no_key_is_not_found() -> None:
    index = KeyIndex(as_key_rows([key_of(b"\1", 1)]))
    assert b"" not in index
    assert b"\1" * 8 not in index
    assert not KeyIndex(as_key_rows([])).get(key_of(b"\1", 1))


@given(st.lists(st.lists(st.integers(0, 60), max_size=9)))
def test_added_keys_are_kept(added: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(key_index, "MOST_RECENT", 4)
        keys = [hashlib.sha256(bytes([number])).digest() for number in range(61)]
        growing, plain = GrowingKeys(KeyIndex(as_key_rows(keys[:3]))), set(keys[:3])
        for numbers in added:
            given = [keys[number] for number in numbers]
            assert growing.add(given) == [at for at, key in enumerate(given) if key not in plain]
            plain.update(given)
            assert growing == plain
            assert len(growing) == len(list(growing)) == len(plain)


def test_an_index_takes_37_bytes_a_key() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (262_000, 32), np.uint8)
    arrays = [one for one in vars(KeyIndex(keys)).values() if isinstance(one, np.ndarray)]
    assert sum(one.nbytes for one in arrays) < 37.1 * len(keys)


def test_keys_that_begin_alike_are_found_as_quickly() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (4_096, 32), np.uint8)
    few_bits = (keys & 0xF0) * (np.arange(32) % 8 == 7)  # the first four of every eight bytes
    parts = (slice(0, 24), slice(8, 32), slice(4, 30))
    with_7 = [np.where(np.isin(np.arange(32), np.r_[part]), 7, keys) for part in parts]
    for alike in (few_bits, np.roll(few_bits, 1, axis=1), *with_7):
        alike = np.unique(alike.astype(np.uint8), axis=0)
        index = KeyIndex(alike)
        counts = np.diff(index._starts.astype(int))
        assert counts.max() < 40
        assert (index.find([key.tobytes() for key in alike]) == np.arange(len(alike))).all()
