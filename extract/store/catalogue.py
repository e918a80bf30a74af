"""Feature sets of a store, found by name, by spec and by generation.

The newest generation of a spec is the one that counts. What a commit has decided on counts for a
set, too, where it is not yet written there.
"""

import os
import re
from collections.abc import Collection
from contextlib import suppress

import msgspec

from extract.errors import FxError
from extract.files import (
    UNFINISHED,
    ObjectPath,
    Place,
    StorageFailure,
    lock_folder,
    move,
    remote,
    remove,
    sync,
)
from extract.store.feature_set import ROW_ARRAYS, FeatureSet
from extract.store.records import (
    Commit,
    Damage,
    ExtractionRun,
    RootAttributes,
    Spec,
    split_generation,
)
from extract.store.writer import FeatureWriter, copy_rows, create_set
from extract.store.zarr_files import in_short, metadata_damage, open_group, set_attributes

# nanoseconds for which a reader of a set on object storage may take
READ_FOR = 24 * 3600 * 10**9


class Catalogue:
    """The feature sets that lie in a store's folder, as they are whenever it is asked.

    Parameters
    ----------
    path : where the store lies
    """

    def __init__(self, path: Place) -> None:
        self.path = path

    def decided(self) -> dict[str, Commit]:
        """What a commit has decided on, by set: nothing where the root is damaged."""
        try:
            return dict(read_root(self.path).commit)
        except StorageFailure:
            raise
        except Exception:
            return {}

    def names(self) -> list[str]:
        """Names of all feature sets, those that cannot be read among them."""
        # on object storage they are, and to ask would be a request each
        found = (one for one in self.path.glob("*-*") if remote(one) or one.is_dir())
        pattern = re.compile(r".+-[0-9a-f]{12}(\.g\d+)?")
        return sorted(folder.name for folder in found if pattern.fullmatch(folder.name))

    def open(self, name: str, *, write: bool = False) -> FeatureSet:
        """Open a set.

        Raises
        ------
        FxError
            If it cannot be read; the message says what will become of it.
        """
        path = self.path / name
        try:
            # opened anew: a zarr group keeps the attributes that it read first; and before the
            # root: a commit that comes in between is then seen in one of the two
            group = open_group(path, "r+" if write else "r")
            decided = self.decided().get(name)
            feature_set = FeatureSet(group, path, decided)
            if _spec_of(name) != feature_set.spec.id:
                raise ValueError("its spec is not the one that its name is made of")
            return feature_set
        except StorageFailure:
            raise
        except Exception as error:
            folders = (path, *(path / array for array in ROW_ARRAYS))
            reasons = filter(None, map(metadata_damage, folders))
            reason = next(reasons, f"{path} cannot be read ({in_short(error)})")
            newest = self._newest_generation(name)
            todo = "the next extraction of its images computes them again"
            if newest != name:
                todo = f"{newest} has taken its place, and collecting garbage drops it"
            raise FxError(f"{reason}; {todo}") from error

    def sets(self) -> list[FeatureSet]:
        """All feature sets that can be read, in the order of their names."""
        found = []
        for name in self.names():
            with suppress(FxError):  # ``verify`` reports these
                found.append(self.open(name))
        return found

    def broken(self) -> dict[str, str]:
        """Names of the feature sets that cannot be read, and why."""
        found = {}
        for name in self.names():
            try:
                self.open(name)
            except FxError as error:
                found[name] = str(error)
        return found

    def newest(self) -> FeatureSet | None:
        """The set that rows were added to last; None where there is none."""
        return max(self.sets(), key=lambda s: s.last_written, default=None)

    def find(self, spec: Spec) -> FeatureSet | None:
        """Find the newest generation of a spec's features; None if there is none to be read."""
        # twice: a collection of garbage may be about to switch to another generation
        for _ in range(2):
            newest = max(self._generations(spec.id), key=_number, default=None)
            with suppress(FxError):
                return None if newest is None else self.open(newest)
        # an older one holds other rows, or ones that were found to differ
        return None

    def _generations(self, of: str) -> list[str]:
        return [name for name in self.names() if _spec_of(name) == of]

    def new_generation(
        self,
        spec: Spec,
        dim: int,
        run: ExtractionRun,
        dtype: str,
        *,
        copied: FeatureSet | None = None,
        keys: Collection[bytes] | None = None,
    ) -> str:
        """Make a set for a spec beside those there are, in one step, and return its name.

        Parameters
        ----------
        spec, dim, run, dtype : as in ``FeatureStore.start``
        copied : rows to begin with
        keys : which of them; None for all
        """
        before = [_number(name) for name in self._generations(spec.id)]
        name = spec.id + (f".g{max(before) + 1}" if before else "")
        unfinished = f"{name}{UNFINISHED}"
        try:
            group = create_set(self.path, unfinished, spec, dim, dtype, run.weights_source)
            if copied is not None:
                fresh = FeatureSet(group, self.path / unfinished, None)
                wanted = copied.rows if keys is None else keys
                copy_rows(copied, FeatureWriter([fresh], self.write_commits, run), wanted)
                fresh.close()
            move(self.path / unfinished, self.path / name)
        except BaseException:
            # the disk may be full of it
            with suppress(OSError):
                remove(self.path / unfinished)
            raise
        sync(self.path / name)
        return name

    def write_commits(self, changes: dict[str, Commit]) -> None:
        """Write what commits decided on to the sets themselves."""
        for name, commit in changes.items():
            set_attributes(self.path / name, msgspec.to_builtins(commit))

    def drop(self, name: str) -> bool:
        """Delete a set unless it is being read: readers hold a shared lock on its folder.

        On object storage there are no such locks: a set stays while one of its spec has been
        written to in the last day.
        """
        folder = self.path / name
        if isinstance(folder, ObjectPath):
            heads = [self.path / one / "zarr.json" for one in self._generations(_spec_of(name))]
            written = [head.stat().st_mtime_ns for head in heads if head.is_file()]
            # by the storage's clock: who holds the lock has just written the root
            now = (self.path / "zarr.json").stat().st_mtime_ns
            if max(written, default=0) > now - READ_FOR:
                return False
            remove(folder)
            return True
        try:
            descriptor = lock_folder(folder, shared=False)
        except BlockingIOError:
            return False
        try:
            # first out of sight, so that a kill in between leaves no half of a set
            doomed = folder.with_name(f"{name}{UNFINISHED}")
            folder.replace(doomed)
            remove(doomed)
        finally:
            os.close(descriptor)
        return True

    def verify(self) -> list[Damage]:
        """Read every set back and mark what is damaged; the caller holds the lock."""
        found = [Damage(name, 0, 0, reason) for name, reason in self.broken().items()]
        for name in [s.name for s in self.sets()]:
            if name != self._newest_generation(name):
                # no reader will open it any more
                continue
            feature_set = self.open(name, write=True)
            rows = feature_set.damage()
            spans = sorted({(d.start, d.stop) for d in rows})
            if spans != feature_set.damaged:
                with suppress(OSError):  # reported even where nothing can be written
                    set_attributes(feature_set.path, {"damaged": spans})
            found += rows
        return found

    def _newest_generation(self, name: str) -> str:
        return max(self._generations(_spec_of(name)), default=name, key=_number)


def read_root(store: Place) -> RootAttributes:
    """Read the attributes of a store's root as they stand there.

    Raises
    ------
    Exception
        Of many classes, where they cannot be read or are none of a store.
    """
    return msgspec.convert(open_group(store).attrs.asdict(), RootAttributes)


def _spec_of(name: str) -> str:
    return split_generation(name)[0]


def _number(name: str) -> int:
    return split_generation(name)[1]
