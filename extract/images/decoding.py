"""Bytes of an image file to 8-bit RGB pixels: always by the same rules, or not at all.

What a file's pixels are
    EXIF orientation is applied. Animations and files of several pages give their first image.
    Grey is repeated in three channels; what is transparent is laid on white; CMYK (Adobe's
    inverted kind too), YCbCr and Lab become RGB; embedded colour profiles are ignored.
    16-bit samples keep their upper byte, so that 65535 is 255; 12-bit ones their upper 8 bits.
    Pillow's wider integers are read on the 16-bit scale, and what lies outside 0..65535 is clipped.
    Floats (of 32 bits, in one channel) lie between 0 and white, where white is 1, or 255 if the
    largest value is above 1, or 65535 if it is above 255; below 0 and NaN are black.
A file that ends before its pixels do has none: no part of an image is made up.

What a file may take
    An image that would take more than 512 MB (2**20 bytes each) as 8-bit RGB, three bytes a pixel,
    is not decoded, unless more is allowed; its size is read from the header. A WebP counts four
    times as much, for its decoder holds several copies. While an image is decoded and scaled, it
    takes up to six times those bytes; measured at 40 million pixels, in bytes a pixel: 4 for plain
    RGB (PNG, BMP, uncompressed TIFF, JPEG), 8 for what must be converted or turned (palettes, grey,
    CMYK, transparency, 16 bits, floats, EXIF orientation), 6 more for a JPEG in several scans, 1 to
    8 more for a TIFF's strip, 18 for WebP; below 10 for AVIF and HEIC, and below 16 for a PPM whose
    samples must be scaled.
"""

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from extract.files import ObjectPath, Place, open_regular
from extract.images.crops import bands, prepare
from extract.images.decoding_memory import memory_for
from extract.images.entries import MAX_IMAGE_MB
from extract.images.preprocessing import Preprocessing

# Pillow's own; an MPO is a JPEG with more images behind it
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")
_NO_IMAGE = "not a JPEG, PNG, WebP, BMP, TIFF, GIF, PPM, AVIF or HEIC image"
# kinds of an ISO media file that hold HEVC images; the last two hold AVIF images as well
_HEIC = (*(b"heic heix heim heis hevc hevx hevm hevs".split()), b"mif1", b"msf1")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF tags
_BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339
_ROWS_PER_STRIP, _TILE_WIDTH, _TILE_LENGTH = 278, 322, 323
_MAX_SIDE = 2**20  # pixels; Pillow keeps an address for every row
# Of a progressive JPEG: scans, and, of more than some, pixels of all scans together. Four thousand
# million take 7 s.
_MAX_SCANS, _SOME_SCANS, _MAX_SCANNED = 500, 32, 2**32
_MAX_TILE = 2**24  # pixels of a TIFF's tile that is larger than the image
_JPEG = ("JPEG", "MPO")
_START_OF_SCAN = b"\xff\xda"
MB = 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
# bytes of one compressed text or profile in a PNG, and of all: Pillow refuses images of more
_LONGEST_TEXT, _MOST_TEXT = 2**20, 2**25
# bytes of an object that are looked at to see what it is
_LONGEST_HEADER = 2**16
# the reason why an image is not read tells what Pillow would print
logging.getLogger("PIL").addHandler(logging.NullHandler())
_PILLOW_WARNS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class UnreadableImage(Exception):
    """These bytes hold no image; the message is the reason, in one short line.

    The reason is the image itself, so it may be remembered with it. Failures of the disk, the
    network or memory are other exceptions.
    """


class HeicUnread(UnreadableImage):
    """A HEIC image, where pillow-heif is not installed."""

    def __init__(self) -> None:
        super().__init__("a HEIC image, which takes pillow-heif: pip install 'fx-images[heif]'")


def decode(
    data: bytes, *, at_least: int | None = None, max_image_mb: int = MAX_IMAGE_MB
) -> Image.Image:
    """Return the image in the bytes of an image file. Safe to call from several threads.

    Parameters
    ----------
    data : bytes
        A whole JPEG, PNG, WebP, BMP, TIFF, GIF, PPM (PGM, PBM) or AVIF file, or a HEIC file where
        pillow-heif is installed.
    at_least : int, pixels, or None
        If given, a JPEG comes out at an eighth, a quarter or half of its size, where that goes
        without a remainder and leaves both sides at least so many pixels: quicker for large
        photographs.
    max_image_mb : int, of 2**20 bytes
        What the image may take as 8-bit RGB, before it is decoded smaller.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, upright.

    Raises
    ------
    UnreadableImage
        If there is no whole image in `data`, or one that would take more than `max_image_mb`, of
        more than 2**20 pixels on a side, or of more than 500 scans (fewer of above 8 million
        pixels).
    """
    with ExitStack() as memory:
        return _decoded(data, at_least, max_image_mb, memory, remainder=False)[0]


def read_pixels(
    data: bytes, preprocessing: Preprocessing, crops: int = 1, max_image_mb: int = MAX_IMAGE_MB
) -> NDArray[np.uint8]:
    """Return an image file's pixels as the network is to see them, before normalisation.

    Parameters, and what is raised, are those of `read_pixels_and_size`.

    Returns
    -------
    uint8 array of shape (crops, size, size, 3)
    """
    return read_pixels_and_size(data, preprocessing, crops, max_image_mb)[0]


def read_pixels_and_size(
    data: bytes,
    preprocessing: Preprocessing,
    crops: int = 1,
    max_image_mb: int = MAX_IMAGE_MB,
    alone: bool = False,
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return an image file's pixels as the network is to see them, and the size of the image.

    `decode` and `prepare`, the former at no less than twice ``preprocessing.resize``.

    Parameters
    ----------
    data : bytes
        A whole image file.
    preprocessing : Preprocessing
    crops : {1, 5, 10}
        Squares of it.
    max_image_mb : int, of 2**20 bytes
        As of `decode`.
    alone : bool
        Whether the caller has made all others wait (`memory_for`).

    Returns
    -------
    uint8 array of shape (crops, size, size, 3), and the file's width and height in pixels

    Raises
    ------
    UnreadableImage
        As `decode` does.
    """
    least = 2 * preprocessing.resize
    with ExitStack() as memory:
        held = None if alone else memory
        image, extent, size = _decoded(data, least, max_image_mb, held, remainder=True)
        pixels = prepare(image, preprocessing, crops, extent=extent)
        # before others may take its memory
        del image
    return pixels, size


def image_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height of an image file in pixels, from its header, before it is turned upright.

    Raises
    ------
    UnreadableImage
        If it has no such header.
    """
    with _pillow():
        return _with_header(file).size


def is_image(path: Place) -> bool:
    """Whether a file has the header of an image, whatever its name; not where it cannot be opened.

    A HEIC file has, also where it takes a package that is not there.
    """
    try:
        with ExitStack() as opened:
            if isinstance(path, ObjectPath):
                file: BinaryIO = io.BytesIO(path.read_bytes(0, _LONGEST_HEADER))
            else:
                file, _ = opened.enter_context(open_regular(path, 2**63))
            opened.enter_context(_pillow())
            _with_header(file)
    except HeicUnread:
        return True
    except (OSError, UnreadableImage):
        return False
    return True


def _decoded(
    data: bytes,
    at_least: int | None,
    max_image_mb: int,
    memory: ExitStack | None,
    *,
    remainder: bool,
) -> tuple[Image.Image, tuple[float, float], tuple[int, int]]:
    """Return the image, its width and height in the pixels of what was decoded, and in the file's.

    Other images wait for its memory until `memory` is left; None where they wait already.
    """
    with _pillow():
        image = _opened(io.BytesIO(_without_long_texts(data)))
        size = image.size
        _refuse_bombs(image, data, max_image_mb)
        extent: tuple[float, float] = image.size
        encoded = image.width * image.height
        is_jpeg = image.format in _JPEG
        turn = _UPRIGHT.get(_orientation(image)) if is_jpeg else None
        # nothing else can be decoded smaller
        if at_least is not None and is_jpeg:
            width, height = image.size
            # turned, the pixels that show more than the image would not be the last ones
            remainder = remainder and turn is None
            for part in (8, 4, 2):
                whole = width % part == height % part == 0
                if (whole or remainder) and min(image.size) >= part * at_least:
                    if drafted := image.draft(None, (width // part, height // part)):
                        extent = drafted[1][2:]
                    break
        if image.format == "PNG" and "16" in str(image.tile[0].args):
            # Pillow would compare a colour key of 16 bits with samples that it has cut to 8
            image.info.pop("transparency", None)
        _take_planes_as_wide_as_they_are(image)
        if memory is not None:
            memory.enter_context(memory_for(_bytes_taken(image, turn, encoded, data)))
        image.load()
        if not is_jpeg:
            # of a PNG it may lie behind the pixels, and Pillow turns a TIFF itself
            turn = _UPRIGHT.get(_orientation(image))
        result = _to_rgb(image)
        # the file's own pixels are freed before others are made
        del image
        if turn is not None:
            result = result.transpose(turn)
            extent = result.size
        return result, extent, size


def _refuse_bombs(image: Image.Image, data: bytes, max_image_mb: int) -> None:
    """Refuse what a few bytes would make cost gigabytes or minutes."""
    weight = 4 if image.format == "WEBP" else 1
    taken = 3 * weight * image.width * image.height
    if taken > max_image_mb * MB:
        raise UnreadableImage(
            f"too large: {image.width:,} by {image.height:,} pixels take {taken / MB:,.0f} MB"
            + (f" ({image.format} counts {weight} times)" if weight > 1 else "")
            + f"; the limit is {max_image_mb:,} MB as 8-bit RGB"
        )
    if max(image.size) > _MAX_SIDE:
        raise UnreadableImage(f"too large: {image.width:,} by {image.height:,} pixels")
    if image.format == "TIFF":
        width, height = _tile(image)
        if width * height > max(_MAX_TILE, image.width * image.height):
            raise UnreadableImage(f"too large: tiles of {width:,} by {height:,} pixels")
    if image.format not in _JPEG:
        return
    # libjpeg makes what is missing grey and says nothing; 64 pixels have a bit at the least
    if image.width * image.height > 8 * 64 * len(data):
        raise UnreadableImage("image file is truncated")
    # each is a pass over all pixels, however few bytes it has; encoders write about ten
    most = max(_SOME_SCANS, min(_MAX_SCANS, _MAX_SCANNED // (image.width * image.height)))
    if image.info.get("progressive") and data.count(_START_OF_SCAN) > most:
        raise UnreadableImage(f"a progressive JPEG of more than {most} scans")


def _tile(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of what libtiff decodes at once of a TIFF."""
    tags: Any = getattr(image, "tag_v2", {})
    if _TILE_WIDTH in tags:
        return int(tags[_TILE_WIDTH]), int(tags.get(_TILE_LENGTH, image.height))
    return image.width, min(int(tags.get(_ROWS_PER_STRIP, image.height)), image.height)


def _take_planes_as_wide_as_they_are(image: ImageFile.ImageFile) -> None:
    """Have Pillow read a TIFF's uncompressed planes of 16 bits; it takes bytes for samples."""
    tags: Any = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR) == 2 and set(tags.get(_BITS_PER_SAMPLE, ())) == {16}:
        order = ";16L" if tags.prefix == b"II" else ";16B"
        for place, tile in enumerate(image.tile):
            if tile.codec_name == "raw":
                band, *others = cast(tuple[Any, ...], tile.args)
                image.tile[place] = tile._replace(args=(band + order, *others))


def _bytes_taken(
    image: Image.Image, turn: Image.Transpose | None, encoded: int, data: bytes
) -> int:
    """Bytes at the peak of decoding and scaling, from the header; `encoded` is in pixels."""
    pixels = image.width * image.height
    if image.format in ("WEBP", "AVIF", "HEIF"):
        return 18 * pixels
    if image.format == "PPM":
        return 16 * pixels
    if image.format == "TIFF":
        turned = _orientation(image) in _UPRIGHT
    else:  # a PNG that may be is counted as turned
        turned = turn is not None or b"eXIf" in data
    plain = image.mode == "RGB" and not image.has_transparency_data and not turned
    taken = (4 if plain else 8) * pixels
    if image.format == "TIFF":
        tags: Any = getattr(image, "tag_v2", {})
        bits = tags.get(_BITS_PER_SAMPLE, (8,))
        width, height = _tile(image)
        taken += width * height * max(4, sum(bits) // 8)
    elif image.format in _JPEG:
        # all coefficients are kept until the last scan
        several = image.info.get("progressive") or data.count(_START_OF_SCAN) > 1
        taken += 2 * len(image.getbands()) * encoded if several else 0
    return taken


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data costs the image its orientation, not its pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_wide_samples(image)
    if image.mode == "La":  # Pillow turns premultiplied grey into nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    # some rows at a time: of a whole image, four copies would be held
    result = Image.new("RGB", image.size)
    for box in bands(image):
        part = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        result.paste(Image.alpha_composite(white, part).convert("RGB"), box)
    return result


def _from_wide_samples(image: Image.Image) -> Image.Image:
    """Return an image of one channel of integers above 8 bits, or of floats, in 8 bits."""
    white = _white_of_floats(image) if image.mode == "F" else 0
    result = Image.new("RGB", image.size)
    for box in bands(image):
        samples: NDArray[Any] = np.asarray(image.crop(box))
        grey = _grey_of_floats(samples, white) if white else _grey_of_integers(samples, image)
        # Pillow minds that 0 is white in samples of up to 8 bits only
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:
            grey = 255 - grey
        result.paste(Image.fromarray(grey).convert("RGB"), box)
    return result


def _grey_of_integers(samples: NDArray[Any], image: Image.Image) -> NDArray[np.uint8]:
    tags = getattr(image, "tag_v2", {})  # only a TIFF has them
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        samples = samples.view(np.uint32)  # Pillow's own 32 bits are signed
    if tags.get(_BITS_PER_SAMPLE) == (12,):
        samples = samples << 4
    grey: NDArray[np.uint8] = (np.clip(samples, 0, 65535) >> 8).astype(np.uint8)
    return grey


def _white_of_floats(image: Image.Image) -> int:
    """Return what is white in an image of floats."""
    largest = -np.inf
    for box in bands(image):
        samples: NDArray[np.float32] = np.asarray(image.crop(box))
        largest = samples.max(where=np.isfinite(samples), initial=largest)
    if largest == -np.inf:
        raise UnreadableImage("no pixel is a finite number")
    return next((white for white in (1, 255) if largest <= white), 65535)


def _grey_of_floats(samples: NDArray[np.float32], white: int) -> NDArray[np.uint8]:
    share = np.clip(np.nan_to_num(samples, nan=0.0) / white, 0, 1)
    return np.rint(share * 255).astype(np.uint8)


def _without_long_texts(data: bytes) -> bytes:
    """Drop from a PNG the texts and profiles for which Pillow would refuse the whole image."""
    if not data.startswith(_PNG):
        return data
    parts, begin, at, in_all = [], 0, len(_PNG), 0
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            unpacked = _unpacked_length(kind, data[at + 8 : end - 4])
            in_all += max(length, unpacked)
            if unpacked > _LONGEST_TEXT or in_all > _MOST_TEXT:
                parts.append(data[begin:at])
                begin = end
        at = end
    return b"".join([*parts, data[begin:]]) if parts else data


def _unpacked_length(kind: bytes, body: bytes) -> int:
    """Bytes of a chunk's compressed text, as far as they are counted; 0 of one that is not."""
    after = body.partition(b"\0")[2]  # its name
    if kind == b"iTXt":
        # whether it is compressed, how, its language, and its name in that
        packed = after[2:].split(b"\0", 2)[-1] if after[:1] == b"\1" else b""
    else:
        packed = after[1:] if kind != b"tEXt" else b""
    try:
        return len(zlib.decompressobj().decompress(packed, _LONGEST_TEXT + 1))
    except zlib.error:  # Pillow's to judge
        return 0


def _with_header(file: BinaryIO) -> ImageFile.ImageFile:
    try:
        return _opened(file)
    except ValueError:  # which Pillow raises for long texts, too
        file.seek(0)
        if file.read(len(_PNG)) != _PNG:
            raise
        return _opened(io.BytesIO(_without_long_texts(_PNG + file.read(2**30))))


def _opened(file: BinaryIO) -> ImageFile.ImageFile:
    """Read an image's header.

    Not by ``Image.open``, which has a limit of pixels for the whole process.
    """
    start = file.read(16)
    if not start:
        raise UnreadableImage("empty file")
    Image.init()
    reason = _NO_IMAGE
    # none of AVIF where Pillow was built without it
    for name in (name for name in FORMATS if name in Image.OPEN):
        factory, accept = Image.OPEN[name]
        if accept is not None and accept(start) is True:
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):
                return factory(file, "")
            reason = f"{name} of a kind that is not read, or its header is damaged"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC:
        file.seek(0)
        return _opened_heic(file)
    raise UnreadableImage(reason)


def _opened_heic(file: BinaryIO) -> ImageFile.ImageFile:
    try:
        import pillow_heif
    except ImportError:
        raise HeicUnread from None
    factory: Any = pillow_heif.HeifImageFile
    return cast(ImageFile.ImageFile, factory(file, ""))


def _reason(error: Exception) -> str:
    # Pillow's count of bytes "not processed" is that of its buffer and says nothing
    text = " ".join(re.sub(r" \(\d+ bytes not processed\)", "", str(error)).split())[:200]
    if text and isinstance(error, OSError | SyntaxError | ValueError):
        return text
    return f"damaged image ({': '.join(filter(None, (type(error).__name__, text)))})"


@contextmanager
def _pillow() -> Iterator[None]:
    """Ignore what Pillow warns of; make ``UnreadableImage`` of what damaged bytes make it raise.

    ``warnings.catch_warnings`` puts back the filters that it found, those of another thread
    among them. Here every call adds one filter and takes one away, in any order.
    """
    filters = cast("list[object]", warnings.filters)
    filters.insert(0, _PILLOW_WARNS)
    try:
        yield
    except (MemoryError, UnreadableImage):
        raise
    except Exception as error:  # nearly any
        raise UnreadableImage(_reason(error)) from error
    finally:
        # someone else's catch_warnings may have ended meanwhile, and taken the filter with it
        with suppress(ValueError):
            filters.remove(_PILLOW_WARNS)
