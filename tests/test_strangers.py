"""Files of strangers: each is read, or refused in one line, and takes no memory that it has not."""

import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import Said

from extract.archives import stored_entries
from extract.errors import FxError
from extract.weights import read_state_dict
from fx.memory import peak_memory_mb, reset_peak_memory

pytestmark = pytest.mark.timeout(60)

Fx = Callable[..., Said]
GB = 2**30


@contextmanager
def little_memory(most: float = 100) -> Iterator[None]:
    """Fail where the body takes more megabytes than that; only Linux tells."""
    reset_peak_memory()
    before = peak_memory_mb()
    yield
    if sys.platform == "linux":
        assert peak_memory_mb() - before < most


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def pickled_tensor(numbers: int, shape: int) -> bytes:
    """Pickle a state dict of one tensor as PyTorch does, of storage 0 with so many numbers."""
    storage = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + number(numbers) + b"tQ"
    rebuild += number(0) + number(shape) + b"\x85" + number(1) + b"\x85"
    return b"\x80\x02}" + text("w") + rebuild + b"\x89ccollections\nOrderedDict\n)RtRs."


def pickled(value: bytes) -> bytes:
    return b"\x80\x02}" + text("w") + value + b"s."


def checkpoint(
    pickle_: bytes, storage: bytes = b"", compression: int = zipfile.ZIP_STORED
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in {"data.pkl": pickle_, "byteorder": b"little", "version": b"3\n"}.items():
            archive.writestr(f"a/{name}", data)
        archive.writestr("a/data/0", storage)
    return file.getvalue()


def with_another_directory(data: bytes) -> bytes:
    """Put a second directory into an archive, which only some readers find."""
    end = data[-22:]
    length, begin = struct.unpack("<LL", end[12:20])
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, length, begin)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, begin, 1)
    return data[:-22] + record + locator + end


def hexadecimal(times: int) -> bytes:
    value = b"c_codecs\nencode\n" + text("a" * 64) + text("utf-16") + b"\x86R"
    for _ in range(times):
        value = b"c_codecs\nencode\n" + value + text("hex") + b"\x86R"
    return value


PLAIN = checkpoint(pickled_tensor(4, 4), bytes(16))
ATTRIBUTE = b"\x80\x02ccollections\nOrderedDict\n)R}" + text("get") + text("x") + b"sb."
CHECKPOINTS = {
    "of zeros, compressed": (
        checkpoint(pickled_tensor(2**26, 2**26), bytes(2**28), zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "of fewer numbers than it says": (checkpoint(pickled_tensor(GB, GB), bytes(16)), "cannot read"),
    "of a tensor beyond its numbers": (checkpoint(pickled_tensor(4, GB), bytes(16)), "cannot read"),
    "with two directories": (with_another_directory(PLAIN), "two directories"),
    "with a comment": (PLAIN[:-2] + b"\1\0x", "no directory at its end"),
    "cut off": (PLAIN[:-30], "no directory at its end"),
    "that allocates": (
        checkpoint(pickled(b"cbuiltins\nbytearray\n" + number(GB) + b"\x85R")),
        "never unpickles",
    ),
    "that doubles": (checkpoint(pickled(hexadecimal(24))), "never unpickles"),
    "that allocates, in another case": (
        checkpoint(pickled(b"cbuiltins\nbytearray\n" + number(GB) + b"\x85R")).replace(
            b"data.pkl", b"DATA.PKL"
        ),
        "never unpickles",
    ),
    "with a key too deep": (
        checkpoint(b"\x80\x02})" + b"\x85" * 1_000_000 + b"Ns."),
        "never unpickles",
    ),
    "of many sets": (
        checkpoint(pickled(b"](" + b"\x8f" * 3_000_000 + b"e")),
        "never unpickles",
    ),
    "of a long pickle": (checkpoint(pickled(b"](" + b"N" * 5_000_000 + b"e")), "cannot read"),
    "that holds itself": (
        checkpoint(b"\x80\x02}q\0" + text("state_dict") + b"h\0s."),
        "holds no state dict",
    ),
    "with attributes": (checkpoint(ATTRIBUTE), "cannot read"),
    "no zip, that allocates": (
        pickle.dumps(0x1950A86A20F9469CFC6C, 2)
        + pickle.dumps(1001, 2)
        + pickle.dumps({"little_endian": True}, 2)
        + pickled(b"cbuiltins\nbytearray\n" + number(GB) + b"\x85R"),
        "never unpickles",
    ),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_refused_before_it_takes_memory(name: str, tmp_path: Path) -> None:
    data, message = CHECKPOINTS[name]
    file = tmp_path / "weights.pt"
    file.write_bytes(data)
    with pytest.raises(FxError, match=message) as refused, little_memory():
        read_state_dict(file)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_what_is_sparse_is_not_read(tmp_path: Path) -> None:
    # the place of the storage's bytes is moved behind a hole: a file of 4 GB that takes no room
    file, hole = tmp_path / "weights.pt", 4 * GB - 2**20
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickled_tensor(hole // 4, hole // 4))
        archive.writestr("a/version", "3\n")
        archive.writestr("a/data/0", b"")
    data = bytearray(file.read_bytes())
    begin = struct.unpack("<L", data[-6:-2])[0]
    for place, fields in ((data.rindex(b"PK\3\4"), 18), (data.rindex(b"PK\1\2"), 20)):
        data[place + fields : place + fields + 8] = struct.pack("<LL", hole, hole)
    data[-6:-2] = struct.pack("<L", begin + hole)
    with file.open("wb") as sparse:
        sparse.write(data[:begin])
        sparse.seek(hole, os.SEEK_CUR)
        sparse.write(data[begin:])
    with little_memory():
        state = read_state_dict(file)
    assert state["w"].shape == (hole // 4,)
    old = tmp_path / "old.pt"
    torch.save({"w": torch.zeros(3)}, old, _use_new_zipfile_serialization=False)
    os.truncate(old, 8 * GB)
    with pytest.raises(FxError, match="a file that is no zip may have"), little_memory():
        read_state_dict(old)


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_every_kind_of_checkpoint_is_read(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3).half()}
    file = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
    if kind == "safetensors":
        save_file(tensors, file)
    else:
        nested = {"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}
        torch.save(nested, file, _use_new_zipfile_serialization=kind == "zip")
    found = read_state_dict(file)
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_checkpoint_s_other_tensors_take_no_memory(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(3)}, "moments": torch.ones(2**26)}, tmp_path / "w.pt")
    with little_memory():
        assert torch.equal(read_state_dict(tmp_path / "w.pt")["w"], torch.ones(3))


SAFETENSORS = {
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 64 MB": struct.pack("<Q", 2**26) + b"{" + b" " * (2**26 - 2) + b"}",
    "a deep header": struct.pack("<Q", 100_000) + b"[" * 100_000,
    "a shape that overflows": struct.pack("<Q", 71)
    + b'{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'[:71],
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_are_refused_before_they_take_memory(name: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    file.write_bytes(SAFETENSORS[name])
    with pytest.raises(FxError, match="cannot read weights"), little_memory():
        read_state_dict(file)


def no_file(kind: str, path: Path) -> Path:
    """Make what is no regular file."""
    {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
        "socket": lambda path: os.mknod(path, 0o140600),
    }[kind](path)
    return path


NO_FILES = ["pipe", "device", "folder", "socket"]


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_are_no_file_are_refused_at_once(
    kind: str, suffix: str, folder: Path, tmp_path: Path, fx: Fx
) -> None:
    weights = no_file(kind, tmp_path / f"weights.{suffix}")
    said = fx("extract", folder, "--weights", weights, "--store", tmp_path / "f.zarr")
    assert said.status == 1
    assert said.err.startswith(f"fx: error: no weights '{weights}': that is no regular file; ")
    with pytest.raises(FxError, match=r"no file, of weights or other"):
        read_state_dict(weights)


def test_an_archive_s_directory_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "sparse.zip").open("wb+") as file:
        file.truncate(3 * GB)
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 3 * GB, 0, 0))
        with pytest.raises(zipfile.BadZipFile, match="a directory of"), little_memory():
            stored_entries(file)
