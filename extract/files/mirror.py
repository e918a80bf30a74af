"""Folders that are kept on object storage: worked on here, and written there.

A folder begins with what lies there. It is written there every half a minute and when its work is
done, so that what was killed goes on on another machine from at most that long before. Nobody
locks it: of two machines that do the same work at the same time, the last one's files stay.
"""

import hashlib
import json
import threading
import time
from contextlib import suppress
from pathlib import Path

from extract.errors import FxError
from extract.files.durable import UNFINISHED, cache_directory, remove, write_whole
from extract.files.objects import ObjectPath, Place

# seconds between two uploads
INTERVAL = 30.0
# what can be made again, and is large
NOT_KEPT = "cache"
# of which a run has one
RUN_FILES = ("result.json", "head.json", "model.json")
_mirrors: dict[Path, "Mirror"] = {}


class Mirror:
    """A folder of this machine, and its place on object storage.

    Parameters
    ----------
    there : on object storage
    kind : of folder

    Attributes
    ----------
    folder : of this machine, below ``cache_directory()``
    """

    def __init__(self, there: ObjectPath, kind: str) -> None:
        digest = hashlib.sha256(str(there).encode()).hexdigest()[:16]
        self.there, self.folder = there, cache_directory() / kind / digest / there.name
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
        # an empty one is what some programs write for a folder
        found = {
            str(path.relative_to(self.there)): (path, stats)
            for path, stats in self.there.walk()
            if stats.st_size
        }
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

        Nothing is deleted there: what is missing here may have been cleared away as a cache.

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
            self._write_index()

    def delete(self, file: Path) -> None:
        """Delete a file here and there; raises OSError where the storage does not answer."""
        name = str(file.relative_to(self.folder))
        with self._lock:
            file.unlink(missing_ok=True)
            if name in self._known:
                (self.there / name).unlink(missing_ok=True)
                del self._known[name]
                self._write_index()

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
    mirror = Mirror(where, "runs")
    if mirror.folder not in _mirrors:
        mirror.download()
        # what an earlier command could not write there
        mirror.upload()
        if not _mirrors:
            threading.Thread(target=_keep, daemon=True).start()
        _mirrors[mirror.folder] = mirror
    return mirror.folder


def _keep() -> None:
    while True:
        time.sleep(INTERVAL)
        for mirror in list(_mirrors.values()):
            # the last upload tells
            with suppress(OSError, FxError):
                mirror.upload()


def fetched(where: Place) -> Path:
    """Give a folder to read: where it is, or what lies there, fetched where it has changed.

    Of a place that is no run nothing is fetched. The folder is another one than that in which a
    run is worked on.
    """
    if isinstance(where, Path):
        return where
    mirror = Mirror(where, "fetched")
    if any((where / name).is_file() for name in RUN_FILES):
        mirror.download()
    return mirror.folder


def kept_at(path: Path) -> str:
    """Name the place that a file, or a folder, is kept at: itself, or that of its mirror."""
    for folder, mirror in _mirrors.items():
        if path.is_relative_to(folder):
            return str(mirror.there / str(path.relative_to(folder)))
    return str(path)


def delete(path: Path) -> None:
    """Delete a file, or a folder, of a run, here and where it is kept; as ``Mirror.delete``."""
    for folder, mirror in _mirrors.items():
        if path.is_relative_to(folder):
            for file in [*path.rglob("*")] if path.is_dir() else [path]:
                if not file.is_dir():
                    mirror.delete(file)
    remove(path)


def upload(folder: Path) -> None:
    """Write a folder to its place on object storage, if it has one; raises as ``Mirror.upload``."""
    if folder in _mirrors:
        _mirrors[folder].upload()
