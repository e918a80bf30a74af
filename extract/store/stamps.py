"""Stamps: which files need not be read again, since a snapshot tells what they hold.

A stamp is trusted where the file had lain unchanged for a while when it was taken, and the store
lies where it lay then.
"""

from __future__ import annotations

from contextlib import suppress

from extract.errors import FxError
from extract.images import FileStamp, ImageSource, Snapshot
from extract.store.store import FeatureStore

# A file changed this shortly before it was looked at could change again unnoticed.
RACY_NS = 2_000_000_000


def known_file_stats(
    store: FeatureStore, source: ImageSource
) -> dict[str, tuple[FileStamp, bytes]]:
    """Find the stamps of the last snapshot of the same root, without those too young to trust."""
    root = str(source.root.resolve())
    if store.was_copied:
        return {}
    for name in reversed(store.snapshots()):
        with suppress(FxError):  # a damaged snapshot only costs hashing
            snapshot = Snapshot.from_parquet(*store.read_snapshot(name))
            if snapshot.root == root:
                return {
                    row.path: (row.stamp, row.key)
                    for row in snapshot.rows
                    if row.readable and row.stamp and _settled(row.stamp, snapshot.taken_ns)
                }
    return {}


def _settled(stamp: FileStamp, taken_ns: int) -> bool:
    return max(stamp.mtime_ns, stamp.ctime_ns) < taken_ns - RACY_NS
