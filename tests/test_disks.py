"""A disk that is full or read-only ends every command in one line, and costs nothing but room."""

import contextlib
import errno
import io
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
import torchvision
from conftest import Said
from crashing import warm_process
from test_commands_killed import EXTRACT, SMALL, prepared, without_times
from test_commands_killed import warm_up as imported_before
from torch import nn

from extract.backbones.weight_files import cached_url, fetch_from_hub, fetch_url
from extract.engines import OpenVINOEngine
from extract.engines.int8 import save_network
from extract.errors import CannotWrite, NoRoom
from extract.files import check_room, disk_full_as_fx_error, reserve, write_whole
from extract.images import Preprocessing
from finetune.settings import FinetuneSettings
from finetune.training import make_accelerator

Fx = Callable[..., Said]
Disk = Callable[[str], Path]
# what is written below DISK, and what is needed before
COMMANDS: dict[str, tuple[list[str], list[list[str] | str]]] = {
    "sample": (["sample", "digits", "DISK/digits", "--json"], []),
    "extract": ([*EXTRACT, "--store", "DISK/f.zarr"], []),
    "fit-head": (["fit-head", "svm", "--audit", "--out", "DISK/runs", "--json"], [EXTRACT]),
    "int8": (
        ["fit-head", "logreg", "--out", "DISK/runs", "--precision", "int8", "--json"],
        [["extract", "data", "--size", "32", "--precision", "int8", "--json"]],
    ),
    "finetune": (
        ["finetune", "data", "--epochs", "2", "--augment", "flip", "--out", "DISK/runs", *SMALL],
        [EXTRACT],
    ),
    "compare": (
        [
            *["compare", "data", "--epochs", "1", "--sizes", "16", "--seeds", "1"],
            *["--strategies", "centroid,finetune:0", "--out", "DISK/runs", *SMALL],
        ],
        [EXTRACT],
    ),
}


@pytest.fixture(scope="module")
def prepared_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, and with their features."""
    return prepared(tmp_path_factory.mktemp("prepared"), [EXTRACT])


def warm_up() -> None:
    """Import what the commands import."""
    imported_before()


def run_in(folder: str, disk: str, words: list[str], checked: bool = True) -> dict:
    """Run a command in a folder; return its status and what it says.

    Where it is not to check, it finds out that a disk is full only when it writes.
    """
    import finetune.finetuning
    from fx.commands.app import main

    if not checked:
        finetune.finetuning.check_room_for_training = lambda *_, **__: 0
    os.chdir(folder)
    sys.argv = ["fx", *(word.replace("DISK", disk) for word in words)]
    status, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            status = end.code
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def begin(small_disk: Disk, room: int | None) -> Path:
    """Empty the disk, and leave so many kilobytes of room on it; None for all that is needed."""
    disk = small_disk("300m")
    for child in disk.iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    if room is not None:
        (disk / "filler").write_bytes(bytes(4096))
        small_disk(f"{room + 4}k")
    return disk


def files_on(disk: Path) -> set[str]:
    found = (file for file in disk.rglob("*") if file.is_file() and file.name != "filler")
    # a snapshot's name is that of the second in which it was taken
    return {str(one.relative_to(disk)) for one in found if "snapshots" not in one.parts}


def remains(*folders: Path) -> list[Path]:
    """What a command that has ended must not leave: the unfinished, and folders of nothing."""
    everything = [path for folder in folders for path in folder.rglob("*")]
    names = (".partial", ".fx-sample-images")
    # what is empty in a store says nothing: it is what is committed
    inner = [path for path in everything if path.is_dir() and ".zarr/" not in f"{path}/"]
    empty = [path for path in inner if not any(path.iterdir())]
    return empty + [path for path in everything if path.name.endswith(names)]


def check_told(ended: dict, disk: Path) -> None:
    (line,) = ended["err"].splitlines()
    assert line.startswith(f"fx: error: No space left on device: {disk}/"), line
    assert "needs " in line, line
    assert line.endswith(
        " are free; make room and run the same command again: it goes on from what is kept"
    ), line
    assert ended["out"].startswith("{"), ended
    assert json.loads(ended["out"]) == {"error": line.removeprefix("fx: error: ")}


def check_rooms(
    command: str,
    small_disk: Disk,
    folder: Path,
    rooms: Iterable[float],
    *,
    checked: bool = True,
) -> set[int]:
    """Run a command with so much room, as shares of what it takes; return how it ended."""
    words, before = COMMANDS[command]
    here = prepared(folder / "here", before)
    disk = begin(small_disk, None)
    # what is measured once is kept: nothing changes the store of this folder any more
    undisturbed = warm_process().run(run_in, here, disk, words, checked)
    assert undisturbed.answer["status"] == 0, undisturbed.answer
    assert undisturbed.answer["out"].startswith("{"), undisturbed.answer
    expected, files = without_times(json.loads(undisturbed.answer["out"])), files_on(disk)
    taken = shutil.disk_usage(disk).used // 1024
    seen = set()
    for share in rooms:
        disk = begin(small_disk, round(share * taken / 4) * 4)
        ended = warm_process().run(run_in, here, disk, words, checked)
        assert not ended.killed, share
        seen.add(ended.answer["status"])
        if ended.answer["status"]:
            check_told(ended.answer, disk)
            assert remains(disk, here) == [], share
            small_disk("300m")
            ended = warm_process().run(run_in, here, disk, words, checked)
        assert ended.answer["status"] == 0, (share, ended.answer)
        assert ended.answer["out"].startswith("{"), (share, ended.answer)
        found = without_times(json.loads(ended.answer["out"]))
        if command != "extract":  # which tells what it has found there
            assert found == expected, share
        assert files_on(disk) == files, share
        assert remains(disk, here) == [], share
    return seen


def test_a_full_disk_is_told_with_the_room_that_it_needs_and_costs_no_result(
    small_disk: Disk, tmp_path: Path
) -> None:
    assert check_rooms("fit-head", small_disk, tmp_path, [0.4]) == {1}


def test_a_training_is_not_begun_without_room_for_all_that_it_writes(
    small_disk: Disk, prepared_once: Path
) -> None:
    disk = begin(small_disk, 105_000)
    words, _ = COMMANDS["finetune"]
    told = warm_process().run(run_in, prepared_once, disk, words).answer
    check_told(told, disk)
    # two states (what trains, its best epoch, its average and two moments) and its small files
    assert " needs 111.5 MB, and 107.5 MB are free; " in told["err"]
    assert files_on(disk) == set()


def test_what_finds_a_full_disk_while_it_trains_leaves_nothing_unfinished(
    small_disk: Disk, tmp_path: Path
) -> None:
    # for the activations and no more
    assert check_rooms("finetune", small_disk, tmp_path, [0.1], checked=False) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_whatever_room_is_left_it_is_told_and_costs_no_result(
    command: str, small_disk: Disk, tmp_path: Path
) -> None:
    rooms = [*np.linspace(0, 1.3, 10)]
    if command in ("finetune", "compare"):
        # for a state, for another beside it, and for the network
        rooms += [3, 5, 7, 12]
    assert check_rooms(command, small_disk, tmp_path, rooms) == {0, 1}


@pytest.mark.slow
def test_whatever_room_is_left_while_it_trains_nothing_unfinished_is_left(
    small_disk: Disk, tmp_path: Path
) -> None:
    rooms = [*np.linspace(0, 0.2, 6), *np.linspace(0.3, 7, 16)]
    assert check_rooms("finetune", small_disk, tmp_path, rooms, checked=False) == {0, 1}


# A disk that is read-only


@pytest.fixture
def read_only(small_disk: Disk) -> Path:
    """A disk that is read-only."""
    disk = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return disk


@pytest.mark.parametrize("command", ["sample", "fit-head", "finetune", "compare"])
def test_a_read_only_disk_is_told_before_anything_is_computed(
    command: str, read_only: Path, prepared_once: Path
) -> None:
    words, _ = COMMANDS[command]
    ended = warm_process().run(run_in, prepared_once, read_only, words).answer
    assert ended["status"] == 1
    (line,) = ended["err"].splitlines()
    assert line.startswith(f"fx: error: cannot write {read_only}/")
    assert line.endswith(": Read-only file system; give a place that can be written to")
    assert remains(prepared_once) == []


# Comparisons


COMPARE = [
    *["compare", "data", "--strategies", "centroid,finetune:0", "--seeds", "1", "--epochs", "1"],
    *["--out", "DISK/runs", *SMALL],
]


def check_compared(ended: dict, disk: Path) -> None:
    check_told(ended, disk)
    # what was measured is kept
    assert list(disk.glob("runs/*/cells/centroid-*/result.json"))
    assert remains(disk) == []


def test_a_full_disk_ends_a_comparison_and_is_no_cell_that_was_skipped(
    small_disk: Disk, prepared_once: Path
) -> None:
    # for the first cells, and not for a training
    disk = begin(small_disk, 200)
    check_compared(warm_process().run(run_in, prepared_once, disk, COMPARE).answer, disk)


@pytest.mark.slow
def test_a_full_disk_is_told_by_the_process_that_measures(
    small_disk: Disk, prepared_once: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared_once)
    disk = begin(small_disk, 200)
    words = [word.replace("DISK", str(disk)) for word in COMPARE]
    check_compared(vars(fx(*words)), disk)
    small_disk("300m")
    again = fx(*words)
    assert again.status == 0, again
    assert json.loads(again.out)["skipped"] == []


# Caches


@pytest.fixture(params=["full", pytest.param("read-only", marks=pytest.mark.slow)])
def useless(request: pytest.FixtureRequest, small_disk: Disk) -> Path:
    """A disk that nothing can be written to."""
    disk = begin(small_disk, 4)
    if request.param == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return disk


def test_a_converted_network_that_cannot_be_kept_is_run(
    useless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(useless))
    preprocessing = Preprocessing(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)
    module = nn.Sequential(nn.Conv2d(3, 400, 32), nn.Flatten()).eval()
    engine = OpenVINOEngine(module, preprocessing, torch.device("cpu"), "fp32", 2, identity="small")
    assert [one.shape for one in engine.run([np.zeros((2, 32, 32, 3), np.uint8)])] == [(2, 400)]
    assert [file for file in useless.rglob("*") if file.is_file()] == [useless / "filler"]


DRAW = """
import logging, sys, tempfile
from pathlib import Path
# the machine's own folders for temporary files are as full
tempfile._candidate_tempdir_list = lambda: [sys.argv[2]]
from heads.plots import new_figure, save_png
figure = new_figure(Path(sys.argv[1]), figsize=(2, 2))
figure.add_subplot().set_title("$x^2$")
save_png(figure, Path(sys.argv[1]) / "figure.png", dpi=50)
"""


def test_figures_are_drawn_where_matplotlib_can_keep_nothing(useless: Path, tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    drawn = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path / "drawn"), str(useless)],
        env={**os.environ, "HOME": str(useless), "TMPDIR": str(useless)},
        capture_output=True,
        text=True,
    )
    assert (drawn.returncode, drawn.stderr) == (0, "")
    (file,) = (tmp_path / "drawn").iterdir()
    assert file.read_bytes().startswith(b"\x89PNG")


TRACE = """
import sys, tempfile
tempfile._candidate_tempdir_list = lambda: [sys.argv[1]]
from extract.backbones import backbone_info
from finetune.blocks import find_blocks
backbone, module = backbone_info("small_cnn")
print(len(find_blocks(module, backbone.size)))
"""


@pytest.mark.slow
def test_networks_are_traced_where_no_temporary_folder_can_be_written_to(useless: Path) -> None:
    traced = subprocess.run(
        [sys.executable, "-c", TRACE, str(useless)], capture_output=True, text=True
    )
    assert (traced.stdout, traced.stderr) == ("4\n", "")


def test_a_quantised_network_without_room_for_temporary_files_is_told(small_disk: Disk) -> None:
    from openvino import opset13

    weights = opset13.constant(np.ones((1, 500_000), np.float32))
    given = opset13.parameter([1, 500_000], np.float32)
    model = openvino.Model([opset13.multiply(given, weights)], [given])
    for room in (4, 1000, 1952, 1956):
        disk = begin(small_disk, room)
        with pytest.raises(NoRoom, match=rf"{disk} needs 2\.0 MB, and .* are free"):
            save_network(model, disk / "network.xml")
    save_network(model, begin(small_disk, None) / "network.xml")


# Downloads


def url_of(file: Path) -> str:
    """What torch.hub downloads a file from as if it were elsewhere."""
    torch.save({"weight": torch.zeros(100_000)}, file)
    return file.as_uri()


@pytest.mark.parametrize("size", [0, 400_000])
def test_a_download_without_room_is_told_and_leaves_nothing(
    size: int, small_disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = url_of(tmp_path / "network.pth")
    for room in (0, 8, 100, 392):
        disk = begin(small_disk, room)
        monkeypatch.setenv("TORCH_HOME", str(disk))
        with pytest.raises(NoRoom, match=f"{cached_url(url)} needs "):
            fetch_url(url, backbone="network", size=size)
        assert files_on(disk) == set()
        assert remains(disk / "hub" / "checkpoints") == []
    begin(small_disk, None)
    assert (
        fetch_url(url, backbone="network", size=size).read_bytes()
        == (tmp_path / "network.pth").read_bytes()
    )


class Downloading:
    """A data set of torchvision's, as it is while its second file is downloaded to a full disk."""

    def __init__(self, root: str, download: bool) -> None:
        folder = Path(root) / "small"
        folder.mkdir(parents=True)
        (folder / "first").write_bytes(bytes(10_000))
        (folder / "second").write_bytes(bytes(100_000))


def test_a_sample_whose_download_has_no_room_leaves_no_half_of_it(
    small_disk: Disk, tmp_path: Path, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Downloading)
    disk = begin(small_disk, 48)
    monkeypatch.setenv("TORCH_HOME", str(disk))
    (disk / "datasets").mkdir()
    (disk / "datasets" / "other").write_bytes(b"of somebody")
    said = fx("sample", "cifar10", tmp_path / "data")
    assert said.status == 1
    (line,) = said.err.splitlines()
    place = f"{disk}/datasets"
    assert line.startswith(f"fx: error: No space left on device: {place} needs more, and ")
    assert files_on(disk) == {"datasets/other"}


def test_weights_from_a_hub_without_room_are_told(
    small_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    disk = begin(small_disk, 48)

    def download(repository: str, name: str) -> str:
        (disk / name).write_bytes(bytes(100_000))
        return name

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(huggingface_hub.get_session(), "head", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(disk))
    with pytest.raises(NoRoom, match=f"{disk} needs 100.0 KB, and "):
        fetch_from_hub("timm/small", ["model.safetensors"], backbone="small", size=100_000)


# What else writes


def test_half_a_sample_is_no_images(small_disk: Disk, fx: Fx) -> None:
    disk = begin(small_disk, 1000)
    said = fx("sample", "digits", disk / "digits", "--json")
    check_told({"out": said.out, "err": said.err}, disk)
    assert "digits needs 7.4 MB, and 1.0 MB are free" in said.err
    assert list((disk / "digits").iterdir()) == [disk / "digits" / ".fx-sample"]
    assert (disk / "digits" / ".fx-sample").read_text() == "digits unfinished"
    said = fx("extract", disk / "digits", "--store", disk / "f.zarr")
    assert "no images below" in said.err
    small_disk("20m")
    assert "1797 images of 10 classes" in fx("sample", "digits", disk / "digits").out


@pytest.mark.parametrize("there", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_output_to_a_full_disk_is_told(there: bool, small_disk: Disk, tmp_path: Path) -> None:
    disk = begin(small_disk, 0)
    place = tmp_path / "digits" if there else disk / "digits"
    place.mkdir()
    if there:
        # a sample that is finished
        (place / ".fx-sample").write_text("digits")
    with (disk / "answer.json").open("w") as file:
        words = [sys.executable, "-m", "fx", "sample", "digits", str(place), "--json"]
        said = subprocess.run(words, stdout=file, stderr=subprocess.PIPE, text=True)
    assert said.returncode == 1
    (line,) = said.stderr.splitlines()
    needing = f"{disk}/answer.json needs more" if there else f"{place}/.fx-sample needs 17 bytes"
    assert line.startswith(f"fx: error: No space left on device: {needing}, and 0 bytes are free")


def test_a_full_disk_that_nobody_named_is_looked_for(
    small_disk: Disk, fx: Fx, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = begin(small_disk, 8)

    def nowhere(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fx.stages.samples.write_sample", nowhere)
    said = fx("sample", "digits", disk / "digits")
    assert said.err == (
        f"fx: error: No space left on device; the least is free on the disk of {disk}, 8.2 KB; "
        "make room and run the same command again: it goes on from what is kept\n"
    )


def test_a_tracker_on_a_full_disk_prints_no_traceback(
    small_disk: Disk, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = begin(small_disk, 8)
    device = torch.device("cpu")
    accelerator = make_accelerator(device, FinetuneSettings(), log_to="tensorboard", directory=disk)

    def log() -> None:
        for step in range(1000):
            accelerator.log({"loss": 1.0}, step=step)

    with pytest.raises(NoRoom, match=f"{disk} needs "), disk_full_as_fx_error(disk):
        log()
    assert capfd.readouterr().err == ""


# Files


def test_a_file_that_has_no_room_leaves_the_old_one_and_nothing_else(small_disk: Disk) -> None:
    disk = begin(small_disk, 12)
    write_whole(disk / "file", b"old")
    said = f"{disk}/file needs 20.0 KB, and 8.2 KB are free; make room"
    with pytest.raises(NoRoom, match=said):
        write_whole(disk / "file", bytes(20_000))
    with pytest.raises(NoRoom, match=rf"{disk}/a/b/c needs 20\.0 KB"):
        write_whole(disk / "a" / "b" / "c", bytes(20_000))
    assert (disk / "file").read_bytes() == b"old"
    assert sorted(disk.iterdir()) == [disk / "file", disk / "filler"]


def test_a_disk_without_inodes_is_told(small_disk: Disk) -> None:
    disk = small_disk("1m,nr_inodes=3")
    write_whole(disk / "first", b"")
    write_whole(disk / "second", b"")
    with pytest.raises(NoRoom, match="is one file more than fit on that disk"):
        write_whole(disk / "third", b"")


def test_a_limit_to_a_file_is_told(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(NoRoom, match=rf"File too large: {tmp_path}/file needs 20\.0 KB; "):
            write_whole(tmp_path / "file", bytes(20_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_told_and_his_images_are_not_taken_for_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "runs" / "head.json"
    for named in (file, file.with_name("head.json.partial"), file.parent, None):
        said = "cannot write .*: Permission denied; give a place"
        with pytest.raises(CannotWrite, match=said), disk_full_as_fx_error(file):
            raise PermissionError(errno.EACCES, "Permission denied", named and str(named))
    with pytest.raises(PermissionError), disk_full_as_fx_error(file):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data" / "a.png"))


def test_room_is_asked_for_where_a_file_is_only_so_long(
    small_disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = begin(small_disk, 3000)
    for has_it in (True, False):
        if not has_it:
            monkeypatch.delattr(os, "posix_fallocate")
        for size, fits in ((2_999_000, True), (3_200_000, False)):
            file = disk / "mapped"
            with file.open("wb") as opened:
                opened.write(b"begins")
                opened.truncate(size)
            if fits:
                reserve(file)
                assert shutil.disk_usage(disk).free < 100_000
                assert file.read_bytes() == b"begins" + bytes(size - 6)
            else:
                with pytest.raises(OSError, match="No space left"):
                    reserve(file)
            file.unlink()


def test_a_file_in_the_place_of_a_folder_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match=f"{tmp_path}/file is no folder"):
        check_room(tmp_path / "file" / "runs", 0)
