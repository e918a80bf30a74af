"""What the JSON in a store holds, as records that are checked when they are read.

A store is not trusted: what is not as these records say is damage, reported in one error.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from extract.images import CROPS, Preprocessing

# of the images, as the first convolution sees them
CHANNELS = (1, 3)
Count = Annotated[int, msgspec.Meta(ge=0)]
# by array: the CRC-32C of the committed rows of each chunk, or shard, as little-endian bytes
Checksums = dict[str, list[int]]


class Spec(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """What features mean; two sets with one spec may be mixed.

    Attributes
    ----------
    backbone : name of the network
    weights : SHA-256, in hex, of its tensors
    layer : that the features are of; ``pool`` is what the classifier would get
    size : int, pixels, side of the squares that the network sees
    crops : squares of each image that are averaged: 1, 5 or 10
    preprocessing : Preprocessing
    numerics : class of the numbers, such as ``fp32``
    network : SHA-256 of the network that ran in the module's place; None where the module ran
    channels : that the first convolution sees: 3, or 1
    """

    backbone: str
    weights: str
    layer: str
    size: int
    crops: int
    preprocessing: Preprocessing
    numerics: str
    network: str | None = None
    channels: int = 3

    def __post_init__(self) -> None:
        if self.size != self.preprocessing.size:
            raise ValueError(f"size is {self.size}, and {self.preprocessing.size} when prepared")
        if self.crops not in CROPS:
            raise ValueError(f"crops must be one of {CROPS}, got {self.crops}")
        if self.channels not in CHANNELS:
            raise ValueError(f"channels must be one of {CHANNELS}, got {self.channels}")

    @property
    def id(self) -> str:
        """The backbone's name and 12 hex digits of the SHA-256 of the spec's canonical JSON."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()[:12]
        return f"{self.backbone.replace('/', '_')}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """Return the values as plain JSON types."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain | {"preprocessing": self.preprocessing.to_dict()}


class ExtractionRun(msgspec.Struct, frozen=True, kw_only=True):
    """One extraction that added rows to a set.

    Attributes
    ----------
    engine, versions : what computed them
    threads : cores of the machine
    weights_source : where the network's weights came from
    taken_ns : when it began, nanoseconds since 1970
    rows : that it added
    """

    engine: str
    taken_ns: int
    versions: dict[str, str] = {}
    threads: int | None = None
    weights_source: str = ""
    rows: int = 0


class Commit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a commit has decided on for one set."""

    committed: Count
    runs: list[ExtractionRun]
    checksums: Checksums | None = None


class SetAttributes(msgspec.Struct, frozen=True):
    """Attributes of a set's group."""

    spec: Spec
    dim: Annotated[int, msgspec.Meta(ge=1)]
    committed: Count
    runs: list[ExtractionRun]
    weights_source: str
    damaged: list[tuple[Count, Count]]
    # stores of earlier versions have none
    checksums: Checksums | None = None


class RootAttributes(msgspec.Struct, frozen=True, omit_defaults=True):
    """Attributes of a store's root."""

    fx_layout: int | None = None
    last_extracted: str | None = None
    last_spec: Spec | None = None
    last_weights_source: str | None = None
    last_snapshot: str | None = None
    inode: int | None = None
    writer: str = "another process"
    commit: dict[str, Commit] = {}


@dataclass(frozen=True)
class Damage:
    """Committed rows that cannot be read back as they were written.

    Attributes
    ----------
    group : name of the sub-group
    start, stop : first row, and one past the last; both 0 where it is not known which
    reason : what is wrong, with the file's name
    """

    group: str
    start: int
    stop: int
    reason: str


def split_generation(name: str) -> tuple[str, int]:
    """Split a feature set's name: its spec's id, and its generation (0, or behind ``.g``)."""
    # a backbone's own name may hold a ".g", too
    found = re.fullmatch(r"(.+)\.g(\d+)", name)
    return (found[1], int(found[2])) if found else (name, 0)
