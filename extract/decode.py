"""Bytes of an image file to 8-bit RGB pixels: always by the same rules, or not at all.

What a file's pixels are
    EXIF orientation is applied. Animations and files of several pages give their first picture.
    Grey is repeated in three channels; what is transparent is laid on white; CMYK (Adobe's
    inverted kind too), YCbCr and Lab become RGB; embedded colour profiles are ignored.
    16-bit samples keep their upper byte, so that 65535 is 255; 12-bit ones their upper 8 bits.
    Pillow's wider integers are read on the 16-bit scale, and what lies outside 0..65535 is clipped.
    Floats lie between 0 and white, where white is 1, or 255 if the largest value is above 1, or
    65535 if it is above 255; below 0 and NaN are black.
A file that ends before its pixels do has none: no part of a picture is made up.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from extract.crops import prepare
from extract.preprocessing import Preprocessing

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_MAX_SIDE = 2**20  # pixels; Pillow keeps an address for every row
_MAX_SCANS = 500
# Of all threads or processes; Pillow takes 4 to 15 bytes for each. Pictures take parts of them.
PIXELS_AT_ONCE, PARTS = 2**27, 16
_PILLOW_WARNS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class UnreadableImage(Exception):
    """These bytes hold no picture; the message is the reason, in one short line.

    It speaks of the image alone and may be remembered with it. Failures of the disk, the network
    or the memory are other exceptions.
    """


def decode(data: bytes, *, at_least: int | None = None) -> Image.Image:
    """Return the picture in the bytes of an image file. Safe to call from several threads.

    Parameters
    ----------
    data : bytes
        A whole JPEG, PNG, WebP, BMP, TIFF or GIF file.
    at_least : int, pixels, or None
        If given, a JPEG comes out at an eighth, a quarter or half of its size, where that goes
        without a remainder and leaves both sides at least so many pixels: quicker for large
        photographs.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, upright.

    Raises
    ------
    UnreadableImage
        If there is no whole picture in `data`, or one of more pixels than Pillow lets in (twice
        ``PIL.Image.MAX_IMAGE_PIXELS``, 179 million), of more than 2**20 on a side, or of more
        than 500 scans.
    """
    if at_least is not None and at_least < 1:
        raise ValueError(f"at_least must be at least 1 pixel, got {at_least}")
    return _decode(data, at_least, remainder=False)[0]


def _decode(
    data: bytes, at_least: int | None, *, remainder: bool
) -> tuple[Image.Image, tuple[float, float]]:
    """Return the picture, and its width and height in the pixels of what was decoded."""
    if not data:
        raise UnreadableImage("empty file")
    with _pillow_kept_quiet():
        try:
            return _read(data, at_least, remainder)
        except (MemoryError, UnreadableImage):
            raise
        except Exception as error:  # damaged bytes make Pillow raise nearly anything
            raise UnreadableImage(_reason(error)) from error


def read_pixels(data: bytes, preprocessing: Preprocessing, crops: int = 1) -> NDArray[np.uint8]:
    """Return an image file's pixels as the network is to see them, before normalisation.

    `decode` and `prepare`, the former at no less than twice ``preprocessing.resize``.

    Returns
    -------
    uint8 array of shape (crops, size, size, 3)

    Raises
    ------
    UnreadableImage
        As `decode` does.
    """
    image, extent = _decode(data, 2 * preprocessing.resize, remainder=True)
    return prepare(image, preprocessing, crops, extent=extent)


def _read(
    data: bytes, at_least: int | None, remainder: bool
) -> tuple[Image.Image, tuple[float, float]]:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _refuse_bombs(image, data)
        extent: tuple[float, float] = image.size
        # nothing else can be decoded smaller
        if at_least is not None and image.format in ("JPEG", "MPO"):
            width, height = image.size
            # turned, the pixels that show more than the picture would not be the last ones
            remainder = remainder and _orientation(image) not in _UPRIGHT
            for part in (8, 4, 2):
                whole = width % part == height % part == 0
                if (whole or remainder) and min(image.size) >= part * at_least:
                    if drafted := image.draft(None, (width // part, height // part)):
                        extent = drafted[1][2:]
                    break
        if image.format == "PNG" and "16" in str(image.tile[0].args):
            # Pillow would compare a colour key of 16 bits with samples that it has cut to 8
            image.info.pop("transparency", None)
        with _memory_for(image.width * image.height):
            image.load()
            rgb = _to_rgb(image)
            turn = _UPRIGHT.get(_orientation(image))
            if turn is None:
                return rgb, extent
            upright = rgb.transpose(turn)
            return upright, upright.size


def _refuse_bombs(image: Image.Image, data: bytes) -> None:
    """Refuse what a few bytes would make cost gigabytes or minutes."""
    if max(image.size) > _MAX_SIDE:
        raise UnreadableImage(f"too large: {image.width} by {image.height} pixels")
    if image.format not in ("JPEG", "MPO"):
        return
    # libjpeg makes what is missing grey and says nothing; 64 pixels have a bit at the least
    if image.width * image.height > 8 * 64 * len(data):
        raise UnreadableImage("image file is truncated")
    # each is a pass over all pixels, however few bytes it has; encoders write about ten
    if image.info.get("progressive") and data.count(b"\xff\xda") > _MAX_SCANS:
        raise UnreadableImage(f"a progressive JPEG of more than {_MAX_SCANS} scans")


class Synchroniser(Protocol):
    """A lock or a semaphore, of threads or of processes."""

    def acquire(self) -> bool: ...

    def release(self) -> None: ...


_turn: Synchroniser = threading.Lock()
_parts: Synchroniser = threading.Semaphore(PARTS)


def share_memory(turn: Synchroniser, parts: Synchroniser) -> None:
    """Let the processes that are given these decode together what the threads of one may.

    Parameters
    ----------
    turn : a lock
    parts : a semaphore of ``PARTS``
    """
    global _turn, _parts
    _turn, _parts = turn, parts


@contextmanager
def _memory_for(pixels: int) -> Iterator[None]:
    """Wait until the pictures that others decode leave room for so many pixels."""
    wanted = min(PARTS, -(-pixels * PARTS // PIXELS_AT_ONCE))
    # one after the other, so that small pictures do not keep a large one waiting for ever
    _turn.acquire()
    try:
        for _ in range(wanted):
            _parts.acquire()
    finally:
        _turn.release()
    try:
        yield
    finally:
        for _ in range(wanted):
            _parts.release()


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF data costs the picture its orientation, not its pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_grey_of_wide_samples(image)).convert("RGB")
    if image.mode == "La":  # Pillow turns premultiplied grey into nothing else
        image = image.convert("LA")
    if image.has_transparency_data:
        return _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    # some rows at a time: of a whole picture, four copies would be held
    result = Image.new("RGB", image.size)
    rows = max(1, 2**22 // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        part = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", part.size, "white")
        result.paste(Image.alpha_composite(white, part).convert("RGB"), box)
    return result


def _grey_of_wide_samples(image: Image.Image) -> NDArray[np.uint8]:
    """Return the samples of one channel of integers above 8 bits, or of floats, in 8 bits."""
    samples: NDArray[Any] = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # only a TIFF has them
    if image.mode == "F":
        grey = _grey_of_floats(samples)
    else:
        if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
            samples = samples.view(np.uint32)  # Pillow's own 32 bits are signed
        if tags.get(_BITS_PER_SAMPLE) == (12,):
            samples = samples << 4
        grey = (np.clip(samples, 0, 65535) >> 8).astype(np.uint8)
    # Pillow minds that 0 is white in samples of up to 8 bits only
    return 255 - grey if tags.get(_PHOTOMETRIC) == 0 else grey


def _grey_of_floats(samples: NDArray[np.float32]) -> NDArray[np.uint8]:
    largest = samples.max(where=np.isfinite(samples), initial=-np.inf)
    if largest == -np.inf:
        raise UnreadableImage("no pixel is a finite number")
    white = next((white for white in (1, 255) if largest <= white), 65535)
    # in place: the samples may be a gigabyte
    share = np.nan_to_num(samples, nan=0.0)
    share /= white
    np.clip(share, 0, 1, out=share)
    share *= 255
    return np.rint(share, out=share).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, WebP, BMP, TIFF or GIF image, or its header is damaged"
    # Pillow's count of bytes "not processed" is that of its buffer and says nothing
    text = " ".join(re.sub(r" \(\d+ bytes not processed\)", "", str(error)).split())[:200]
    if isinstance(error, Image.DecompressionBombError):
        return f"too large: {text}"
    if text and isinstance(error, OSError | SyntaxError | ValueError):
        return text
    return f"damaged image ({type(error).__name__}: {text})"


@contextmanager
def _pillow_kept_quiet() -> Iterator[None]:
    """Ignore what Pillow warns of, in whichever threads are in here, and nothing else.

    ``warnings.catch_warnings`` puts back the filters that it found, those of another thread
    among them. Here every call adds one filter and takes one away, in any order.
    """
    filters = cast("list[object]", warnings.filters)
    filters.insert(0, _PILLOW_WARNS)
    try:
        yield
    finally:
        # someone else's catch_warnings may have ended meanwhile, and taken the filter with it
        with suppress(ValueError):
            filters.remove(_PILLOW_WARNS)
