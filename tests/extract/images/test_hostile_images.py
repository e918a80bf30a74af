"""Hostile and odd images: each has its row or its reason, and costs no other image anything."""

import json
import os
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import Said, encoded, write_classes
from numpy.typing import NDArray
from PIL import Image

from extract.errors import FxError
from extract.images import (
    ImageSource,
    Preprocessing,
    Reading,
    Snapshot,
    find_images,
    load_images,
)
from extract.images import loader as reading
from extract.store import FeatureStore

pytestmark = pytest.mark.timeout(120)

Fx = Callable[..., Said]
Maker = bytes | Callable[[Path], object]  # what is in the file, or what makes it
Features = dict[str, NDArray[np.float32]]

SMALL = Preprocessing(32, 36, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
FINE = {"kind": "JPEG", "quality": 95, "subsampling": 0}


def scene(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """Draw smooth colours that look different when turned or mirrored."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)


def laid(orientation: int) -> Image.Image:
    """Lay PLAIN down as a camera does that is held so (EXIF 2.32, tag 274)."""
    flip = Image.Transpose
    turns = [flip.FLIP_LEFT_RIGHT, flip.ROTATE_180, flip.FLIP_TOP_BOTTOM, flip.TRANSPOSE]
    turns += [flip.ROTATE_90, flip.TRANSVERSE, flip.ROTATE_270]
    return PLAIN.transpose(turns[orientation - 2]) if orientation > 1 else PLAIN


def with_exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    return encoded(laid(orientation), exif=tags, **FINE)


def on_white(palette: Image.Image, colours: int) -> Image.Image:
    """Make the first colours of a palette white."""
    pixels = np.array(palette.convert("RGB"))
    pixels[np.asarray(palette) < colours] = 255
    return Image.fromarray(pixels)


PLAIN = scene(0)
GREY, PALETTE = PLAIN.convert("L"), PLAIN.quantize(32)
CENTRE = scene(5, 400, 20)
STRIP = Image.new("RGB", (20_000, 20))
STRIP.paste(CENTRE, (9_800, 0))
FRAMES = [scene(seed) for seed in range(1, 4)]
ANIMATED = {"save_all": True, "append_images": FRAMES[1:]}
JPG, PNG, GIF = encoded(PLAIN, **FINE), encoded(PLAIN), encoded(PALETTE, "GIF")
KINDS = {"jpg": JPG, "png": PNG, "gif": GIF} | {
    kind: encoded(PLAIN, name) for kind, name in (("webp", "WEBP"), ("bmp", "BMP"), ("tif", "TIFF"))
}


def flipped(data: bytes, seed: int) -> bytes:
    """Flip eight bits anywhere behind the first bytes, by which a format is known."""
    damaged = bytearray(data)
    rng = np.random.default_rng(seed)
    for place, bit in zip(rng.integers(16, len(data), 8), rng.integers(0, 8, 8), strict=True):
        damaged[place] ^= 1 << bit
    return bytes(damaged)


def patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    return data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]


def jpg(width: int, height: int) -> bytes:
    return patched(JPG, JPG.index(b"\xff\xc0") + 5, ">HH", height, width)


def bmp(width: int, height: int) -> bytes:
    return patched(KINDS["bmp"], 18, "<ii", width, height)


def tiff(*changes: tuple[int, int, int], following: int = 0) -> bytes:
    """Build a grey TIFF of 4 by 4 pixels with other tags: number, count of values, value."""
    plain = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 4, 279: 16}
    tags = {tag: (1, value) for tag, value in plain.items()}
    tags |= {tag: (count, value) for tag, count, value in changes}
    directory = [struct.pack("<HHII", tag, 4, *tags[tag]) for tag in sorted(tags)]
    head = b"II*\0" + struct.pack("<I16sH", 24, bytes(range(0, 256, 16)), len(tags))
    return head + b"".join(directory) + struct.pack("<I", following)


def png(width: int, height: int, depth: int, body: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + PNG[-12:]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(name: bytes, body: bytes) -> bytes:
    """Put a chunk behind the header of PLAIN."""
    return PNG[:33] + chunk(name, body) + PNG[33:]


def one_colour_webp(width: int, height: int) -> bytes:
    """Build a lossless WebP of any size in 34 bytes: no pixel takes a bit."""
    flags = (1, 0, 0, 0, 0, 0, 0)  # alpha, version (3), no transform, no cache, no meta codes
    bits = [n >> i & 1 for n in (width - 1, height - 1) for i in range(14)] + list(flags)
    for value in (30, 200, 90, 255):  # green, red, blue, alpha: codes of one symbol of 8 bits
        bits += [1, 0, 1, *(value >> i & 1 for i in range(8))]
    bits += [1, 0, 0, 0]  # distances
    bits += [0] * (-len(bits) % 8)
    body = b"\x2f" + np.packbits(bits, bitorder="little").tobytes()
    body += bytes(len(body) % 2)
    chunk_ = b"VP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk_)) + b"WEBP" + chunk_


def many_frames(count: int) -> bytes:
    frame = GIF[GIF.index(b",", 13 + 3 * 32) : -1]  # behind the header and the palette
    return GIF[:-1] + frame * (count - 1) + GIF[-1:]


def many_scans(count: int, side: int = 1_500) -> bytes:
    progressive = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    return progressive[:-2] + scan * count + progressive[-2:]


GOOD = {
    "plain.png": PNG,
    "turned.png": encoded(laid(6)),
    "grey.png": encoded(GREY),
    "palette.png": encoded(PALETTE),
    "on white.png": encoded(on_white(PALETTE, 8)),
    "frame.png": encoded(FRAMES[0]),
    "colour.png": encoded(Image.new("RGB", (40, 40), (200, 30, 90))),
    "centre.png": encoded(CENTRE),
}
CLEAR = bytes(8) + b"\xff" * 24  # the first eight colours of a palette
ROW, EITHER = "row", "either"
CUT = "(?i)truncated|decoder|next frame|header is damaged"
NO_IMAGE = "^not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF or HEIC image$"
OTHER = "^(JPEG|TIFF) of a kind that is not read, or its header is damaged$"
ZIPPED = b"x\0\0" + zlib.compress(bytes(2**26))
WIDE = Image.fromarray(np.asarray(GREY, dtype=np.uint16) * 256 + 77)
NAMES = ["two  spaces .png", "🦊 семь 七.png", "two\nlines.png", "\x1b[2Jcleared\r.png"]
NAMES += ["-rf '\"$(ls)\\.png", "é" * 123 + ".png", os.fsdecode(b"no \xff UTF-8.png")]

# Name → how it is made, and what is to become of it: a row; a row with the features of a good
# image (=) or nearly those (~); or a reason, as a regular expression.
HOSTILE: dict[str, tuple[Maker, str]] = {
    **{
        f"cut at {n}0 %.{kind}": (data[: n * len(data) // 10], CUT)
        for kind, data in KINDS.items()
        for n in range(1, 10)
    },
    **{
        f"flipped {n}.{kind}": (flipped(data, n), EITHER)
        for kind, data in KINDS.items()
        for n in range(3)
    },
    # no images
    "empty.jpg": (b"", "^empty file$"),
    "zeros.png": (bytes(1_000), NO_IMAGE),
    "text.jpg": (b"label,path\ncat,1.png\n", NO_IMAGE),
    "page.png": (b"<!doctype html><title>404 Not Found</title>", NO_IMAGE),
    "three bytes.jpg": (b"\xff\xd8\xff", OTHER),
    # bombs, and what declares more than there is
    "bomb.png": (png(20_000, 20_000, 1, b""), "^too large: 20,000 by 20,000 pixels take 1,144 MB"),
    "bomb.jpg": (jpg(65_500, 65_500), "^too large"),
    "bomb.gif": (patched(GIF, 6, "<HH", 65_535, 65_535), "^too large"),
    "bomb.tif": (tiff((256, 1, 2**31 - 1)), "^too large"),
    **{
        f"bomb {n}.webp": (one_colour_webp(13_000, 13_000 - n), "^too large: 13,000 by ")
        for n in range(4)
    },
    "bomb of a tile.tif": (tiff((322, 1, 60_000), (323, 1, 60_000), (324, 1, 8)), "^too large: t"),
    "negative.bmp": (bmp(-64, 48), "^too large"),
    "no data.bmp": (bmp(13_000, 13_000), CUT),
    "no data.jpg": (jpg(13_000, 13_000), CUT),
    "needle.bmp": (bmp(1, 150_000_000), "^too large"),
    "many scans.jpg": (many_scans(1_000), "scans"),
    "many scans of many pixels.jpg": (many_scans(300, 5_000), "more than 171 scans"),
    "profile bomb.png": (png_with(b"iCCP", ZIPPED), "= plain.png"),
    "text bomb.png": (png_with(b"zTXt", ZIPPED), "= plain.png"),
    "more than its pixels.png": (png(4, 4, 8, bytes(2**26)), ROW),
    "pages in a circle.tif": (tiff(following=24), ROW),
    "2^31 values.tif": (tiff((700, 2**31, 8)), ROW),
    "2^31 strips.tif": (tiff((273, 2**31, 8), (279, 2**31, 8)), OTHER),
    "2^31 tags.tif": (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**31), OTHER),
    # odd, and good
    "one pixel.png": (encoded(Image.new("RGB", (1, 1), (200, 30, 90))), "= colour.png"),
    "strip.png": (encoded(STRIP), "= centre.png"),
    "cmyk.tif": (encoded(PLAIN.convert("CMYK"), "TIFF"), "= plain.png"),
    "cmyk.jpg": (encoded(PLAIN.convert("CMYK"), **FINE), "~ plain.png"),
    "16 bits.png": (encoded(WIDE), "= grey.png"),
    "16 bits.tif": (encoded(WIDE, "TIFF"), "= grey.png"),
    "clear colours.png": (encoded(PALETTE, transparency=CLEAR), "= on white.png"),
    "animated.png": (encoded(FRAMES[0], **ANIMATED), "= frame.png"),
    "animated.webp": (encoded(FRAMES[0], "WEBP", lossless=True, **ANIMATED), "= frame.png"),
    "pages.tif": (encoded(FRAMES[0], "TIFF", **ANIMATED), "= frame.png"),
    "10,000 frames.gif": (many_frames(10_000), "= palette.png"),
    "a png.jpg": (png_with(b"tEXt", b"Comment\0no JPEG"), "= plain.png"),
    "a jpeg.png": (JPG, "~ plain.png"),
    **{f"orientation {n}.jpg": (with_exif(n), "~ plain.png") for n in range(1, 9)},
    # names
    **{name: (encoded(scene(9 + n)), ROW) for n, name in enumerate(NAMES)},
    # no files, or not for long
    "link to nothing.png": (lambda path: path.symlink_to("nowhere"), "^link to nothing$"),
    "link to itself.png": (lambda path: path.symlink_to(path), "Too many levels"),
    "link to its folder": (lambda path: path.symlink_to(".."), "^link to a folder that it lies in"),
    "link to an image.png": (lambda path: path.symlink_to("../good/plain.png"), "= plain.png"),
    "pipe.png": (os.mkfifo, "^not a regular file$"),
    "vanishing.png": (encoded(scene(8)), "^No such file"),
}
SHOWN = {name: rule for name, (_, rule) in HOSTILE.items() if rule[0] in "=~"}


@dataclass
class Run:
    """What was said of all images together, their features, and those of the good ones alone."""

    said: Said
    features: Features
    clean: Features

    def reasons(self, path: str) -> list[str]:
        return [r["reason"] for r in json.loads(self.said.out)["failed"] if r["path"] == path]


def make(maker: Maker, path: Path) -> None:
    path.write_bytes(maker) if isinstance(maker, bytes) else maker(path)


def distance(features: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(features - reference) / np.linalg.norm(reference))


def stored(path: Path) -> Features:
    """Read back the features of every readable image, by path."""
    store = FeatureStore(path)
    rows = [row for row in Snapshot.from_parquet(*store.read_snapshot()).rows if row.readable]
    features = store.last_extracted().features([row.key for row in rows])
    assert len({row.path for row in rows}) == len(rows)
    return {row.path: vector for row, vector in zip(rows, features, strict=True)}


def extract_all(fx: Fx, here: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Extract the good images alone, then with the hostile ones; one vanishes meanwhile."""
    data = write_classes(here / "data")
    odd = {name: maker for name, (maker, _) in HOSTILE.items()}
    for folder, files in (("good", GOOD), ("odd", odd)):
        (data / folder).mkdir()
        for name, maker in files.items():
            make(maker, data / folder / name)
        options = ["--store", here / f"{folder}.zarr", "--size", "32", "--batch-size", "8"]
        said = fx("extract", data, *options, "--json")
        assert said.out, said.err

        def listed(images: Path, reading: Reading) -> ImageSource:
            source = find_images(images, reading)
            (data / "odd" / "vanishing.png").unlink()
            return source

        monkeypatch.setattr("fx.stages.extract.find_images", listed)
    return Run(said, stored(here / "odd.zarr"), stored(here / "good.zarr"))


@pytest.fixture(scope="module")
def kept() -> list[Run | None]:
    return []


@pytest.fixture
def run(
    kept: list[Run | None],
    fx: Fx,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Return the one run that all tests here look at."""
    if not kept:
        kept.append(None)
        kept[0] = extract_all(fx, tmp_path_factory.mktemp("hostile"), monkeypatch)
    if kept[0] is None:
        pytest.fail("the run did not end as it should; the first test that asked for it says how")
    return kept[0]


def test_none_ends_the_run(run: Run) -> None:
    assert run.said.status == 0, run.said.err
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize("name", HOSTILE)
def test_each_has_its_row_or_its_reason(run: Run, name: str) -> None:
    path, rule = f"odd/{name}", HOSTILE[name][1]
    reasons = run.reasons(path)
    assert len(reasons) + (path in run.features) == 1
    if reasons:
        assert rule == EITHER or re.search(rule, reasons[0])
        assert reasons[0].isprintable()
    else:
        assert rule in (ROW, EITHER) or name in SHOWN
        assert np.isfinite(run.features[path]).all()


def test_no_other_image_s_features_change(run: Run) -> None:
    assert len(run.clean) == 16 + len(GOOD)
    assert {path for path in run.features if not path.startswith("odd/")} == set(run.clean)
    for path, vector in run.clean.items():
        assert distance(run.features[path], vector) < 1e-4, path


@pytest.mark.parametrize("name", SHOWN)
def test_an_odd_image_has_the_features_of_what_it_shows(run: Run, name: str) -> None:
    sign, plain = SHOWN[name].split(" ", 1)
    features, expected = run.features[f"odd/{name}"], run.features[f"good/{plain}"]
    assert distance(features, expected) < {"=": 1e-4, "~": 0.15}[sign]


def test_a_turned_image_is_far_from_the_upright_one(run: Run) -> None:
    # or the nearness of the eight orientations would say nothing
    assert distance(run.features["good/turned.png"], run.features["good/plain.png"]) > 0.4


BETWEEN: dict[str, tuple[Maker, str]] = {
    "a folder": (Path.mkdir, "^Is a directory$"),
    "a circle": (lambda path: path.symlink_to(path), "^Too many levels of symbolic links$"),
    "a pipe": (os.mkfifo, "^not a regular file$"),
    "a device": (lambda path: path.symlink_to("/dev/null"), "^not a regular file$"),
    "a terabyte": (lambda path: (path.touch(), os.truncate(path, 2**40)), "^too large"),
}


@pytest.mark.parametrize("readers", ["threads", "processes"])
@pytest.mark.parametrize("what", BETWEEN)
def test_what_a_file_becomes_between_listing_and_reading_costs_it_alone(
    folder: Path, what: str, readers: str, request: pytest.FixtureRequest
) -> None:
    if readers == "processes":
        request.getfixturevalue("many_cores")
    source, file = find_images(folder), folder / "a" / "003.png"
    maker, reason = BETWEEN[what]
    file.unlink()
    make(maker, file)
    # for who waits for a pipe's other end, in a thread that nothing ends
    rescue = threading.Timer(10, lambda: os.close(os.open(file, os.O_RDWR | os.O_NONBLOCK)))
    if what == "a pipe":
        rescue.start()
    try:
        notes = {loaded.row.path: loaded.row.note for loaded in load_images(source, SMALL)}
    finally:
        rescue.cancel()
    assert re.search(reason, notes.pop("a/003.png"))
    assert list(notes.values()) == [""] * 15


def test_a_pipe_in_a_table_is_told_and_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "images.csv").write_text("path,label\npipe.png,a\na/000.png,a\n")
    source = find_images(folder / "images.csv")
    assert source.skipped == (("pipe.png", "not a regular file"),)
    assert [loaded.row.readable for loaded in load_images(source, SMALL)] == [True]


@pytest.mark.parametrize("readers", ["threads", "processes"])
def test_an_image_for_which_memory_does_not_suffice_costs_no_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, readers: str, request: pytest.FixtureRequest
) -> None:
    if readers == "processes":
        request.getfixturevalue("many_cores")
    unlucky, read_pixels = (folder / "a" / "003.png").read_bytes(), reading.read_pixels_and_size

    def scarce(data: bytes, *arguments: object) -> object:
        if data == unlucky:
            raise MemoryError
        return read_pixels(data, *arguments)

    monkeypatch.setattr(reading, "read_pixels_and_size", scarce)
    notes = {loaded.row.path: loaded.row.note for loaded in load_images(find_images(folder), SMALL)}
    assert "memory" in notes.pop("a/003.png")
    assert list(notes.values()) == [""] * 15


WITHOUT_ROOT_S_RIGHTS = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            sys.exit(77)
os.execv(sys.executable, [sys.executable, "-m", "fx", *sys.argv[1:]])
"""


@pytest.mark.skipif(
    os.geteuid() == 0 and sys.platform != "linux", reason="nothing is forbidden to root here"
)
def test_what_may_not_be_read_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "b" / "closed").mkdir()
    for forbidden in ("a/003.png", "b/closed"):
        (folder / forbidden).chmod(0)
    words = ["extract", folder, "--store", tmp_path / "f.zarr", "--size", "32", "--json"]
    command = [sys.executable, "-c", WITHOUT_ROOT_S_RIGHTS, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 77:
        pytest.skip("root's rights cannot be given up here")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["new"] == 15
    assert result["failed"] == [
        {"path": "a/003.png", "reason": "Permission denied"},
        {"path": "b/closed", "reason": "folder cannot be read: Permission denied"},
    ]


def test_a_name_never_breaks_a_line(folder: Path, tmp_path: Path, fx: Fx) -> None:
    names = ["\x1b[2Jcleared.png", "two\nlines.png"]
    for name in names:
        (folder / "b" / name).write_bytes(b"no image")
    (folder / "b").rename(folder / "b\nc")
    words = ["extract", folder, "--size", "32", "--store", tmp_path / "f.zarr"]
    said = fx(*words)
    assert said.status == 0, said.err
    lines = said.out.split("\n")
    assert all(line.isprintable() for line in lines)
    place = lines.index("unreadable: 2")
    for line, name in zip(lines[place + 1 :], names, strict=False):
        shown = name.encode("unicode_escape").decode()
        assert line.startswith(rf"  b\nc/{shown}: not a JPEG")
    strict = fx(*words, "--strict")
    assert strict.status == 1
    (line,) = strict.err.removesuffix("\n").split("\n")
    assert line.isprintable()


LARGE = {
    "grey.png": encoded(Image.new("L", (700, 600), 90)),
    "turned.jpg": encoded(Image.new("RGB", (700, 600), (200, 30, 90)), "JPEG"),
    "small.webp": one_colour_webp(300, 290),
    "large.webp": one_colour_webp(350, 300),
    "small.png": encoded(Image.new("RGB", (590, 590), (20, 130, 90))),
}
TOO_LARGE = {
    "grey.png": "too large: 700 by 600 pixels take 1 MB; the limit is 1 MB as 8-bit RGB",
    "turned.jpg": "too large: 700 by 600 pixels take 1 MB; the limit is 1 MB as 8-bit RGB",
    "large.webp": "too large: 350 by 300 pixels take 1 MB (WEBP counts 4 times); "
    "the limit is 1 MB as 8-bit RGB",
}


@pytest.mark.parametrize("readers", ["threads", "processes"])
def test_what_an_image_may_take_is_an_option(
    tmp_path: Path, fx: Fx, readers: str, request: pytest.FixtureRequest
) -> None:
    if readers == "processes":
        request.getfixturevalue("many_cores")
    (tmp_path / "data").mkdir()
    for name, data in LARGE.items():
        (tmp_path / "data" / name).write_bytes(data)
    words = ["extract", tmp_path / "data", "--size", "32", "--engine", "torch", "--json"]
    little = json.loads(fx(*words, "--store", tmp_path / "a.zarr", "--max-image-mb", 1).out)
    assert {one["path"]: one["reason"] for one in little["failed"]} == TOO_LARGE
    # the same store: what was too large is tried again
    more = json.loads(fx(*words, "--store", tmp_path / "a.zarr", "--max-image-mb", 2).out)
    assert (more["failed"], more["new"], more["reused"]) == ([], 3, 2)


def test_every_command_that_reads_images_lets_in_what_it_is_told_to(
    folder: Path, fx: Fx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[object] = set()
    read_pixels = reading.read_pixels_and_size

    def watched(*arguments: object) -> object:
        asked.add(arguments[3])
        return read_pixels(*arguments)

    monkeypatch.setattr(reading, "read_pixels_and_size", watched)
    monkeypatch.chdir(tmp_path)
    quick = ["--size", "32", "--engine", "torch"]
    assert fx("extract", folder, *quick, "--max-image-mb", 601).status == 0
    assert fx("fit-head", "centroid").status == 0
    (head,) = (tmp_path / "runs").iterdir()
    assert fx("predict", head, folder, *quick[2:], "--max-image-mb", 602).status == 0
    finetuning = ["--epochs", "1", "--augment", "flip", *quick]
    assert fx("finetune", folder, *finetuning, "--max-image-mb", 603).status == 0
    assert asked == {601, 602, 603}


@pytest.mark.parametrize("command", ["advise", "compare", "compare --dry-run"])
def test_what_measures_lets_in_what_it_is_told_to(
    folder: Path, fx: Fx, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def listed(images: Path, reading: Reading) -> ImageSource:
        raise FxError(f"told {reading.max_image_mb}")

    for module in ("extract.images", "fx.comparison.comparison", "fx.comparison.cost"):
        monkeypatch.setattr(f"{module}.find_images", listed)
    name, *options = command.split()
    assert fx(name, folder, *options, "--max-image-mb", 604).err == "fx: error: told 604\n"


MEMORY = """
import io, sys
from pathlib import Path
import torch
from PIL import Image
from extract.images.decoding import UnreadableImage, read_pixels
from extract.images import Preprocessing
from fx.stages.memory import peak_memory_mb, reset_peak_memory
torch.set_num_threads(1)
small = Preprocessing(32, 36, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
for file in [sys.argv[1], *sys.argv[1:]]:
    data = Path(file).read_bytes()
    reset_peak_memory()
    before = peak_memory_mb()
    read_pixels(data, small)
    print(Path(file).name, peak_memory_mb() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux tells it")
def test_an_image_takes_no_more_memory_than_is_said(tmp_path: Path) -> None:
    side = 3_000
    wide = np.arange(side, dtype=np.uint16) * np.ones((side, 1), dtype=np.uint16)
    colours = scene(0, side, side)
    # bytes a pixel
    files = {
        "plain.png": (encoded(colours, compress_level=1), 4),
        "floats.tif": (encoded(Image.fromarray(wide.astype(np.float32)), "TIFF"), 8),
        "one.webp": (one_colour_webp(side, side), 18),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    words = [sys.executable, "-c", MEMORY, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    for line in done.stdout.splitlines():
        name, taken = line.split()
        # and what does not grow with the image
        assert float(taken) < files[name][1] * side**2 / 1e6 + 50, line


WHOLE_COMMAND = """
import atexit, sys
from fx.stages.memory import peak_memory_mb
from fx.commands.app import main
sys.argv[0] = "fx"
try:
    main()
finally:
    print(peak_memory_mb(), file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read as Linux tells it")
def test_bombs_take_no_memory(folder: Path, tmp_path: Path) -> None:
    for n in range(6):
        (folder / "a" / f"bomb {n}.webp").write_bytes(one_colour_webp(13_000, 13_000 - n))
    words = ["extract", folder, "--store", tmp_path / "f.zarr", "--size", "32", "--json"]
    command = [sys.executable, "-c", WHOLE_COMMAND, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["failed"]) == 6
    assert float(done.stderr.splitlines()[-1]) < 1_500
