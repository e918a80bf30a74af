"""Locks: of one writer, or of any number of readers; they end with their holder.

The operating system ends the lock on a folder. On object storage a lock is an object that its
holder writes anew every ten seconds; where it has not been for a minute and a half, the holder is
dead, or no longer writes, and another may take its place.
"""

import json
import os
import threading
import time
import uuid
import warnings
from contextlib import suppress
from pathlib import Path

from extract.files.objects import RETRY, TIMEOUT, ObjectPath, StorageFailure

# seconds after which a holder that has not renewed its lease has lost it; and between renewals
LEASE, RENEWAL = 90.0, 10.0
# seconds that a write may be under way: so long before the end of its lease a holder stops
UNDER_WAY = (RETRY + TIMEOUT).total_seconds()
# that goes on while the machine sleeps, where there is one
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


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


class Lease:
    """The lock of one writer on object storage.

    Whoever has lost it finds out before the next commit (`check`). Clocks are not compared: a
    waiting process looks whether the object changes.

    Parameters
    ----------
    place : what is locked; the object lies beside it
    wait : for as long as another process renews it

    Raises
    ------
    BlockingIOError
        If another process renews it, and this is not to wait.
    OSError
        If the storage fails.
    """

    def __init__(self, place: ObjectPath, *, wait: bool = False) -> None:
        self._file = ObjectPath(place.base, f"{place.key}.lock")
        self._token, self._count = uuid.uuid4().hex, 0
        self._lost, self._ended = False, threading.Event()
        self._take(wait)
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def _take(self, wait: bool) -> None:
        seen, since = None, _now()
        while True:
            # it may be let go, or taken by yet another process, at any moment
            with suppress(FileExistsError, FileNotFoundError):
                tag = self._tag_there()
                if tag is None or (tag == seen and _now() - since > LEASE):
                    self._write(tag)
                    return
                if seen is None:
                    warnings.warn(
                        f"{self._file} is held: waiting up to {LEASE:.0f} s to see whether its "
                        "holder is alive",
                        stacklevel=2,
                    )
                elif tag != seen and not wait:
                    raise BlockingIOError
                if tag != seen:
                    seen, since = tag, _now()
            time.sleep(min(1.0, RENEWAL / 4))

    def _tag_there(self) -> str | None:
        try:
            return self._file.stat().e_tag
        except FileNotFoundError:
            return None

    def _write(self, tag: str | None) -> None:
        begun = _now()
        self._count += 1
        content = json.dumps({"holder": self._token, "count": self._count}).encode()
        self._tag = self._file.write_bytes(content, e_tag=tag, new=tag is None)
        self._renewed = begun

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL):
            try:
                self._write(self._tag)
            except (FileExistsError, FileNotFoundError):
                self._lost = True
                return
            except OSError:
                # the storage may answer again before the lease ends
                continue

    def check(self) -> None:
        """Make sure that it is still held.

        Raises
        ------
        OSError
            If another process may have taken it.
        """
        if self._lost or _now() - self._renewed > LEASE - UNDER_WAY:
            raise StorageFailure(f"the lock {self._file} was lost: the storage was out of reach")

    def close(self) -> None:
        """Let go of it."""
        self._ended.set()
        self._thread.join(1)
        # where it is lost, it is another's; and who waits for it finds out that nobody renews it
        with suppress(OSError):
            if not self._lost and self._tag_there() == self._tag:
                self._file.unlink()


def _now() -> float:
    return time.clock_gettime(_CLOCK)
