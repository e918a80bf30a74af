"""Squares of an image, scaled and cut as torchvision does it: what a network is trained to see.

torch scales them. It is imported where that is done: snapshots are read without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from extract.images.preprocessing import Preprocessing

if TYPE_CHECKING:
    import torch

CROPS = (1, 5, 10)

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def prepare(
    image: Image.Image,
    preprocessing: Preprocessing,
    crops: int = 1,
    *,
    extent: tuple[float, float] | None = None,
) -> NDArray[np.uint8]:
    """Return squares of an image whose shorter side was scaled to ``resize``.

    The image is scaled as a whole, or, where that would be much more than the squares (a long
    strip), a square's place is computed in the image's own coordinates and that part is scaled.
    The pixels are those of torchvision's ``Resize(resize)`` followed by ``CenterCrop(size)``,
    ``FiveCrop(size)`` or ``TenCrop(size)``.

    Parameters
    ----------
    image : PIL.Image.Image
        Mode RGB.
    preprocessing : Preprocessing
    crops : {1, 5, 10}
        The centre alone; with the four corners; all these and their mirror images.
    extent : two floats, pixels, or None for the image's size
        Width and height of the image, where the image's last pixels show more than it.

    Returns
    -------
    uint8 array of shape (crops, size, size, 3)
        The centre first.
    """
    if image.mode != "RGB":
        raise ValueError(f"the image's mode must be RGB, got {image.mode}")
    width, height = extent = extent or image.size
    shorter = min(width, height)
    size, resize = preprocessing.size, preprocessing.resize
    scaled = int(resize * width // shorter), int(resize * height // shorter)
    right, bottom = scaled[0] - size, scaled[1] - size
    places = [(round(right / 2), round(bottom / 2))]
    if crops > 1:
        places += [(0, 0), (right, 0), (0, bottom), (right, bottom)]
    if extent == image.size and max(width, height) <= 4 * shorter:
        whole = _scaled(image, scaled, preprocessing.interpolation)
        squares = [whole[top : top + size, left : left + size] for left, top in places]
    else:
        method = _RESAMPLING[preprocessing.interpolation]
        boxes = [_box(place, size, scaled, extent) for place in places]
        squares = [np.asarray(image.resize((size, size), method, box=box)) for box in boxes]
    if crops == 10:
        squares += [square[:, ::-1] for square in squares]
    pixels = np.empty((len(squares), size, size, 3), dtype=np.uint8)
    for square, kept in zip(squares, pixels, strict=True):
        # a third of the time that all channels at once take, where there is a fourth one
        for channel in range(3):
            kept[..., channel] = square[..., channel]
    return pixels


def bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    """Give boxes of whole rows that Pillow keeps in one piece, from the top down."""
    rows = max(1, 2**21 // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _scaled(image: Image.Image, size: tuple[int, int], method: str) -> NDArray[np.uint8]:
    """Scale an RGB image to a width and height."""
    samples: torch.Tensor | NDArray[np.uint8]
    try:
        samples = _samples(image)
    except ValueError:
        # Pillow keeps images of more than 16 MB in several pieces, and would hold six bytes more
        # for each pixel to copy them into one. First across, then down, is how torch scales, too.
        narrow = [
            scaled_to(_samples(image.crop(box)), (size[0], box[3] - box[1]), method)
            for box in bands(image)
        ]
        samples = np.concatenate(narrow)
    return scaled_to(samples, size, method)


def _samples(image: Image.Image) -> torch.Tensor:
    """Share the memory of an RGB image: uint8 tensor (h, w, 4) whose fourth channel is nothing.

    Raises ValueError where the image is not in one piece.
    """
    import pyarrow
    from torch.utils.dlpack import from_dlpack

    samples = from_dlpack(pyarrow.array(image).values)
    return samples.view(image.height, image.width, 4)


def _box(
    place: tuple[int, int], size: int, scaled: tuple[int, int], original: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Return a square of the scaled image in the original's coordinates."""
    (left, top), (scaled_width, scaled_height), (width, height) = place, scaled, original
    return (
        left * width / scaled_width,
        top * height / scaled_height,
        min((left + size) * width / scaled_width, width),
        min((top + size) * height / scaled_height, height),
    )


def scaled_to(
    pixels: torch.Tensor | NDArray[np.uint8], size: tuple[int, int], method: str
) -> NDArray[np.uint8]:
    """Scale pixels (h, w, c) to a width and height, antialiased, in a third of Pillow's time."""
    import torch
    from torch.nn.functional import interpolate

    image = torch.as_tensor(pixels)[None].permute(0, 3, 1, 2)
    scaled = interpolate(image, size[::-1], mode=method, antialias=True)
    return cast("NDArray[np.uint8]", scaled[0].permute(1, 2, 0).numpy())
