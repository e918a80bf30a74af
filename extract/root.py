"""Root of a store: one write of its attributes decides what counts.

Readers of a damaged root go by what lies below it, and the next writer writes it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr

from extract.blobs import SNAPSHOTS, blob_names, snapshots_by_age
from extract.catalogue import Catalogue, written_root
from extract.errors import FxError
from extract.feature_set import FeatureSet, metadata_damage
from extract.files import sync

LAYOUT = 1


class Root:
    """Attributes of a store's root.

    Parameters
    ----------
    path : where the store lies
    catalogue : its feature sets
    """

    def __init__(self, path: Path, catalogue: Catalogue) -> None:
        self.path = path
        self._catalogue = catalogue

    def check_layout(self) -> None:
        """Refuse a folder that is no store, or one of another layout.

        Raises
        ------
        FxError
            If it is.
        """
        try:
            layout = written_root(self.path).get("fx_layout")
        except PermissionError:
            raise
        except Exception as error:  # zarr raises a different class for each way to be none
            if not self._catalogue.names() and not blob_names(self.path, SNAPSHOTS):
                raise FxError(
                    f"{self.path} is not a feature store ({type(error).__name__}); "
                    "give the folder that fx extract wrote"
                ) from error
            # what it holds can be read, and the next writer writes the root anew
            layout = LAYOUT
        if layout is None and self._catalogue.sets():
            layout = LAYOUT  # as above: a flipped bit may cost the attributes alone
        if layout is None:
            raise FxError(
                f"{self.path} is a Zarr group, but not a feature store; "
                "give the folder that fx extract wrote"
            )
        if layout != LAYOUT:
            raise FxError(
                f"{self.path} is not a feature store of this version; got layout {layout!r}, "
                f"expected {LAYOUT}; extract into a new one with --store"
            )

    def attributes(self) -> dict[str, Any]:
        """Attributes of the root; where it is damaged, what can be told from what lies below."""
        if not self.damage():
            return written_root(self.path)
        attributes: dict[str, Any] = {"fx_layout": LAYOUT}
        newest = self._catalogue.newest()
        if newest is not None:
            attributes |= as_last_extracted(newest)
        snapshots = snapshots_by_age(self.path)
        if snapshots:
            attributes["last_snapshot"] = snapshots[-1]
        return attributes

    def update(self, **attributes: Any) -> None:
        """Set some attributes; the caller holds the lock."""
        file = self.path / "zarr.json"
        if self.damage():
            attributes = self.attributes() | attributes
            file.unlink(missing_ok=True)
            zarr.create_group(self.path, attributes=attributes)
        else:
            zarr.open_group(self.path, mode="r+").attrs.update(attributes)
        sync(file)

    def damage(self) -> str:
        """Say what is wrong with the root's metadata; nothing if nothing is."""
        damage = metadata_damage(self.path)
        if not damage and "fx_layout" not in written_root(self.path) and self._catalogue.sets():
            return f"{self.path / 'zarr.json'} is damaged (its attributes are lost)"
        return damage

    def publish(self, changes: dict[str, dict[str, Any]]) -> None:
        """Make new attributes of several sets count all at once: the root names them first."""
        self.update(commit=changes)
        for name, attributes in changes.items():
            zarr.open_group(self.path / name, mode="r+").attrs.update(attributes)
            sync(self.path / name / "zarr.json")


def as_last_extracted(feature_set: FeatureSet, weights_source: str | None = None) -> dict[str, Any]:
    """Attributes of the root that tell what is extracted next where nothing is asked for."""
    return {
        "last_extracted": feature_set.name,
        # also here: the set itself may come to be damaged
        "last_spec": feature_set.spec,
        "last_weights_source": weights_source or feature_set.weights_source,
    }
