"""What an extraction did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ExtractResult:
    """What an extraction did; the fields are those of ``fx extract --json``.

    Attributes
    ----------
    store, backbone, spec, snapshot : names of what was filled; of several layers, the first's spec
    layers : a record for each layer: ``layer``, ``spec``, ``dim``
    images : images found
    new : images whose features were computed
    reused : images whose features were there
    failed, duplicates, conflicts, leaks : records, one an image
    splits : rows per split and class
    dim : length of a vector, of the first layer
    crops : squares of each image that a vector is the mean of
    seconds, images_per_second : wall time, and images looked at over it
    engine, precision : how the new ones were computed
    dtype : what they are kept in
    """

    store: str
    backbone: str
    spec: str
    layers: list[dict[str, Any]]
    snapshot: str
    images: int
    new: int
    reused: int
    failed: list[dict[str, str]]
    duplicates: list[dict[str, str]]
    conflicts: list[str]
    leaks: list[dict[str, str]]
    splits: dict[str, dict[str, int]]
    dim: int
    crops: int
    seconds: float
    images_per_second: float
    engine: str
    precision: str
    dtype: str
