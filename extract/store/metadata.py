"""The root of a store: one write of its attributes decides what counts.

Readers of a damaged root go by what lies below it, and the next writer writes it anew.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from extract.errors import FxError
from extract.files import UNFINISHED, Lease, Place, remote, remove
from extract.store.blobs import SNAPSHOTS, blob_names, snapshots_by_age
from extract.store.catalogue import Catalogue, read_root
from extract.store.feature_set import FeatureSet
from extract.store.records import Commit, RootAttributes
from extract.store.zarr_files import (
    create_root,
    in_short,
    metadata_damage,
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

    def __init__(self, path: Place, catalogue: Catalogue) -> None:
        self.path = path
        self._catalogue = catalogue
        self._lease: Lease | None = None
        self._tag: str | None = None

    @contextmanager
    def written_under(self, lease: Lease) -> Iterator[None]:
        """Write only while a lease is held, and only in the place of what this process has written.

        From the first write on, one that has lost its lease can commit nothing.
        """
        self._lease, self._tag = lease, None
        try:
            yield
        finally:
            self._lease = None

    def check(self) -> None:
        """Raise OSError where the lease that this process writes under has been lost."""
        if self._lease:
            self._lease.check()

    def is_empty(self) -> bool:
        """Whether nothing lies here yet: an empty folder, a new disk, a run killed at once."""
        return (remote(self.path) or self.path.is_dir()) and all(
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
        root, damage = self._read()
        if damage and not self._catalogue.names() and not blob_names(self.path, SNAPSHOTS):
            raise FxError(
                f"{self.path} is not a feature store: {damage}; "
                "give the folder that an extraction wrote"
            )
        if root.fx_layout is None:
            raise FxError(
                f"{self.path} is a Zarr group, but not a feature store; "
                "give the folder that an extraction wrote"
            )
        if root.fx_layout not in LAYOUTS:
            raise FxError(
                f"{self.path} is not a feature store of this version; got layout "
                f"{root.fx_layout!r}, expected {LAYOUT}; extract into a new store"
            )

    def attributes(self) -> RootAttributes:
        """Attributes of the root; where it is damaged, what follows from what lies below."""
        return self._read()[0]

    def damage(self) -> str:
        """Say what is wrong with the root's metadata; nothing if nothing is."""
        return self._read()[1]

    def _read(self) -> tuple[RootAttributes, str]:
        """Attributes, and what is wrong with them: they then follow from what lies below."""
        if self.is_empty():
            return RootAttributes(fx_layout=LAYOUT), ""
        file, damage = self.path / "zarr.json", metadata_damage(self.path)
        if not damage:
            try:
                root = read_root(self.path)
            except ValueError as error:
                damage = f"{file} is damaged ({in_short(error)})"
            else:
                if root.fx_layout is not None or not self._catalogue.sets():
                    return root, ""
                damage = f"{file} is damaged (its attributes are lost)"
        newest = self._catalogue.newest()
        last = {} if newest is None else as_last_extracted(newest)
        snapshots = snapshots_by_age(self.path)
        last_snapshot = snapshots[-1] if snapshots else None
        return RootAttributes(fx_layout=LAYOUT, last_snapshot=last_snapshot, **last), damage

    def update(self, **attributes: Any) -> None:
        """Set some attributes by one write; the caller holds the lock."""
        attributes = msgspec.to_builtins(attributes)
        self.check()
        root, damage = self._read()
        if damage or self.is_empty():
            known = msgspec.to_builtins(root)
            remove(self.path / "zarr.json")
            create_root(self.path, known | attributes)
            self._tag = None
            return
        try:
            self._tag = set_attributes(self.path, attributes, self._tag)
        except FileExistsError:
            raise FxError(f"{self.path} is being written by {self._read()[0].writer}") from None

    def publish(self, changes: dict[str, Commit]) -> None:
        """Make commits of several sets count all at once: the root names them first."""
        self.update(commit=changes)
        self._catalogue.write_commits(changes)


def as_last_extracted(feature_set: FeatureSet) -> dict[str, Any]:
    """Attributes of the root that name what is extracted next by default."""
    return {
        "last_extracted": feature_set.name,
        # also here: the set itself may come to be damaged
        "last_spec": feature_set.spec,
        "last_weights_source": feature_set.weights_source,
    }
