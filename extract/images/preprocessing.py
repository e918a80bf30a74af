"""What turns a decoded image into a network's input: it belongs to the weights."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

# Pixels a side: a network as small as efficientnet_lite0 takes 1.3 GB for one such image.
MAX_SIZE = 2048
# of a mean or a standard deviation
MOST = 10_000


@dataclass(frozen=True)
class Preprocessing:
    """The shorter side to ``resize``, the centre square of ``size``, pixels / 255, - mean, / std.

    Parameters
    ----------
    size : int, pixels
        Side of the square that the network sees; from 16 to 2,048.
    resize : int, pixels
        What the image's shorter side is scaled to before the square is cut out; at least `size`,
        and at most four times `size` or 4,096.
    interpolation : {"bilinear", "bicubic"}
        Always antialiased, as Pillow does it.
    mean, std : tuple of three floats
        For red, green and blue, on the scale where white is 1.
    version : int
        Rises whenever the code would make other pixels of the same file, so that features of
        the old pixels are not found any more.

    Raises
    ------
    ValueError
        If a value is impossible.
    """

    size: int
    resize: int
    interpolation: Literal["bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    version: int = 3

    def __post_init__(self) -> None:
        if self.size < 16:
            raise ValueError(f"size must be at least 16 pixels, got {self.size}")
        if self.size > MAX_SIZE:
            raise ValueError(f"size must be at most {MAX_SIZE} pixels, got {self.size}")
        if self.resize < self.size:
            raise ValueError(f"resize must be at least size ({self.size}), got {self.resize}")
        if self.resize > (most := min(4 * self.size, 2 * MAX_SIZE)):
            raise ValueError(f"resize must be at most {most}, got {self.resize}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation must be 'bilinear' or 'bicubic', got {self.interpolation!r}"
            )
        if len(self.mean) != 3 or not all(abs(value) < MOST for value in self.mean):
            raise ValueError(f"mean must be three numbers within {MOST:g}, got {self.mean}")
        if len(self.std) != 3 or not all(1 / MOST < value < MOST for value in self.std):
            raise ValueError(f"std must be three numbers from 1/{MOST:g} on, got {self.std}")
        if self.version < 1:
            raise ValueError(f"version must be at least 1, got {self.version}")

    def at_size(self, size: int) -> "Preprocessing":
        """Return the same for squares of `size` pixels; the ratio of resize to size is kept."""
        return replace(self, size=size, resize=round(size * self.resize / self.size))

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
