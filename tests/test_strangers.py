"""Files of strangers: each is read, or refused in one line, and takes no memory that it has not."""

import copy
import functools
import io
import json
import math
import os
import pickle
import re
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import Said
from older_heads import save_older_head
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from extract.backbones import Backbone, load_backbone, make_spec
from extract.backbones.weights import read_state_dict
from extract.engines import default_batch_size
from extract.errors import FxError
from extract.files import stored_entries
from extract.images import (
    MAX_SIZE,
    FileStats,
    ImageRow,
    Preprocessing,
    Snapshot,
    find_images,
    load_images,
)
from extract.images import loader as reading
from extract.store import StoredNetwork
from finetune.network import Network
from finetune.training import ModelRecord, TrainingState, save_model
from finetune.training.checkpoint import load_training_state, save_training_state
from fx.options import Options
from fx.runs import Run
from fx.stages.memory import peak_memory_mb, reset_peak_memory
from fx.stages.models import open_model
from fx.stages.records import HeadResult
from heads.calibration import Calibration
from heads.files import load_head, save_head
from heads.fitting import fit_head
from heads.head import Source
from heads.limits import Limits
from heads.metrics import METRICS

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


STATE = TrainingState(Calibration(1.0, 0.0, 0.0, 0.0, 0.0))


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
    with pytest.raises(FxError, match="cannot read weights from"):
        read_state_dict(weights)


def test_an_archive_s_directory_is_bounded(tmp_path: Path) -> None:
    with (tmp_path / "sparse.zip").open("wb+") as file:
        file.truncate(3 * GB)
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 3 * GB, 0, 0))
        with pytest.raises(zipfile.BadZipFile, match="a directory of"), little_memory():
            stored_entries(file)


SIZE = 32
DEEP = "[" * 100_000 + "]" * 100_000
# of no field: what each is changed to, besides being left out
WRONG = [None, -2.5, True, "x", [[{"a": [1]}]], {}, 10**400, float("nan")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> dict[str, Path]:
    """A head with its limits, and a network, of one backbone."""
    root = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 20)
    features = rng.normal(size=(40, backbone.dim)).astype(np.float32) + (labels == "a")[:, None]
    spec, source = make_spec(backbone, "fp32").to_dict(), Source((backbone.weights,))
    head = fit_head(features, labels, kind="logreg", spec=spec, source=source, c=0.1)
    save_head(head.tested(features, labels), root / "head")
    assert head.held_out is not None
    limits = Limits.of(features, head.held_out)
    limits.save(root / "head")
    save_older_head(head.tested(features, labels), root / "older")
    save_model(root / "net", network_of(backbone, 2), ModelRecord.of(backbone, ["a", "b"]))
    return {kind: root / kind for kind in ("head", "older", "net")}


def network_of(backbone: Backbone, classes: int) -> Network:
    return Network(backbone.module, torch.nn.Linear(backbone.dim, classes))


def copied(model: Path, to: Path) -> Path:
    shutil.copytree(model, to / model.name)
    return to / model.name


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Give where the values of a record are, those of a list's first one for all of it."""
    if at:
        yield at
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*at, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*at, 0))


def changed(record: Any, at: tuple[Any, ...], value: Any) -> str:
    """Write a record with another value somewhere; `...` leaves it out."""
    record = copy.deepcopy(record)
    within = record
    for name in at[:-1]:
        within = within[name]
    if value is ...:
        del within[at[-1]]
    else:
        within[at[-1]] = value
    return json.dumps(record).replace(f'"{DEEP}"', DEEP)


def kind_of(value: Any) -> type:
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def refusal(work: Callable[[], object]) -> str | None:
    """Say in one line why it was refused; None where it was not."""
    try:
        work()
    except FxError as error:
        said = str(error)
    else:
        return None
    assert "\n" not in said
    assert 0 < len(said) < 700
    return said


RECORDS = {"head": "head.json", "net": "model.json"}
# what may be left out, or be something else
OPTIONAL = {"kernel", "class_weight", "protocol", "metrics", "top5", "precision", "recall"}
OPTIONAL |= {
    "accuracy_ci",
    "n_groups",
    "model_sha256",
    "versions",
    "measured_by",
    "method",
    "channels",
    "weights",
    "weights_hash",
    "version",
}


@pytest.mark.parametrize("kind", RECORDS)
def test_every_wrong_type_in_a_model_s_record_is_one_error(
    kind: str, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(models[kind], tmp_path)
    file = folder / RECORDS[kind]
    record = json.loads(file.read_text())
    # one network for all
    kept = functools.cache(lambda items: load_backbone(**dict(items)))

    def cached(name: str, **choices: Any) -> Backbone:
        return kept(tuple(sorted({"name": name, **choices}.items())))

    monkeypatch.setattr("fx.stages.models.load_backbone", cached)
    monkeypatch.setattr("finetune.training.checkpoint.load_backbone", cached)
    opened, refused = [], 0
    for at in places(record):
        value = record
        for name in at:
            value = value[name]
        for wrong in [*WRONG, DEEP, ...]:
            file.write_text(changed(record, at, wrong))
            said = refusal(lambda: open_model(folder, Options(engine="torch")))
            refused += said is not None
            if said is None:
                opened.append((at, wrong, value))
    for at, wrong, value in opened:
        name = next((part for part in reversed(at) if isinstance(part, str)), "")
        assert wrong is not DEEP, at
        # numbers for numbers and words for words may be those of another model
        alike = wrong is not ... and (kind_of(wrong) is kind_of(value) or wrong is value)
        left_out = wrong is ... and at[0] == "search"  # some of it came with later versions
        # metrics come and go with versions, and some are not always defined
        left_out |= at[0] == "metrics" and name in METRICS and wrong in (None, ...)
        free = name in OPTIONAL or isinstance(at[-1], int) or {"per_class", "versions"} & {*at}
        assert alike or left_out or free, (at, wrong)
        assert not isinstance(wrong, float) or np.isfinite(wrong), (at, wrong)
    assert refused > len(opened)


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"format": 3, "kind": "\xff"}', b"{}" + bytes(99)],
)
def test_what_is_no_record_is_one_error(
    kind: str, data: bytes, models: dict[str, Path], tmp_path: Path, folder: Path, fx: Fx
) -> None:
    model = copied(models[kind], tmp_path)
    (model / RECORDS[kind]).write_bytes(data)
    said = fx("predict", model, folder)
    assert said.status == 1
    (line,) = said.err.splitlines()
    assert line.startswith("fx: error: ")
    assert RECORDS[kind] in line


BOMBS = {
    "head": [
        (("spec", "preprocessing", "size"), 20_000, "size must be at most 2048 pixels"),
        (("spec", "size"), 20_000, "size is 20000"),
        (("spec", "crops"), 10**6, "crops"),
        (("spec",), {"features": []}, "0 sets of features"),
        (("source", "weights"), "/dev/zero", "no regular file"),
        (("source", "weights"), "~no such user/w.pt", "no weights"),
        (("source", "weights"), "a\0b", "no weights"),
    ],
    "net": [
        (("preprocessing", "size"), 20_000, "size must be at most 2048 pixels, got 20000"),
        (("preprocessing", "resize"), 20_000, "resize must be at most 128, got 20000"),
        (("preprocessing", "mean"), [1e30, 0, 0], "mean must be"),
        (("classes",), [str(n) for n in range(300_000)], "for 300000 classes"),
        (("classes",), ["a"], "for 1 classes"),
        (("classes",), [], "classes"),
        (("channels",), 1, "shape"),
        (("backbone",), "resnet18", "Missing key"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "at", "value", "message"),
    [(kind, *one) for kind, several in BOMBS.items() for one in several],
)
def test_a_record_of_gigabytes_is_refused_before_they_are_taken(
    kind: str, at: tuple[str], value: Any, message: str, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(models[kind], tmp_path)
    file = folder / RECORDS[kind]
    file.write_text(changed(json.loads(file.read_text()), at, value))
    with pytest.raises(FxError, match=message), little_memory(150):
        open_model(folder, Options(engine="torch"))


def test_a_record_of_many_lists_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(models["head"], tmp_path)
    record = json.loads((folder / "head.json").read_text())
    record["source"]["more"] = [[]] * 3_000_000
    (folder / "head.json").write_text(json.dumps(record))
    with pytest.raises(FxError, match="too many lists"), little_memory():
        load_head(folder)


@pytest.mark.parametrize("kind", NO_FILES[:3])
@pytest.mark.parametrize(
    "name",
    [
        *("head.json", "head.safetensors", "head.skops", "limits.npz"),
        *("model.json", "model.safetensors"),
    ],
)
def test_what_is_no_file_in_a_model_s_folder_is_refused_at_once(
    kind: str, name: str, models: dict[str, Path], tmp_path: Path, folder: Path, fx: Fx
) -> None:
    whose = {"model": "net", "head.skops": "older"}
    model = copied(models[whose.get(name, whose.get(name.split(".")[0], "head"))], tmp_path)
    (model / name).unlink()
    no_file(kind, model / name)
    said = fx("predict", model, folder, "--engine", "torch", "--reject", "0.1")
    assert said.status == 1
    (line,) = said.err.splitlines()[-1:]
    assert re.search("not a regular file|Is a directory", line), line
    assert str(model / name) in line


@pytest.mark.parametrize("kind", NO_FILES[:3])
@pytest.mark.parametrize("name", ["network.xml", "network.bin"])
def test_a_quantised_network_that_is_no_file_is_refused_at_once(
    kind: str, name: str, tmp_path: Path
) -> None:
    StoredNetwork(b"<net/>", b"1").write(tmp_path)
    (tmp_path / name).unlink()
    no_file(kind, tmp_path / name)
    with pytest.raises(FxError, match=f"{name} cannot be read"):
        StoredNetwork.read(tmp_path)


def rewritten(
    file: Path, change: Callable[[dict[str, bytes]], None], compression: int = zipfile.ZIP_STORED
) -> None:
    """Change the parts of an archive."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


def array_file(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    """Begin a .npy file."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def first_array(parts: dict[str, bytes]) -> str:
    return next(name for name in parts if name.endswith(".npy"))


def of_zeros(parts: dict[str, bytes]) -> None:
    parts[first_array(parts)] = array_file((2**25,)) + bytes(2**28)


def of_many_uses(parts: dict[str, bytes]) -> None:
    name = first_array(parts)
    parts[name] = array_file((2**21,)) + bytes(2**24)
    schema = json.loads(parts["schema.json"])
    node = {"__class__": "ndarray", "__module__": "numpy", "__loader__": "NdArrayNode"}
    uses = [node | {"type": "numpy", "file": name, "__id__": n} for n in range(20)]
    of = {"__class__": "list", "__module__": "builtins", "__loader__": "ListNode", "__id__": 99}
    schema["content"]["content"]["more"] = of | {"content": uses}
    parts["schema.json"] = json.dumps(schema).encode()


def of_lists(parts: dict[str, bytes]) -> None:
    parts["schema.json"] = b'{"more": [' + b"[]," * 3_000_000 + b"[]]}"


SKOPS = {
    "of zeros": (of_zeros, zipfile.ZIP_DEFLATED, "is compressed"),
    "of one array used often": (of_many_uses, zipfile.ZIP_STORED, "used several times"),
    "of lists": (of_lists, zipfile.ZIP_STORED, "a schema of"),
    "of an absurd shape": (
        lambda parts: parts.update({first_array(parts): array_file((2**40,))}),
        zipfile.ZIP_STORED,
        "cannot be read",
    ),
    "of no end of brackets": (
        lambda parts: parts.update({"schema.json": b"[" * 100_000}),
        zipfile.ZIP_STORED,
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", SKOPS)
def test_a_head_s_model_is_refused_before_it_takes_memory(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(models["older"], tmp_path)
    change, compression, message = SKOPS[name]
    rewritten(folder / "head.skops", change, compression)
    with pytest.raises(FxError, match=message), little_memory():
        load_head(folder)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_head_s_arrays_are_refused_before_they_take_memory(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(models["head"], tmp_path)
    (folder / "head.safetensors").write_bytes(SAFETENSORS[name])
    record = json.loads((folder / "head.json").read_text())
    (folder / "head.json").write_text(json.dumps(record | {"model_sha256": None}))
    with (
        pytest.raises(FxError, match=r"head cannot be read; got .*head\.safetensors"),
        little_memory(),
    ):
        load_head(folder)


@pytest.mark.parametrize("sparse", ["head.safetensors", "head.skops", "limits.npz"])
def test_a_sparse_file_in_a_head_s_folder_is_not_read(
    sparse: str, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(models["older" if sparse == "head.skops" else "head"], tmp_path)
    os.truncate(folder / sparse, 1_000_000_000)
    with pytest.raises(FxError, match=r"1\.0 GB are holes"), little_memory():
        Limits.load(folder) if sparse == "limits.npz" else load_head(folder)


LIMITS = {
    "of zeros": (
        lambda parts: parts.update({"rows.npy": array_file((2**16, 1024), "<f4") + bytes(2**28)}),
        "is compressed",
    ),
    "of words": (
        lambda parts: parts.update({"rows.npy": array_file((0,), "<U5")}),
        "no limits of a model",
    ),
    "of nothing": (
        lambda parts: parts.update({"distances.npy": array_file((0,), "<f4")}),
        "no limits of a model",
    ),
    "without rows": (lambda parts: parts.pop("rows.npy"), "cannot be read"),
    "of another width": (
        lambda parts: parts.update({"rows.npy": array_file((1, 7), "<f4") + bytes(28)}),
        "of another model; got rows of 7 numbers for features of 1280",
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_strangers_are_refused_in_one_line(
    name: str, models: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(models["head"], tmp_path)
    change, message = LIMITS[name]
    compression = zipfile.ZIP_DEFLATED if name == "of zeros" else zipfile.ZIP_STORED
    rewritten(folder / "limits.npz", change, compression)
    with pytest.raises(FxError, match=message), little_memory():
        Limits.load(folder).distance(np.ones((1, 1280), dtype=np.float32))


def test_a_head_of_wrong_arrays_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    head = load_head(models["head"])
    good = head.pipeline[-1].coef_
    for wrong in (np.full_like(good, np.nan), good.astype(str), good[:, :-1], good.astype(complex)):
        head.pipeline[-1].coef_ = wrong
        save_older_head(load_head(models["head"]), tmp_path, head.pipeline)
        with pytest.raises(FxError, match=r"does not fit head\.json"):
            load_head(tmp_path)
    for wrong in (np.full_like(good, np.nan), good.astype(bool), good[:, :-1], good[0]):
        head.pipeline[-1].coef_ = wrong
        save_head(head, tmp_path)
        with pytest.raises(FxError, match=r"does not fit head\.json"):
            load_head(tmp_path)
    head.pipeline[-1].coef_ = good
    save_head(head, tmp_path)
    load_head(tmp_path)


def test_a_record_is_not_paired_with_another_s_model(
    models: dict[str, Path], tmp_path: Path, backbone: Backbone
) -> None:
    head, net = copied(models["head"], tmp_path), copied(models["net"], tmp_path)
    records = {folder: (folder / RECORDS[folder.name]).read_bytes() for folder in (head, net)}
    # as a run leaves them that is killed between the two files
    other = load_head(head)
    other.pipeline[-1].coef_ = -other.pipeline[-1].coef_
    save_head(other, head)
    save_model(net, network_of(backbone, 2), ModelRecord.of(backbone, ["a", "b"]))
    for folder, record in records.items():
        (folder / RECORDS[folder.name]).write_bytes(record)
        with pytest.raises(FxError, match=r"does not fit (head|model)\.json"):
            open_model(folder, Options())


def test_models_of_older_versions_say_no_hash_and_are_read(
    models: dict[str, Path], tmp_path: Path
) -> None:
    for kind, name in RECORDS.items():
        folder = copied(models[kind], tmp_path)
        record = json.loads((folder / name).read_text())
        del record["model_sha256"]
        (folder / name).write_text(json.dumps(record))
        assert open_model(folder, Options(engine="torch")).classes == ("a", "b")


def test_labels_that_are_no_utf_8_are_read(tmp_path: Path) -> None:
    labels = np.array(["caf\udce9", "b"] * 20)
    features = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    save_head(fit_head(features, labels, kind="centroid"), tmp_path)
    assert load_head(tmp_path).classes == ("b", "caf\udce9")


RESULT = {
    "head": "h",
    "kind": "logreg",
    "kernel": None,
    "normalize": "standard",
    "path": "p",
    "backbone": "b",
    "snapshot": "s",
    "classes": ["a", "b"],
    "n_train": 3,
    "n_validation": 0,
    "c": 1.0,
    "notes": [],
    "seconds": 1.0,
    "accuracy": 0.5,
    "accuracy_ci": [0.25, 0.75],
    "majority": 0.5,
    "per_class": [],
    "reliability": [],
    "reliability_uncalibrated": [],
    "n_test": 2,
    "confusion": [[1, 0], [1, 0]],
    "measured_by": "test rows",
}


def result_with(**changes: object) -> bytes:
    return json.dumps(RESULT | changes).replace('"@"', DEEP).encode()


RESULTS = {
    "no object": b"[]",
    "nothing": b"",
    "no UTF-8": result_with().replace(b'"notes": []', b'"notes": ["\xff"]'),
    "deep": result_with(x="@"),
    "too deep to print": result_with().replace(
        b"{", b'{"x": ' + b"[" * 500 + b"]" * 500 + b", ", 1
    ),
    "no number": result_with(seconds=float("nan")),
    "nothing of it": b"{}",
    "words for numbers": result_with(accuracy="high"),
    "one end of an interval": result_with(accuracy_ci=[0.5]),
    "null": result_with(seconds=None),
}


def test_a_result_of_the_right_types_is_read(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(result_with())
    result = Run(tmp_path).result(HeadResult)
    assert (result.evaluation["accuracy"], result.classes) == (0.5, ("a", "b"))
    Run(tmp_path / "again").finish(result)
    assert Run(tmp_path / "again").result(HeadResult) == result


@pytest.mark.parametrize("what", RESULTS)
def test_a_result_of_wrong_types_is_one_error(what: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_bytes(RESULTS[what])
    with pytest.raises(FxError, match=r"result\.json is damaged \(.*\); repeat .* `fresh`"):
        Run(tmp_path).result(HeadResult)


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_result_that_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    no_file(kind, tmp_path / "result.json")
    with pytest.raises(FxError, match=r"result\.json is damaged"):
        Run(tmp_path).result(HeadResult)
    module = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(module.parameters())
    state_file = no_file(kind, tmp_path / "training.safetensors")
    with pytest.raises(FxError, match=r"training\.safetensors cannot be read"):
        load_training_state(state_file, module, optimiser)


def test_a_training_s_state_of_wrong_types_is_one_error(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(module.parameters())
    file = tmp_path / "training.safetensors"
    save_training_state(file, STATE, module, optimiser)
    with safe_open(file, "pt") as opened:
        about = json.loads(opened.metadata()["fx"])
    tensors = load_file(file)
    wrong = [changed(about, at, value) for at in places(about) for value in ({}, "x", None, ...)]
    # nothing found by trial, and a method that goes without saying
    right = [changed(about, ("found",), {}), changed(about, ("calibration", "method"), ...)]
    for text_ in [*wrong, DEEP, "[]", ""]:
        save_file(tensors, file, {"fx": text_})
        said = refusal(lambda: load_training_state(file, module, optimiser))
        assert (said is None) == (text_ in right)
    about |= {"best_epoch": 1, "epoch": 2}
    save_file(tensors | {"best.w": torch.ones(1)}, file, {"fx": json.dumps(about)})
    with pytest.raises(FxError, match="another network's"):
        load_training_state(file, module, optimiser)


KEY = bytes(range(32))
ROW = ImageRow("a.png", KEY, "a", None, "train", "", True, FileStats(1, 2, 3, 4))
UNREADABLE = ImageRow("b.png", b"", None, None, None, "no image", False, None)
SNAPSHOT = Snapshot("/root", (ROW, UNREADABLE), 0, 1, "s")


def table_of(snapshot: Snapshot) -> pa.Table:
    return parquet.ParquetFile(io.BytesIO(snapshot.to_parquet())).read()


def as_file(table: pa.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(table, file, **options)
    return file.getvalue()


def with_column(name: str, column: pa.Array | None) -> bytes:
    """Write the snapshot with another column, or without it."""
    table = table_of(SNAPSHOT)
    place = table.schema.get_field_index(name)
    if column is None:
        return as_file(table.remove_column(place))
    return as_file(table.set_column(place, name, column))


def about(**changes: Any) -> bytes:
    """Write the snapshot saying something else of itself."""
    said = {"root": "/root", "split_seed": 0, "taken_ns": 1} | changes
    text_ = json.dumps({name: value for name, value in said.items() if value is not ...})
    return as_file(table_of(SNAPSHOT).replace_schema_metadata({"fx": text_.replace('"@"', DEEP)}))


OF_TYPES = [
    pa.array([["a"], ["b"]]),
    pa.array([{"x": 1}, {"x": 2}]),
    pa.array(["a", "b"]).dictionary_encode(),
    pa.array([1, 2], pa.timestamp("ns")),
    pa.array([1, 2], pa.decimal128(3, 1)),
    pa.nulls(2),
    pa.array(["a", "b"], pa.large_string()),
    pa.array([1.0, float("nan")]),
    pa.array([1, 2], pa.int8()),
]
SNAPSHOTS = {
    "nothing": b"",
    "no Parquet": b"PAR1" + bytes(100) + b"PAR1",
    "cut off": SNAPSHOT.to_parquet()[:-10],
    "a huge footer": SNAPSHOT.to_parquet()[:-8] + struct.pack("<L", 2**31 - 1) + b"PAR1",
    **{
        f"{name} of {column.type}": with_column(name, column)
        for name in table_of(SNAPSHOT).column_names
        for column in OF_TYPES
    },
    **{f"no {name}": with_column(name, None) for name in table_of(SNAPSHOT).column_names},
    "a column too many": as_file(table_of(SNAPSHOT).append_column("more", pa.array([1, 2]))),
    "nothing of itself": as_file(table_of(SNAPSHOT).replace_schema_metadata(None)),
    "no object": as_file(table_of(SNAPSHOT).replace_schema_metadata({"fx": "[1]"})),
    "no UTF-8": as_file(table_of(SNAPSHOT).replace_schema_metadata({b"fx": b'{"root": "\xff"}'})),
    "a root of a number": about(root=7),
    "a root of brackets": about(root="@"),
    "a seed of text": about(split_seed="0"),
    "a seed of a half": about(split_seed=0.5),
    "a time of null": about(taken_ns=None),
    "no root": about(root=...),
    "a key of 31 bytes": with_column("key", pa.array([KEY[:31], b""], pa.binary())),
    "no key of what is readable": with_column("key", pa.array([b"", b""], pa.binary())),
    "a key of null": with_column("key", pa.array([KEY, None], pa.binary())),
    "a path of null": with_column("path", pa.array([b"a.png", None], pa.binary())),
    "a path of nothing": with_column("path", pa.array([b"a.png", b""], pa.binary())),
    "a note of null": with_column("note", pa.array([b"", None], pa.binary())),
    "readable of null": with_column("readable", pa.array([True, None])),
    "another split": with_column("split", pa.array(["train", "tset"])),
    "half of its stats": with_column("size", pa.array([None, None], pa.int64())),
    "compressed otherwise": as_file(table_of(SNAPSHOT), compression="zstd"),
    "a row of a million": as_file(
        table_of(Snapshot("/r", (UNREADABLE,), 0, 1)).take([0] * 1_000_000)
    ),
}


def test_a_snapshot_of_strangers_is_what_fx_writes_or_one_error() -> None:
    assert Snapshot.from_parquet("s", SNAPSHOT.to_parquet()) == SNAPSHOT
    for what, data in SNAPSHOTS.items():
        with little_memory():
            said = refusal(lambda data=data: Snapshot.from_parquet("s", data))
        assert said is not None, what
        assert said.startswith("snapshot s cannot be read ("), what


def test_a_text_that_comes_often_takes_memory_once() -> None:
    label = b"x" * 2**20
    repeated = pa.array(np.zeros(50_000, np.int32))
    labels = pa.DictionaryArray.from_arrays(repeated, pa.array([label]))
    table = table_of(Snapshot("/r", (UNREADABLE,), 0, 1)).take([0] * 50_000)
    place = table.schema.get_field_index("label")
    # incompressible, so that there is a byte for each row
    paths = pa.array([os.urandom(4).hex().encode() for _ in range(50_000)])
    table = table.set_column(0, "path", paths)
    data = as_file(table.set_column(place, "label", labels))
    with little_memory():
        snapshot = Snapshot.from_parquet("s", data)
    assert len(snapshot.rows) == 50_000


@pytest.fixture
def tables(folder: Path) -> Callable[..., Path]:
    """Write Parquet tables of two images."""

    def write(**columns: Any) -> Path:
        paths = {"path": ["a/000.png", "b/000.png"]}
        parquet.write_table(pa.table(paths | columns), folder / "t.parquet")
        return folder / "t.parquet"

    return write


READ = {
    "text": (pa.array(["x", None]), ["x", None]),
    "large text": (pa.array([" x", ""], pa.large_string()), ["x", None]),
    "views": (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
    "bytes": (pa.array([b"x", b"\xff"]), ["x", "\udcff"]),
    "bytes of one length": (pa.array([b"xx", b"yy"], pa.binary(2)), ["xx", "yy"]),
    "a dictionary": (pa.array(["x", None]).dictionary_encode(), ["x", None]),
    "a dictionary of numbers": (pa.array([1, None]).dictionary_encode(), ["1", None]),
    "numbers": (pa.array([2**63, 2**64 - 1], pa.uint64()), [str(2**63), str(2**64 - 1)]),
    "floats": (pa.array([1.5, float("nan")]), ["1.5", None]),
    "truths": (pa.array([True, None]), ["True", None]),
    "decimals": (pa.array([Decimal("1.50"), None]), ["1.50", None]),
    "nothing": (pa.nulls(2), [None, None]),
    "dates": (pa.array([1, None], pa.date32()), ["1970-01-02", None]),
    "nanoseconds": (
        pa.array([1_000_000_001, None], pa.timestamp("ns")),
        ["1970-01-01 00:00:01.000000001", None],
    ),
    "a zone": (
        pa.array([1, None], pa.timestamp("us", tz="Mars/X")),
        ["1970-01-01 00:00:00.000001", None],
    ),
}
REFUSED = {
    "a list": pa.array([["x"], ["y"]]),
    "a structure": pa.array([{"x": 1}, {"x": 2}]),
    "a map": pa.array([[("x", 1)], []], pa.map_(pa.string(), pa.int8())),
    "a duration": pa.array([1, 2], pa.duration("s")),
}


@pytest.mark.parametrize("what", READ)
@pytest.mark.parametrize("column", ["label", "group"])
def test_a_column_of_plain_values_is_read_as_text(
    column: str, what: str, tables: Callable[..., Path]
) -> None:
    values, expected = READ[what]
    source = find_images(tables(**{column: values}))
    assert [getattr(entry, column) for entry in source.entries] == expected


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("column", ["path", "label", "split", "group"])
def test_a_column_of_other_values_is_refused_by_its_name(
    column: str, what: str, tables: Callable[..., Path]
) -> None:
    with pytest.raises(FxError, match=f"column '{column}' holds .*; write it as text"):
        find_images(tables(**{column: REFUSED[what]}))


@pytest.mark.parametrize("what", ["floats", "truths", "dates", "decimals", "nanoseconds"])
def test_a_path_is_no_number(what: str, tables: Callable[..., Path]) -> None:
    with pytest.raises(FxError, match=r"column 'path' holds .*; write it as text"):
        find_images(tables(path=READ[what][0]))


def test_a_table_of_gigabytes_is_refused_or_takes_what_is_different(
    tables: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    label = " " + "x" * 2**20
    repeated = pa.array(np.zeros(100_000, np.int32))
    one = pa.DictionaryArray.from_arrays(repeated, pa.array(["a/000.png"]))
    with little_memory():
        table = tables(path=one, label=pa.DictionaryArray.from_arrays(repeated, pa.array([label])))
        (entry,) = find_images(table).entries
    assert entry.label == label.strip()
    monkeypatch.setattr("extract.images.shards.parquet.MOST_ROWS", 99_999)
    with pytest.raises(FxError, match="100,000 rows, where 99,999 are most"):
        find_images(table)
    plain = {"path": ["a/000.png"] * 10, "label": [label] * 10}
    parquet.write_table(pa.table(plain), table, use_dictionary=False, compression="zstd")
    monkeypatch.setattr("extract.images.shards.parquet.LARGEST_COLUMNS", 9 * 2**20)
    with pytest.raises(FxError, match="bytes in its columns, where 9,437,184 are most"):
        find_images(table)


def test_a_csv_of_gigabytes_is_refused_and_one_of_other_columns_takes_none(folder: Path) -> None:
    table = folder / "t.csv"
    row = "a/000.png,x," + "y" * 200_000 + "\n"
    table.write_text("path,label,more\n" + row * 500)
    with little_memory():
        (entry,) = find_images(table).entries
    assert entry.label == "x"
    os.truncate(table, 40 * GB)
    with pytest.raises(FxError, match="bytes, where 536,870,912 are most"), little_memory():
        find_images(table)
    table.write_text("path,label\na/000.png," + "x" * 2**22)
    with pytest.raises(FxError, match="cannot be read as a csv table"), little_memory():
        find_images(table)
    table.write_text(",".join(f"column {n}" for n in range(50_000)))
    with pytest.raises(FxError) as refused:
        find_images(table)
    assert len(str(refused.value)) < 1_000


def test_a_link_in_the_place_of_an_unfinished_file_is_not_followed(
    models: dict[str, Path], tmp_path: Path, backbone: Backbone
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    names = ["head.safetensors", "head.json", "limits.npz", "model.safetensors", "model.json"]
    names += ["result.json", "network.xml", "network.bin", "training.safetensors"]
    model = tmp_path / "model"
    model.mkdir()
    for name in names:
        for unfinished in (f"{name}.partial", Path(name).with_suffix(".partial")):
            (model / unfinished).unlink(missing_ok=True)
            (model / unfinished).symlink_to(victim)
    save_head(load_head(models["head"]), model)
    Limits.load(models["head"]).save(model)
    save_model(model, network_of(backbone, 2), ModelRecord.of(backbone, ["a", "b"]))
    Run(model).finish(HeadResult.from_json(RESULT))
    StoredNetwork(b"<net/>", b"1").write(model)
    module = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(module.parameters())
    save_training_state(
        model / "training.safetensors",
        STATE,
        module,
        optimiser,
    )
    assert victim.read_text() == "precious"
    assert all((model / name).is_file() and not (model / name).is_symlink() for name in names)


def test_large_images_are_few_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    batches = {
        size: (default_batch_size(cpu, "torch", size), default_batch_size(cuda, "torch", size))
        for size in (32, 224, 384, 1024, MAX_SIZE)
    }
    assert batches[32] == batches[224] == batches[384] == (32, 128)
    assert batches[1024] == (4, 18)
    assert batches[MAX_SIZE] == (1, 4)
    ahead = []
    readers_ = reading.readers

    def watched(
        work: Any, cores: int, ahead_: int, shape: tuple[int, ...], *more: Any, **options: Any
    ) -> Any:
        ahead.append(ahead_ * math.prod(shape))
        return readers_(work, cores, ahead_, shape, *more, **options)

    monkeypatch.setattr(reading, "readers", watched)
    large = Preprocessing(MAX_SIZE, MAX_SIZE, "bilinear", (0.5,) * 3, (0.5,) * 3)
    source = find_images(folder / "a" / "000.png")
    for crops in (1, 10):
        (loaded,) = load_images(source, large, crops=crops)
        assert loaded.row.readable
    assert max(ahead) < 600_000_000


def test_a_network_for_large_images_is_built_without_running_it() -> None:
    with little_memory(400):
        backbone = load_backbone("small_cnn", weights="random", size=MAX_SIZE)
    assert backbone.dim == load_backbone("small_cnn", weights="random", size=64).dim
    with pytest.raises(FxError, match="size must be at most 2048 pixels, got 2049"):
        load_backbone("small_cnn", weights="random", size=MAX_SIZE + 1)
