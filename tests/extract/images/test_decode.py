"""What a file's pixels are, and what is no image."""

import io
import struct
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pillow_heif
import pyarrow as pa
import pytest
import torch
from conftest import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode, functional

from extract.images import Preprocessing, UnreadableImage, decode, image_size, read_pixels
from extract.images.crops import prepare
from extract.images.decoding import is_image, read_pixels_and_size

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data in ../shared")

BICUBIC = Preprocessing(224, 256, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BILINEAR = Preprocessing(224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth random colours with some noise: compresses like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = smooth + rng.integers(-9, 10, (height, width, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: bytes) -> bytes:
    """Build a PNG by hand, for kinds that Pillow does not write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(text[:4], text[4:]) for text in chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(samples: NDArray[np.generic], photometric: int = 1, bits: int | None = None) -> bytes:
    """Build an uncompressed grey TIFF of one strip by hand, little-endian."""
    body = samples.tobytes()
    form = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    height, width = samples.shape
    tags = [
        (256, width),
        (257, height),
        (258, bits or samples.dtype.itemsize * 8),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, height),
        (279, len(body)),
        (339, form),
    ]
    directory = struct.pack("<H", len(tags))
    for tag, value in tags:
        directory += struct.pack("<HHII", tag, 4, 1, value)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory + bytes(4)


# for writing: what is read must not depend on it
pillow_heif.register_heif_opener()
SCENE = scene(45, 31)
WIDE = Image.fromarray(np.asarray(SCENE.convert("L"), np.uint16) * 256 + 77)
PALETTE = SCENE.quantize(32)
FILES = {
    "jpeg": saved(SCENE, "JPEG"),
    "progressive jpeg": saved(SCENE, "JPEG", progressive=True),
    "grey jpeg": saved(SCENE.convert("L"), "JPEG"),
    "cmyk jpeg": saved(SCENE.convert("CMYK"), "JPEG"),
    "mpo": saved(SCENE, "MPO", save_all=True, append_images=[SCENE.rotate(180)]),
    "png": saved(SCENE, "PNG"),
    "palette png": saved(PALETTE, "PNG"),
    "webp": saved(SCENE, "WEBP"),
    "lossless webp": saved(SCENE, "WEBP", lossless=True),
    "bmp": saved(SCENE, "BMP"),
    "1-bit bmp": saved(SCENE.convert("1"), "BMP"),
    "gif": saved(PALETTE, "GIF"),
    "ppm": saved(SCENE, "PPM"),
    "pbm": saved(SCENE.convert("1"), "PPM"),
    "16-bit pgm": saved(WIDE, "PPM"),
    "7-bit pgm": b"P5 45 31 127\n" + bytes(np.asarray(SCENE.convert("L")) // 2),
    "plain ppm": f"P3 45 31 255\n{' '.join(map(str, np.asarray(SCENE).flat))} ".encode(),
    "avif": saved(SCENE, "AVIF"),
    "heic": saved(SCENE, "HEIF"),
    "tiff": saved(SCENE, "TIFF"),
    "lzw tiff": saved(SCENE, "TIFF", compression="tiff_lzw"),
    "deflate tiff": saved(SCENE, "TIFF", compression="tiff_deflate"),
    "jpeg tiff": saved(SCENE, "TIFF", compression="jpeg"),
    "fax tiff": saved(SCENE.convert("1"), "TIFF", compression="group4"),
}


@pytest.mark.parametrize("name", ["png", "lossless webp", "bmp", "tiff", "lzw tiff"])
def test_what_was_saved_without_loss_comes_back(name: str) -> None:
    np.testing.assert_array_equal(pixels_of(FILES[name]), np.asarray(SCENE))


@pytest.mark.parametrize("name", ["jpeg", "progressive jpeg", "mpo", "webp", "jpeg tiff"])
def test_what_was_saved_with_loss_comes_back_nearly(name: str) -> None:
    error = np.abs(pixels_of(FILES[name]).astype(int) - np.asarray(SCENE))
    assert error.mean() < 8


def test_grey_is_repeated_in_three_channels() -> None:
    grey = SCENE.convert("L")
    pixels = pixels_of(saved(grey, "PNG"))
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], np.asarray(grey))


def test_one_bit_is_black_and_white() -> None:
    bits = np.tile([[True, False, False], [False, True, True]], (8, 8))
    for format in ("PNG", "BMP", "TIFF"):
        pixels = pixels_of(saved(Image.fromarray(bits), format))
        np.testing.assert_array_equal(pixels[..., 0], np.where(bits, 255, 0))


def test_what_is_transparent_is_laid_on_white() -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 128)])
    for format in ("PNG", "WEBP", "TIFF"):
        opaque, clear, half = pixels_of(
            saved(image, format, **({"lossless": True} if format == "WEBP" else {}))
        )[0]
        assert tuple(opaque) == (200, 0, 0)
        assert tuple(clear) == (255, 255, 255)
        np.testing.assert_allclose(half, [227, 127, 127], atol=1)


def test_grey_with_alpha_is_laid_on_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(100, 255), (100, 0)])
    np.testing.assert_array_equal(pixels_of(saved(image, "PNG"))[0, :, 0], [100, 255])


def test_grey_that_was_multiplied_by_its_alpha_is_divided_by_it_first() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(50, 128), (100, 255)])
    data = saved(image, "TIFF").replace(
        struct.pack("<HHIH", 338, 3, 1, 2), struct.pack("<HHIH", 338, 3, 1, 1)
    )
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "La"
    np.testing.assert_allclose(pixels_of(data)[0, :, 0], [177, 100], atol=1)


def test_a_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    for data in (
        saved(image, "GIF", transparency=1),
        saved(image, "PNG", transparency=1),
        saved(image, "PNG", transparency=bytes([255, 0])),
    ):
        np.testing.assert_array_equal(pixels_of(data)[0], [[10, 20, 30], [255, 255, 255]])


def test_a_transparent_colour_of_rgb_becomes_white() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    pixels = pixels_of(saved(image, "PNG", transparency=(1, 2, 3)))
    np.testing.assert_array_equal(pixels[0], [[255, 255, 255], [4, 5, 6]])


def test_the_16_bit_colour_key_of_a_png_hides_nothing() -> None:
    row = b"\0" + struct.pack(">6H", 0x0105, 0x0106, 0x0107, 0xAA05, 0xBB06, 0xCC07)
    data = png(2, 1, 16, 2, row, b"tRNS" + struct.pack(">3H", 5, 6, 7))
    np.testing.assert_array_equal(pixels_of(data)[0], [[1, 1, 1], [0xAA, 0xBB, 0xCC]])


def test_adobe_cmyk_is_not_inverted() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = saved(red, "JPEG", quality=95)
    assert b"Adobe" in data  # Pillow writes, as Photoshop does, inverted inks and says so
    np.testing.assert_allclose(pixels_of(data)[8, 8], [255, 0, 0], atol=4)
    np.testing.assert_allclose(pixels_of(saved(red, "TIFF"))[8, 8], [255, 0, 0], atol=1)


def test_lab_becomes_rgb() -> None:
    lab = Image.new("LAB", (8, 8), (255, 128, 128))
    np.testing.assert_allclose(pixels_of(saved(lab, "TIFF"))[4, 4], [255, 255, 255], atol=3)


WIDE = np.array([[0, 255, 256, 32768, 65280, 65535]])
WIDE_IN_8_BITS = [0, 0, 1, 128, 255, 255]


def test_16_bit_grey_is_scaled_and_never_wrapped() -> None:
    image = Image.fromarray(WIDE.astype(np.uint16))
    for data in (saved(image, "PNG"), saved(image, "TIFF"), tiff(WIDE.astype(np.uint16))):
        np.testing.assert_array_equal(pixels_of(data)[0, :, 1], WIDE_IN_8_BITS)


def test_big_endian_16_bit_grey_is_scaled_alike() -> None:
    image = Image.fromarray(WIDE.astype(">u2"))
    np.testing.assert_array_equal(pixels_of(saved(image, "TIFF"))[0, :, 1], WIDE_IN_8_BITS)


def test_16_bit_colour_is_scaled_like_16_bit_grey() -> None:
    row = b"\0" + b"".join(struct.pack(">3H", value, value, 65535) for value in WIDE[0])
    pixels = pixels_of(png(6, 1, 16, 2, row))
    np.testing.assert_array_equal(pixels[0, :, 0], WIDE_IN_8_BITS)
    np.testing.assert_array_equal(pixels[0, :, 2], [255] * 6)


@pytest.mark.parametrize("order", "<>")
def test_planes_of_16_bits_are_what_they_are_in_one(order: str) -> None:
    """As GDAL writes bands; Pillow reads such planes, not compressed, as bytes."""
    planes = (np.moveaxis(np.asarray(SCENE), 2, 0).astype(np.uint16) * 257).astype(f"{order}u2")
    _, height, width = planes.shape
    size, head = planes[0].nbytes, 32
    begins, sizes, bits = ([head + n * size for n in range(3)], [size] * 3, [16] * 3)
    lists = struct.pack(f"{order}9I", *begins, *sizes, *bits)
    at = head + 3 * size
    tags = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height, 284: 2}
    entries = {tag: (1, value) for tag, value in tags.items()}
    entries |= {273: (3, at), 279: (3, at + 12), 258: (3, at + 24)}
    directory = struct.pack(f"{order}H", len(entries))
    for tag in sorted(entries):
        directory += struct.pack(f"{order}HHII", tag, 4, *entries[tag])
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = mark + struct.pack(f"{order}I", at + len(lists))
    data = start.ljust(head, b"\0") + planes.tobytes() + lists + directory + bytes(4)
    np.testing.assert_array_equal(pixels_of(data), SCENE)


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=40))
def test_16_bit_grey_keeps_the_order_of_its_values(values: list[int]) -> None:
    ordered = np.sort(np.array([values], dtype=np.uint16))
    pixels = pixels_of(saved(Image.fromarray(ordered), "PNG"))[0, :, 0].astype(int)
    assert (np.diff(pixels) >= 0).all()


def test_12_bit_grey_uses_the_whole_range() -> None:
    # two samples in three bytes: 0x000 0xFFF 0x800 0x00F
    packed = np.frombuffer(bytes([0x00, 0x0F, 0xFF, 0x80, 0x00, 0x0F]), dtype=np.uint8)
    data = bytearray(tiff(packed.reshape(1, 6), bits=12))
    at = data.index(struct.pack("<HHII", 256, 4, 1, 6))
    data[at : at + 12] = struct.pack("<HHII", 256, 4, 1, 4)
    np.testing.assert_array_equal(pixels_of(bytes(data))[0, :, 0], [0, 255, 128, 0])


def test_wider_integers_are_clipped_to_the_16_bit_scale() -> None:
    signed = np.array([[-(2**31), -1, 0, 256, 65535, 65536, 2**31 - 1]], dtype=np.int32)
    np.testing.assert_array_equal(pixels_of(tiff(signed))[0, :, 0], [0, 0, 0, 1, 255, 255, 255])
    unsigned = np.array([[0, 256, 65536, 2**31, 2**32 - 1]], dtype=np.uint32)
    np.testing.assert_array_equal(pixels_of(tiff(unsigned))[0, :, 0], [0, 1, 255, 255, 255])
    short = np.array([[-32768, -1, 256, 32767]], dtype=np.int16)
    np.testing.assert_array_equal(pixels_of(tiff(short))[0, :, 0], [0, 0, 1, 127])


def test_where_0_is_white_it_is_white_at_any_depth() -> None:
    eight = tiff(np.array([[0, 255]], dtype=np.uint8), photometric=0)
    sixteen = tiff(np.array([[0, 65535]], dtype=np.uint16), photometric=0)
    for data in (eight, sixteen):
        np.testing.assert_array_equal(pixels_of(data)[0, :, 0], [255, 0])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([-3.0, 0.25, 0.5], [0, 64, 128]),
        ([0.0, 127.6, 255.0], [0, 128, 255]),
        ([0.0, 32768.0, 65535.0], [0, 128, 255]),
        ([0.0, 1e9, 65535.0], [0, 255, 255]),
        ([np.nan, np.inf, 1.0], [0, 255, 255]),
        ([-np.inf, 0.0, 1.0], [0, 0, 255]),
    ],
)
def test_floats_are_scaled_by_the_stated_rule(values: list[float], expected: list[int]) -> None:
    data = tiff(np.array([values], dtype=np.float32))
    np.testing.assert_array_equal(pixels_of(data)[0, :, 0], expected)


def test_floats_without_a_number_are_no_image() -> None:
    with pytest.raises(UnreadableImage, match="no pixel is a finite number"):
        decode(tiff(np.full((4, 4), np.nan, dtype=np.float32)))


def test_an_animation_gives_its_first_image() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = saved(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert tuple(pixels_of(data)[4, 4]) == (255, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "compressed TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    upright = np.zeros((24, 40, 3), dtype=np.uint8)
    upright[:12, :20] = 255, 0, 0
    upright[:12, 20:] = 0, 255, 0
    upright[12:, :20] = 0, 0, 255
    # how a camera that is held so lays down the rows (EXIF 2.32, tag 274)
    laid = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, object] = {"exif": exif}
    if format == "JPEG":
        options |= {"quality": 95, "subsampling": 0}
    if format == "WEBP":
        options |= {"lossless": True}
    if format == "compressed TIFF":
        options |= {"compression": "tiff_lzw"}
    image = Image.fromarray(np.ascontiguousarray(laid))
    pixels = pixels_of(saved(image, format.split()[-1], **options))
    np.testing.assert_allclose(pixels.astype(int), upright, atol=12)


def test_damaged_exif_costs_the_orientation_and_not_the_image() -> None:
    data = saved(SCENE, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    np.testing.assert_array_equal(pixels_of(data), pixels_of(FILES["jpeg"]))


def test_portable_maps_have_the_pixels_that_were_written() -> None:
    scaled = np.rint(np.asarray(SCENE.convert("L")) // 2 * (255 / 127))[..., None]
    for name, expected in {
        "ppm": SCENE,
        "plain ppm": SCENE,
        "16-bit pgm": SCENE.convert("L").convert("RGB"),
        "pbm": SCENE.convert("1").convert("RGB"),
        "7-bit pgm": np.broadcast_to(scaled, (31, 45, 3)),
    }.items():
        np.testing.assert_array_equal(pixels_of(FILES[name]), np.asarray(expected), name)


@pytest.mark.parametrize("name", ["avif", "heic"])
def test_images_of_telephones_are_read_and_turned(name: str) -> None:
    image = scene(64, 48)
    exif = Image.Exif()
    exif[274] = 6
    found = pixels_of(saved(image, {"heic": "HEIF"}.get(name, "AVIF"), exif=exif.tobytes()))
    upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).mean() < 8


def test_a_heic_image_names_the_package_that_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UnreadableImage, match=r"HEIC .* pip install 'fx-images\[heif\]'"):
        decode(FILES["heic"])
    (tmp_path / "phone").write_bytes(FILES["heic"])
    assert is_image(tmp_path / "phone")
    np.testing.assert_array_equal(pixels_of(FILES["avif"]).shape, (31, 45, 3))


def with_text(kind: str, size: int, count: int = 1) -> bytes:
    """A PNG with texts or a profile beside its pixels, and an orientation to be kept."""
    info, text = PngImagePlugin.PngInfo(), "workflow " * (size // 9 + 1)
    exif = Image.Exif()
    exif[274] = 3
    for number in range(count if kind != "iCCP" else 0):
        if kind == "iTXt":
            info.add_itxt(f"k{number}", text, "de", "é", zip=number % 2 == 0)
        else:
            info.add_text(f"k{number}", text, zip=kind == "zTXt")
    extra = {"icc_profile": text.encode()} if kind == "iCCP" else {}
    return saved(SCENE, "PNG", pnginfo=info, exif=exif, **extra)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt", "iCCP"])
@pytest.mark.parametrize(("size", "count"), [(9, 3), (2**20 + 9, 1), (2**22, 3), (2**19, 200)])
def test_a_png_may_have_long_texts_and_profiles(
    kind: str, size: int, count: int, tmp_path: Path
) -> None:
    data = with_text(kind, size, count)
    turned = np.asarray(SCENE.transpose(Image.Transpose.ROTATE_180))
    np.testing.assert_array_equal(pixels_of(data), turned)
    # behind the pixels, as some programs write it
    place, head = data.index(b"IDAT") - 4, 33
    behind = data[:head] + data[place:-12] + data[head:place] + data[-12:]
    np.testing.assert_array_equal(pixels_of(behind), turned)
    (tmp_path / "1.png").write_bytes(data)
    assert image_size(io.BytesIO(data)) == (45, 31)
    assert is_image(tmp_path / "1.png")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "AVIF"])
def test_other_images_may_have_large_profiles(kind: str) -> None:
    decoded = pixels_of(saved(SCENE, kind, icc_profile=b"profile " * 2**18))
    np.testing.assert_array_equal(decoded, pixels_of(saved(SCENE, kind)))


def test_the_size_of_an_image_is_the_file_s(tmp_path: Path) -> None:
    small = Preprocessing(16, 18, "bicubic", (0.5,) * 3, (0.5,) * 3)
    for name, image in {"large": scene(800, 600), "line": scene(500, 3)}.items():
        pixels, size = read_pixels_and_size(saved(image, "JPEG"), small, 5)
        assert size == image.size, name
        np.testing.assert_array_equal(pixels, read_pixels(saved(image, "JPEG"), small, 5))


def test_no_bytes_are_an_empty_file() -> None:
    with pytest.raises(UnreadableImage, match="empty file"):
        decode(b"")


@pytest.mark.parametrize(
    "data",
    [b"hello", bytes(100), b"<svg xmlns='http://www.w3.org/2000/svg'/>", saved(SCENE, "TGA")],
)
def test_other_formats_are_not_let_in(data: bytes) -> None:
    with pytest.raises(
        UnreadableImage, match="not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF or"
    ):
        decode(data)


def test_a_kind_of_tiff_that_is_not_read_is_called_so() -> None:
    with pytest.raises(UnreadableImage, match=r"^TIFF of a kind that is not read"):
        decode(tiff(np.ones((4, 4))))


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_unreadable_unless_all_pixels_are_there(name: str) -> None:
    data = FILES[name]
    whole = pixels_of(data)
    refused = 0
    for length in range(0, len(data), max(1, len(data) // 150)):
        try:
            pixels = pixels_of(data[:length])
        except UnreadableImage:
            refused += 1
        else:
            np.testing.assert_array_equal(pixels, whole)
    assert refused > 50
    with pytest.raises(UnreadableImage):
        decode(data[: len(data) // 2])


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(FILES)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_give_a_image_or_a_reason_in_one_line(
    name: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(FILES[name])
    for place, value in changes:
        data[int(place**2 * (len(data) - 1))] = value
    reason = "none"
    try:
        assert decode(bytes(data)).mode == "RGB"
    except UnreadableImage as error:
        reason = str(error)
    assert 0 < len(reason) < 300
    assert "\n" not in reason


@given(st.binary(max_size=200), st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a"]))
def test_rubbish_behind_an_image_s_first_bytes_is_unreadable(rubbish: bytes, magic: bytes) -> None:
    with pytest.raises(UnreadableImage):
        decode(magic + rubbish)


def test_a_decompression_bomb_is_unreadable() -> None:
    data = png(20_000, 20_000, 1, 0, b"")
    with pytest.raises(
        UnreadableImage, match=r"too large: 20,000 by 20,000 pixels .*; the limit is 512 MB"
    ):
        decode(data)


def test_a_image_between_pillow_s_two_limits_is_read_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SCENE.width * SCENE.height - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels_of(FILES["png"]), np.asarray(SCENE))


def test_a_limit_above_pillow_s_lifts_it_while_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000)
    for name in ("png", "webp", "gif"):
        np.testing.assert_array_equal(pixels_of(FILES[name]).shape, (SCENE.height, SCENE.width, 3))
    assert Image.MAX_IMAGE_PIXELS == 1_000
    with pytest.raises(UnreadableImage):
        decode(FILES["png"][:-100])
    assert Image.MAX_IMAGE_PIXELS == 1_000
    with pytest.raises(UnreadableImage, match="too large: 45 by 31 pixels take 0 MB"):
        decode(FILES["png"], max_image_mb=0)


def test_threads_that_ask_for_more_lift_pillow_s_limit_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with ThreadPoolExecutor(8) as pool:
        for image in pool.map(lambda _: decode(FILES["png"]), range(200)):
            assert image.size == SCENE.size
    assert Image.MAX_IMAGE_PIXELS == 500


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_decoded_before_its_memory_is_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    module = sys.modules["extract.images.decoding"]
    memory_for, load = module.memory_for, ImageFile.ImageFile.load

    def asked(taken: int) -> object:
        happened.append("asked")
        assert taken >= 4 * SCENE.width * SCENE.height
        return memory_for(taken)

    def loaded(image: ImageFile.ImageFile) -> object:
        happened.append("loaded")
        return load(image)

    monkeypatch.setattr(module, "memory_for", asked)
    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded)
    decode(FILES[name])
    assert happened[0] == "asked"
    assert "loaded" in happened


def test_failures_of_memory_are_not_the_image_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(image: Image.Image, mode: str) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", no_memory)
    with pytest.raises(MemoryError):
        decode(FILES["palette png"])


def warning_tiff() -> bytes:
    """Return a TIFF of which Pillow warns: a tag claims more data than the file has."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[270] = "a description that is long enough to lie outside of the directory"
    data = bytearray(saved(SCENE, "TIFF", tiffinfo=tags))
    at = data.index(struct.pack("<HH", 270, 2))
    data[at + 4 : at + 8] = struct.pack("<I", 1_000_000)
    return bytes(data)


def test_pillow_s_warnings_do_not_escape_and_others_do() -> None:
    data = warning_tiff()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        assert seen, "the file must be one that Pillow warns of"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        decode(data)
        assert not seen
        assert warnings.filters == before
        warnings.warn("something else", stacklevel=1)
        assert len(seen) == 1


def test_many_threads_read_what_one_reads_and_leave_the_warning_filters_alone() -> None:
    whole = {name: pixels_of(data) for name, data in FILES.items()} | {
        "warning tiff": pixels_of(warning_tiff())
    }
    files = FILES | {"warning tiff": warning_tiff(), "broken": FILES["png"][:500]}
    barrier = threading.Barrier(8)

    def read_all(_: int) -> None:
        barrier.wait()
        for _ in range(8):
            for name, data in files.items():
                try:
                    np.testing.assert_array_equal(pixels_of(data), whole[name])
                except UnreadableImage:
                    assert name == "broken"

    interval = sys.getswitchinterval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        sys.setswitchinterval(1e-5)
        try:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(read_all, range(8)))
        finally:
            sys.setswitchinterval(interval)
        assert warnings.filters == before


def by_torchvision(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.int64]:
    scaled = functional.resize(
        image,
        preprocessing.resize,
        interpolation=InterpolationMode(preprocessing.interpolation),
        antialias=True,
    )
    cut = functional.center_crop(scaled, [preprocessing.size, preprocessing.size])
    return np.asarray(cut, dtype=np.int64)


def photographs() -> list[Path]:
    return sorted((SHARED / "photos").iterdir())


@needs_shared
@pytest.mark.parametrize("preprocessing", [BICUBIC, BILINEAR, BILINEAR.at_size(96)])
def test_pixels_are_those_of_torchvision(preprocessing: Preprocessing) -> None:
    for path in photographs()[::5]:
        image = decode(path.read_bytes())
        error = np.abs(by_torchvision(image, preprocessing) - prepare(image, preprocessing)[0])
        assert error.mean() < 0.5
        assert error.max() <= 20  # Pillow chooses which direction is first rounded to 8 bits


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    size=st.integers(16, 80),
    larger=st.integers(0, 40),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_pixels_are_those_of_torchvision_at_any_shape(
    width: int, height: int, size: int, larger: int, interpolation: str
) -> None:
    image = scene(width, height)
    preprocessing = Preprocessing(
        **BILINEAR.to_dict()
        | {"size": size, "resize": size + larger, "interpolation": interpolation}
    )
    (pixels,) = prepare(image, preprocessing)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    if max(width, height) * (size + larger) < 2_000 * min(width, height):
        assert np.abs(by_torchvision(image, preprocessing) - pixels).mean() < 1


@pytest.mark.parametrize("side", [300, 2_100])
def test_a_image_in_one_piece_of_memory_or_several_gives_torch_s_pixels(side: int) -> None:
    image = scene(side, side)
    before = image.tobytes()
    # of 16 MB at most, four bytes a pixel
    assert (side > 2_000) == _is_in_several_pieces(image)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    (scaled,) = interpolate(tensor[None], (256, 256), mode="bilinear", antialias=True)
    expected = functional.center_crop(scaled, [224, 224]).permute(1, 2, 0)
    (pixels,) = prepare(image, BILINEAR)
    np.testing.assert_array_equal(pixels, expected.numpy())
    assert image.tobytes() == before


def _is_in_several_pieces(image: Image.Image) -> bool:
    try:
        pa.array(image)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("shape", [(1, 1), (20_000, 10), (10, 20_000), (1, 3_000), (17, 16)])
def test_extreme_shapes_give_a_square(shape: tuple[int, int]) -> None:
    grey = Image.new("RGB", shape, (10, 200, 30))
    (pixels,) = prepare(grey, BICUBIC)
    assert pixels.shape == (224, 224, 3)
    assert (pixels == (10, 200, 30)).all()
    assert pixels.flags.writeable


def test_pixels_of_another_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="must be RGB, got L"):
        prepare(Image.new("L", (8, 8)), BICUBIC)


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same() -> None:
    image = scene(2_400, 1_600)
    data = saved(image, "JPEG", quality=90)
    assert decode(data, at_least=512).size == (1_200, 800)
    assert decode(data, at_least=200).size == (300, 200)
    assert decode(data, at_least=1_600).size == image.size
    error = read_pixels(data, BICUBIC).astype(int) - prepare(decode(data), BICUBIC)
    assert np.abs(error).mean() < 1


def test_no_pixel_of_a_smaller_decoding_shows_more_than_the_image() -> None:
    data = saved(scene(2_402, 1_602), "JPEG")
    assert decode(data, at_least=100).size == (1_201, 801)
    data = saved(scene(2_401, 1_601), "JPEG")
    assert decode(data, at_least=100).size == (2_401, 1_601)


@pytest.mark.parametrize("size", [(2_401, 1_601), (2_407, 1_603), (1_603, 2_407)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_side_that_leaves_a_remainder_is_decoded_smaller_in_its_place(
    size: tuple[int, int], orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(scene(*size), "JPEG", quality=90, exif=exif)
    drafted: list[object] = []
    draft = JpegImagePlugin.JpegImageFile.draft

    def watched(self: Image.Image, mode: str | None, to: tuple[int, int]) -> object:
        drafted.append(to)
        return draft(self, mode, to)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", watched)
    error = read_pixels(data, BICUBIC).astype(int) - prepare(decode(data), BICUBIC)
    # an image moved by the remainder is off by more than this at every edge
    assert np.abs(error).mean() < 1
    # turned, what shows more than the image would not be at its end: decoded in full
    assert bool(drafted) == (orientation == 1)


def test_only_a_jpeg_is_decoded_smaller() -> None:
    assert decode(FILES["png"], at_least=1).size == SCENE.size


def test_a_large_upright_jpeg_is_turned_when_decoded_smaller() -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = saved(scene(1_600, 800), "JPEG", exif=exif)
    assert decode(data, at_least=200).size == (200, 400)


def test_preprocessing_keeps_its_ratio_at_another_size() -> None:
    assert BICUBIC.at_size(112).resize == 128
    assert BICUBIC.at_size(299).resize == 342
    assert BICUBIC.at_size(224) == BICUBIC
    assert Preprocessing(224, 224, "bilinear", (0, 0, 0), (1, 1, 1)).at_size(32).resize == 32


def test_preprocessing_survives_json_types() -> None:
    assert BILINEAR.to_dict()["mean"] == [0.485, 0.456, 0.406]
    assert msgspec.convert(BILINEAR.to_dict(), Preprocessing) == BILINEAR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 8}, "size must be at least 16 pixels, got 8"),
        ({"resize": 200}, r"resize must be at least size \(224\), got 200"),
        ({"interpolation": "nearest"}, "'bilinear' or 'bicubic', got 'nearest'"),
        ({"mean": (0.5, 0.5)}, "mean must be three"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean must be three"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be three"),
        ({"version": 0}, "version must be at least 1, got 0"),
    ],
)
def test_impossible_preprocessing_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**BICUBIC.to_dict() | change)
