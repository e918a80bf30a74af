"""Images and commands for the tests: real small images, and fx run as its user runs it."""

import copy
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from extract.backbones import Backbone, load_backbone
from extract.engines import make_engine
from extract.extraction import extract
from extract.files import place
from extract.images import Snapshot, find_images
from extract.images import workers as readers
from extract.store import FeatureStore
from finetune.finetuning import FinetuneResult, TrainingData, finetune
from finetune.settings import FinetuneSettings
from finetune.split import Resources

CHROMIUM = Path("/usr/bin/chromium")
SHARED = Path(__file__).parents[2] / "shared" / "data"

# tests take from each other's modules, whatever their folders
sys.path += sorted({str(file.parent) for file in Path(__file__).parent.rglob("test_*.py")})

# workers run beside each other, and more threads than cores would wait for each other; the
# environment is for the commands that tests start
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those that are for them: their results are those of CPUs."""
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@dataclass
class Said:
    """What a command answered."""

    status: int
    out: str
    err: str


@pytest.fixture
def fx(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run the command in this process: fx("extract", "data") is `fx extract data`."""
    from fx.commands.app import main

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["fx", *(str(word) for word in words)])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        said = capsys.readouterr()
        return Said(status, said.out, said.err)

    return run


def answered(fx: Callable[..., Said], *words: object) -> dict:
    """Run a command that is to succeed; give the JSON object that it prints."""
    said = fx(*words, "--json")
    assert said.status == 0, said.err
    return json.loads(said.out)


def make_image(colour: int, seed: int, size: int = 48) -> Image.Image:
    """Make an image of a class: one channel is bright, with noise of its own."""
    noise = np.random.default_rng(seed).integers(0, 90, (size, size, 3))
    noise[..., colour % 3] += 120
    stripe = 4 + 6 * (seed % 6)
    noise[stripe : stripe + 4] = 20 * colour
    return Image.fromarray(noise.astype(np.uint8))


def write_classes(root: Path, per_class: int = 8, classes: tuple[str, ...] = ("a", "b")) -> Path:
    """Write class folders of PNG files, no two alike."""
    for colour, label in enumerate(classes):
        folder = root / label
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            make_image(colour, 1000 * colour + number).save(folder / f"{number:03d}.png")
    return root


def write_splits(
    root: Path, per_class: int = 8, tests: int = 5, classes: tuple[str, ...] = ("a", "b")
) -> Path:
    """Write folders train and test of class folders: a comparison then needs no outer folds."""
    for split, count, first in (("train", per_class, 0), ("test", tests, 500)):
        for colour, label in enumerate(classes):
            folder = root / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(first, first + count):
                make_image(colour, 1000 * colour + number).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of eight images."""
    return write_classes(tmp_path / "data")


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have images read by processes, where they can be."""
    monkeypatch.setattr(readers, "FEW_CORES", 0)
    monkeypatch.setattr(readers, "FEW_IMAGES", 0)


def upload(folder: Path, where: str) -> str:
    """Copy a folder, or a file, to object storage; give the place."""
    files = [folder] if folder.is_file() else [one for one in folder.rglob("*") if one.is_file()]
    for file in files:
        (place(where) / file.relative_to(folder.parent).as_posix()).write_bytes(file.read_bytes())
    return f"{where}/{folder.name}"


@pytest.fixture(scope="session")
def photos() -> Path:
    """The shared folder of 200 photographs, named by WordNet id."""
    if not (SHARED / "photos").exists():
        pytest.skip("the shared photographs are not here")
    return SHARED / "photos"


@pytest.fixture(scope="session")
def cifar4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared CIFAR-10 classes, unpacked."""
    archive = SHARED / "cifar4.tar.gz"
    if not archive.exists():
        pytest.skip("the shared CIFAR-10 classes are not here")
    root = tmp_path_factory.mktemp("cifar4")
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")
    return root / "cifar4"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of the size that it is called with; called again, its size is changed."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size: str) -> Path:
        options = f"size={size}" + (",remount" if os.path.ismount(disk) else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("a small disk cannot be mounted here (that takes root)")
        return disk

    yield mount
    if os.path.ismount(disk):
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Any]:
    """A local S3 server."""
    from s3_server import S3Server

    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, which the environment gives access to."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server.new_bucket()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=str(CHROMIUM), args=arguments)
        yield chromium
        chromium.close()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def calibrate_batch_norm(module: nn.Module, images: torch.Tensor) -> None:
    """Give a random network batch-norm statistics of real images.

    Without them it gives nearly the same vector for every image, and proves nothing.
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
    module.train()
    with torch.no_grad():
        module(images)
    module.eval()


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 24 images, for what is fine-tuned."""
    return write_classes(tmp_path_factory.mktemp("images"), per_class=24, classes=("a", "b", "c"))


@pytest.fixture(scope="session")
def backbone() -> Backbone:
    """A real network that is quick: efficientnet_lite0 at 32 pixels."""
    return load_backbone("efficientnet_lite0", size=32)


@pytest.fixture(scope="session")
def store(
    images: Path, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> FeatureStore:
    """The features of `images`."""
    store = FeatureStore.create(tmp_path_factory.mktemp("store") / "f.zarr")
    engine = make_engine(backbone.module, backbone.preprocessing, device="cpu")
    extract(find_images(images), backbone=backbone, engine=engine, store=store)
    return store


def training_data(store: FeatureStore) -> TrainingData:
    """The images of the last snapshot; validation rows are set aside by who trains."""
    snapshot = Snapshot.from_parquet(*store.read_snapshot())
    root, fingerprint = Path(snapshot.root), snapshot.fingerprint
    return TrainingData(root, snapshot.split("train"), [], snapshot.split("test"), fingerprint)


def finetuned(
    backbone: Backbone,
    store: FeatureStore,
    directory: Path,
    *,
    device: str = "cpu",
    cache_limit: int | None = None,
    log_to: str | None = None,
    data: TrainingData | None = None,
    with_extras: bool = True,
    **settings: object,
) -> FinetuneResult:
    """Fine-tune a copy of a backbone for two epochs without flips, or as the settings say."""
    cache = directory / "cache"
    return finetune(
        replace(backbone, module=copy.deepcopy(backbone.module)),
        data or training_data(store),
        None if settings.get("from_scratch") else store.last_extracted().features,
        settings=FinetuneSettings(**{"epochs": 2, "augment": "none", **settings}),
        directory=directory,
        resources=Resources(torch.device(device), cache, cache_limit, log_to=log_to),
        with_extras=with_extras,
    )
