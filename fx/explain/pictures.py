"""Pictures of explanations: heat maps over images, for pages and as one PNG an image."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from extract.files import Place
from fx.output import printable
from fx.thumbnails import NO_IMAGE
from heads.plots import new_figure, save_png

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS = "inferno"  # whose brightness rises evenly, also for the colour-blind
STRONGEST = 0.7  # share of the colour where a map is 1
DPI = 150
LONGEST_NAME = 24  # of a class, in a PNG


def overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lay a heat map over an image.

    Parameters
    ----------
    pixels : uint8 array of shape (size, size, 3)
    heat : float32 array of shape (size, size), from 0 to 1; where it is 0, the image is grey

    Returns
    -------
    uint8 array of shape (size, size, 3)
    """
    from matplotlib import colormaps

    share = STRONGEST * heat[..., None]
    grey = pixels.mean(axis=2, keepdims=True)
    laid = (1 - share) * grey + share * 255 * colormaps[COLOURS](heat)[..., :3]
    return np.asarray(laid.round(), np.uint8)


def data_uri(pixels: NDArray[np.uint8]) -> str:
    """Make a JPEG of an image, uint8 of shape (h, w, 3), as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def save_picture(path: Place, pictures: Sequence[tuple[str, str, NDArray[np.uint8] | str]]) -> None:
    """Draw images beside each other, each below two lines, as one PNG.

    Parameters
    ----------
    path : file to write
    pictures : what it is; a class, whose name is cut where it is long; uint8 array of shape
        (h, w, 3) or data URI, of which an empty one is said to be gone
    """
    count = len(pictures)
    figure = new_figure(path.parent, figsize=(1.9 * count, 2.3), layout="constrained")
    places = figure.subplots(1, count, squeeze=False)[0]
    for axes, (what, name, picture) in zip(places, pictures, strict=True):
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        # matplotlib takes $…$ for mathematics
        axes.set_title(f"{what}\n{printable(short)}".replace("$", r"\$"), fontsize=8, loc="left")
        axes.set_axis_off()
        if isinstance(picture, str) and picture == NO_IMAGE:
            axes.text(0.5, 0.5, "gone", ha="center", va="center", color="#55606b")
            continue
        image = _decoded(picture) if isinstance(picture, str) else picture
        axes.imshow(image, interpolation="bilinear")
    with warnings.catch_warnings():
        # letters that the font lacks are boxes; the page has them
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        save_png(figure, path, dpi=DPI)


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
