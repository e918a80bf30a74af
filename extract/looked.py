"""What reading one image gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from extract.image_row import ImageRow


@dataclass(frozen=True, slots=True)
class Looked:
    """One image read: its row, and its pixels where they are needed.

    Attributes
    ----------
    row : ImageRow
    pixels : uint8 array of shape (crops, size, size, 3), or None
    perceptual : perceptual hash, uint8 array of shape (32,), where it is asked for, or None
    """

    row: ImageRow
    pixels: NDArray[np.uint8] | None = None
    perceptual: NDArray[np.uint8] | None = None
