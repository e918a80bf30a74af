"""What training steps free stays with the process while it trains, and not longer."""

import ctypes
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import torch

from finetune.training import freed_memory_kept

BYTES = 256 * 2**20

needs_glibc = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def use_and_free() -> None:
    torch.ones(BYTES // 4)


def keep_and_give_back() -> list[int]:
    """Bytes more than before: eight times while memory is kept, then afterwards."""
    use_and_free()
    before = resident()
    more = []
    with freed_memory_kept():
        for _ in range(8):
            use_and_free()
            more.append(resident() - before)
    return [*more, resident() - before]


@needs_glibc
def test_memory_is_kept_while_training_and_given_back_afterwards() -> None:
    # in a process of its own: in one that has run other tests the heap has gaps
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        *kept, after = pool.apply(keep_and_give_back)
    assert min(kept) > 0.9 * BYTES
    # what is used again is the same memory, or, where it does not begin at a multiple of what
    # torch asks for, one of two pieces
    assert max(kept) < 2.1 * BYTES
    assert after < 0.1 * BYTES


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, name: str | None) -> None:
            assert name is None

    monkeypatch.setattr(ctypes, "CDLL", Other)
    with freed_memory_kept():
        use_and_free()


def test_an_error_in_training_gets_through() -> None:
    with pytest.raises(ValueError, match="diverged"), freed_memory_kept():
        raise ValueError("diverged")
