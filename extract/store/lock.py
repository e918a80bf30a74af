"""One writer at a time: it holds the store's folder, and first clears up after a killed one."""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from extract.errors import FxError
from extract.files import UNFINISHED, disk_full_as_fx_error, remove
from extract.store.blobs import put_back_blobs
from extract.store.catalogue import Catalogue
from extract.store.metadata import StoreMetadata
from extract.store.zarr_files import set_attributes


@contextmanager
def locked(root: StoreMetadata, catalogue: Catalogue) -> Iterator[None]:
    """Hold a store for writing; see ``FeatureStore.lock``."""
    # on the folder itself: a lock file inside would be foreign to Zarr, one beside it litter
    descriptor = os.open(root.path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FxError(
                f"{root.path} is being written by {root.attributes().writer}; wait for it, "
                "or give another `store`"
            ) from None
        with disk_full_as_fx_error(root.path):
            _clear_after_a_killed_writer(root, catalogue)
            yield
    finally:
        os.close(descriptor)


def _clear_after_a_killed_writer(root: StoreMetadata, catalogue: Catalogue) -> None:
    put_back_blobs(root.path)
    for leftover in [*root.path.rglob(f"*{UNFINISHED}")]:
        remove(leftover)
    names = catalogue.names()
    # a set that was deleted may come again, and has no rows then
    decided = {name: a for name, a in catalogue.decided().items() if name in names}
    for name, commit in decided.items():
        with suppress(FxError):  # a set that cannot be read is begun anew
            feature_set = catalogue.open(name, write=True)
            if feature_set.group.attrs.asdict()["committed"] != feature_set.committed:
                set_attributes(feature_set.path, msgspec.to_builtins(commit))
            feature_set.close()
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    holder = f"process {os.getpid()} on {socket.gethostname()} since {since} ({command})"
    # the disk may be full, and this be the collection of garbage that makes room
    with suppress(OSError):
        root.update(writer=holder, commit=decided)
