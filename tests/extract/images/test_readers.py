"""Images read by processes are those read by threads, and no process outlives its work."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Said, encoded, make_image, write_classes

from extract.backbones import Backbone
from extract.engines import make_engine
from extract.errors import FxError
from extract.extraction import extract, take_snapshot
from extract.images import Preprocessing, decode, decoding_memory, find_images, load_images
from extract.images import loader as reading
from extract.images import workers as readers
from extract.images.entries import LoadedImage
from extract.images.near_duplicates import perceptual_hash
from extract.store import FeatureStore

SMALL = Preprocessing(32, 36, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="images are read by threads here"),
    pytest.mark.timeout(120),
]


def children_of(process: int) -> set[int]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return set(map(int, listed.split()))


def wait_for_the_end_of(processes: set[int]) -> None:
    deadline = time.monotonic() + 5
    while any(alive(process) for process in processes):
        assert time.monotonic() < deadline, "a process goes on"
        time.sleep(0.01)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def content(loaded: LoadedImage) -> tuple[object, ...]:
    pixels, hashed = loaded.pixels, loaded.perceptual
    return (
        loaded.row,
        None if pixels is None else (pixels.shape, pixels.tobytes()),
        None if hashed is None else hashed.tobytes(),
    )


@pytest.mark.parametrize("crops", [1, 10])
def test_processes_read_what_threads_read_in_the_same_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, many_cores: None, crops: int
) -> None:
    # more than are read ahead
    write_classes(folder, per_class=70, classes=("c", "d"))
    monkeypatch.setattr("extract.images.loader.BYTES_AHEAD", 1)
    (folder / "a" / "bad.png").write_bytes(b"no image")
    (folder / "b" / "empty.png").touch()
    (folder / "b" / "copy.png").write_bytes((folder / "a" / "000.png").read_bytes())
    source = find_images(folder)
    others = children_of(os.getpid())
    # the threads of a library do not come along with a fork
    torch.set_num_threads(2)
    try:
        torch.rand(2000, 2000) @ torch.rand(2000, 2000)
        found = [content(one) for one in load_images(source, SMALL, crops=crops, hashed=True)]
    finally:
        torch.set_num_threads(1)
    assert children_of(os.getpid()) <= others
    with monkeypatch.context() as patch:
        patch.setattr(readers, "FEW_CORES", 10_000)
        expected = list(load_images(source, SMALL, crops=crops, hashed=True))
    assert found == [content(one) for one in expected]
    for one in expected:
        assert (one.pixels is None) == (one.perceptual is None) == (not one.row.readable)
        if one.pixels is not None and one.perceptual is not None:
            np.testing.assert_array_equal(one.perceptual, perceptual_hash(one.pixels[0]))


def test_who_stops_looking_leaves_no_process(folder: Path, many_cores: None) -> None:
    others = children_of(os.getpid())
    looking = load_images(find_images(folder), SMALL)
    next(looking)
    assert children_of(os.getpid()) - others
    looking.close()
    assert children_of(os.getpid()) <= others


def test_a_process_that_is_killed_is_told_in_one_line_and_the_rest_is_kept(
    folder: Path, fx, many_cores: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ("extract", folder, "--store", tmp_path / "f.zarr", "--size", 32)
    command += ("--engine", "torch", "--batch-size", 4)
    unlucky = (folder / "b" / "007.png").read_bytes()
    read_pixels = reading.read_pixels_and_size

    def killed(data: bytes, *arguments: object) -> object:
        if data == unlucky:
            # as the system does where memory runs out
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return read_pixels(data, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_pixels_and_size", killed)
        patch.setattr(readers, "CHUNK_SIZE", 1)
        said: Said = fx(*command)
    assert said.status == 1
    (line,) = said.err.splitlines()
    assert line.startswith("fx: error: a process that reads images was killed; ")
    kept = len(FeatureStore(tmp_path / "f.zarr").last_extracted().rows)
    assert kept >= 8
    again = fx(*command)
    assert again.status == 0
    assert f"{16 - kept} computed" in again.out


EXTRACTING = """
import sys, time
from pathlib import Path
from extract.images import loader, workers
workers.FEW_CORES = workers.FEW_IMAGES = 0
read_pixels = loader.read_pixels_and_size
begun = Path(sys.argv[1])
def slow(*arguments):
    begun.touch()
    time.sleep(0.5)
    return read_pixels(*arguments)
loader.read_pixels_and_size = slow
sys.argv = ["fx", *sys.argv[2:]]
from fx.commands.app import main
main()
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_processes_end_with_the_one_that_they_read_for(
    folder: Path, tmp_path: Path, by: signal.Signals
) -> None:
    begun, store = tmp_path / "begun", tmp_path / "f.zarr"
    words = ["extract", folder, "--store", store, "--size", "32", "--engine", "torch"]
    command = [sys.executable, "-c", EXTRACTING, str(begun), *map(str, words)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not begun.exists():
        assert process.poll() is None
        time.sleep(0.01)
    theirs = children_of(process.pid)
    assert theirs
    if by is signal.SIGINT:  # as a terminal does it
        os.killpg(process.pid, by)
    else:
        os.kill(process.pid, by)
    _, said = process.communicate(timeout=30)
    assert "Traceback" not in said
    wait_for_the_end_of(theirs)
    with FeatureStore(store).lock():
        pass


def test_a_process_that_is_killed_while_nobody_waits_is_told_too(
    folder: Path, many_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("extract.images.loader.BYTES_AHEAD", 1)
    monkeypatch.setattr(readers, "MAX_WORKERS", 2)
    others = children_of(os.getpid())
    looking = load_images(find_images(write_classes(folder, per_class=70)), SMALL)
    next(looking)
    killed = children_of(os.getpid()) - others
    for process in killed:
        os.kill(process, signal.SIGKILL)
    wait_for_the_end_of(killed)
    time.sleep(0.5)
    with pytest.raises(FxError, match="a process that reads images was killed"):
        list(looking)


def test_an_exception_that_is_kept_keeps_no_lock(
    folder: Path, tmp_path: Path, backbone: Backbone, many_cores: None
) -> None:
    engine = make_engine(backbone.module, backbone.preprocessing, device="cpu")
    store = FeatureStore.create(tmp_path / "f.zarr")

    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    def fill() -> None:
        extract(find_images(folder), backbone=backbone, engine=engine, store=store, progress=full)

    def look_only() -> None:
        pre = backbone.preprocessing
        take_snapshot(find_images(folder), preprocessing=pre, store=store, progress=full)

    kept = []
    for work in (fill, look_only):
        try:
            work()
        except FxError as error:  # with all frames of its traceback, as a notebook has it
            kept.append(error)
        with store.lock():
            pass
    assert len(kept) == 2


def test_images_share_the_memory_whoever_decodes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = decoding_memory
    for name in ("_turn", "_parts"):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 4 * 4 * 48 * 48)
    monkeypatch.setattr(module, "PARTS", 4)
    parts = threading.Semaphore(4)
    module.share_memory(threading.Lock(), parts)
    small, large, huge = (encoded(make_image(0, 0, size)) for size in (48, 49, 200))
    for _ in range(3):
        parts.acquire()
    assert decode(small).size == (48, 48)
    for data in (large, huge):
        other = threading.Thread(target=decode, args=(data,))
        other.start()
        other.join(0.3)
        assert other.is_alive()
        for _ in range(3):
            parts.release()
        other.join(30)
        assert not other.is_alive()
        for _ in range(3):
            parts.acquire()
