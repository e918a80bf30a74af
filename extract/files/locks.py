"""Locks on folders: of one writer, or of any number of readers; they end with their holder."""

import os
from pathlib import Path


def lock_folder(folder: Path, *, shared: bool, wait: bool = False) -> int:
    """Lock a folder, and return the descriptor whose closing lets go.

    The folder itself is locked, and no file in it: that works on a disk that is full or read-only,
    and a file would be foreign to Zarr, whose readers warn of it.

    Raises
    ------
    BlockingIOError
        If another process holds a lock that excludes this one, and this is not to wait for it.
    OSError
        If the folder cannot be opened. Where the file system has no locks, only a lock that is not
        shared fails.
    """
    # here: Windows has none
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BaseException as error:
        # no reason not to read
        if shared and isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            return descriptor
        os.close(descriptor)
        raise
    return descriptor
