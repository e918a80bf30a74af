"""Folders that are kept on object storage: worked on here, and written there.

A folder begins with what lies there. It is written there every half a minute and when its work is
done, so that what was killed goes on on another machine from at most that long before. Nobody
locks it: of two machines that do the same work at the same time, the last one's files stay.
"""

import hashlib
import json
import threading
from contextlib import suppress
from pathlib import Path

from extract.files.durable import UNFINISHED, cache_directory, write_whole
from extract.files.objects import ObjectPath, Place

# seconds between two uploads
INTERVAL = 30.0
# what can be made again, and is large
NOT_KEPT = "cache"
_mirrors: dict[Path, "Mirror"] = {}


class Mirror:
    """A folder of this machine, and its place on object storage.

    Parameters
    ----------
    there : on object storage

    Attributes
    ----------
    folder : of this machine, below ``cache_directory()``
    """

    def __init__(self, there: ObjectPath) -> None:
        digest = hashlib.sha256(str(there).encode()).hexdigest()[:16]
        self.there, self.folder = there, cache_directory() / "runs" / digest / there.name
        self._index = self.folder.parent / "index.json"
        self._lock = threading.Lock()
        # of each file: the tag of its object, and size and time of the file then
        self._known: dict[str, tuple[str, int, int]] = {}
        with suppress(OSError, ValueError):  # all is fetched anew
            known = json.loads(self._index.read_text())
            self._known = {name: (one[0], one[1], one[2]) for name, one in known.items()}

    def download(self) -> None:
        """Fetch what has changed there; what has only changed here stays.

        Raises
        ------
        OSError
            If the storage does not answer.
        """
        found = {str(path.relative_to(self.there)): (path, s) for path, s in self.there.walk()}
        for name, (path, stats) in found.items():
            file = self.folder / name
            if stats.e_tag != self._known.get(name, ("", 0, 0))[0] or not file.exists():
                write_whole(file, path.read_bytes())
                written = file.stat()
                self._known[name] = str(stats.e_tag), written.st_size, written.st_mtime_ns
        for name in [name for name in self._known if name not in found]:
            (self.folder / name).unlink(missing_ok=True)
            del self._known[name]
        self._write_index()

    def upload(self) -> None:
        """Write what has changed here; a result comes last, and with it all that it is of.

        Raises
        ------
        OSError
            If the storage does not answer.
        """
        with self._lock:
            here = {str(file.relative_to(self.folder)): file for file in self._files()}
            for name in sorted(here, key=lambda name: (name.endswith("result.json"), name)):
                # it may be gone by now, and is then deleted there the next time
                with suppress(FileNotFoundError):
                    status = here[name].stat()
                    seen = status.st_size, status.st_mtime_ns
                    if self._known.get(name, ("", 0, 0))[1:] != seen:
                        tag = (self.there / name).write_bytes(here[name].read_bytes())
                        self._known[name] = (tag, *seen)
            for name in [name for name in self._known if name not in here]:
                (self.there / name).unlink(missing_ok=True)
                del self._known[name]
            self._write_index()

    def keep(self) -> None:
        """Write it there now and then, for as long as this process lives."""

        def keep() -> None:
            while True:
                threading.Event().wait(INTERVAL)
                with suppress(OSError):  # the last upload tells
                    self.upload()

        threading.Thread(target=keep, daemon=True).start()

    def _files(self) -> list[Path]:
        return [
            file
            for file in self.folder.rglob("*")
            if file.is_file()
            and not file.name.endswith(UNFINISHED)
            and NOT_KEPT not in file.relative_to(self.folder).parts
        ]

    def _write_index(self) -> None:
        write_whole(self._index, json.dumps(self._known))


def working_folder(where: Place) -> Path:
    """Give the folder in which a run is worked on: where it is, or its mirror, kept from now on."""
    if isinstance(where, Path):
        return where
    mirror = Mirror(where)
    if mirror.folder not in _mirrors:
        mirror.download()
        mirror.keep()
        _mirrors[mirror.folder] = mirror
    return mirror.folder


def fetched(where: Place) -> Path:
    """Give a folder to read: where it is, or what lies there, fetched where it has changed."""
    if isinstance(where, Path):
        return where
    mirror = Mirror(where)
    mirror.download()
    return mirror.folder


def kept_at(path: Path) -> str:
    """Name the place that a file, or a folder, is kept at: itself, or that of its mirror."""
    for folder, mirror in _mirrors.items():
        if path.is_relative_to(folder):
            return str(mirror.there / str(path.relative_to(folder)))
    return str(path)


def upload(folder: Path) -> None:
    """Write a folder to its place on object storage, if it has one; raises as ``Mirror.upload``."""
    if folder in _mirrors:
        _mirrors[folder].upload()
