"""The root of a store: one write of its attributes decides what counts.

Readers of a damaged root go by what lies below it, and the next writer writes it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import zarr

from extract.errors import FxError
from extract.files import UNFINISHED, remove, sync
from extract.store.blobs import SNAPSHOTS, blob_names, snapshots_by_age
from extract.store.catalogue import Catalogue, read_root
from extract.store.feature_set import FeatureSet
from extract.store.records import Commit, RootAttributes
from extract.store.zarr_files import (
    RegularFiles,
    in_short,
    metadata_damage,
    open_group,
    set_attributes,
)

# 2: commits name the checksums of their chunks; stores of layout 1 are read, and become of layout 2
# when they are next written to
LAYOUT, LAYOUTS = 2, (1, 2)
# what a new disk has in its root
_OF_THE_SYSTEM = ("lost+found",)


class StoreMetadata:
    """Attributes of a store's root.

    Parameters
    ----------
    path : where the store lies
    catalogue : its feature sets
    """

    def __init__(self, path: Path, catalogue: Catalogue) -> None:
        self.path = path
        self._catalogue = catalogue

    def is_empty(self) -> bool:
        """Whether nothing lies here yet: an empty folder, a new disk, a run killed at once."""
        return self.path.is_dir() and all(
            child.name.endswith(UNFINISHED)
            or child.name.startswith(".")
            or child.name in _OF_THE_SYSTEM
            for child in self.path.iterdir()
        )

    def check_layout(self) -> None:
        """Refuse a folder that is no store, or one of another layout.

        Raises
        ------
        FxError
            If it is.
        """
        if self.is_empty():
            return
        try:
            layout = open_group(self.path).attrs.asdict().get("fx_layout")
        except PermissionError:
            raise
        except Exception as error:  # zarr raises a different class for each way to be none
            if not self._catalogue.names() and not blob_names(self.path, SNAPSHOTS):
                raise FxError(
                    f"{self.path} is not a feature store ({type(error).__name__}); "
                    "give the folder that an extraction wrote"
                ) from error
            # what it holds can be read, and the next writer writes the root anew
            layout = LAYOUT
        if layout is None and self._catalogue.sets():
            layout = LAYOUT  # as above: a flipped bit may cost only the attributes
        if layout is None:
            raise FxError(
                f"{self.path} is a Zarr group, but not a feature store; "
                "give the folder that an extraction wrote"
            )
        if layout not in LAYOUTS:
            raise FxError(
                f"{self.path} is not a feature store of this version; got layout {layout!r}, "
                f"expected {LAYOUT}; extract into a new store"
            )

    def attributes(self) -> RootAttributes:
        """Attributes of the root; where it is damaged, what follows from what lies below."""
        if self.is_empty():
            return RootAttributes(fx_layout=LAYOUT)
        if not self.damage():
            return read_root(self.path)
        newest = self._catalogue.newest()
        last = {} if newest is None else as_last_extracted(newest)
        snapshots = snapshots_by_age(self.path)
        return RootAttributes(
            fx_layout=LAYOUT, last_snapshot=snapshots[-1] if snapshots else None, **last
        )

    def update(self, **attributes: Any) -> None:
        """Set some attributes by one write; the caller holds the lock."""
        attributes = msgspec.to_builtins(attributes)
        if self.is_empty() or self.damage():
            known = msgspec.to_builtins(self.attributes())
            remove(self.path / "zarr.json")
            zarr.create_group(RegularFiles(self.path), attributes=known | attributes)
            sync(self.path / "zarr.json")
        else:
            set_attributes(self.path, attributes)

    def damage(self) -> str:
        """Say what is wrong with the root's metadata; nothing if nothing is."""
        if self.is_empty():
            return ""
        if damage := metadata_damage(self.path):
            return damage
        file = self.path / "zarr.json"
        try:
            root = read_root(self.path)
        except (msgspec.ValidationError, ValueError) as error:
            return f"{file} is damaged ({in_short(error)})"
        if root.fx_layout is None and self._catalogue.sets():
            return f"{file} is damaged (its attributes are lost)"
        return ""

    def publish(self, changes: dict[str, Commit]) -> None:
        """Make commits of several sets count all at once: the root names them first."""
        self.update(commit=changes)
        for name, commit in changes.items():
            set_attributes(self.path / name, msgspec.to_builtins(commit))


def as_last_extracted(feature_set: FeatureSet) -> dict[str, Any]:
    """Attributes of the root that name what is extracted next by default."""
    return {
        "last_extracted": feature_set.name,
        # also here: the set itself may come to be damaged
        "last_spec": feature_set.spec,
        "last_weights_source": feature_set.weights_source,
    }
