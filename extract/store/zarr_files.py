"""Zarr's groups and arrays in a place: no pipe is waited for, and an update is one write."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ObjectStore

from extract.errors import one_line
from extract.files import (
    ObjectPath,
    Place,
    StorageFailure,
    as_os_error,
    is_regular,
    storage_of,
    sync,
)

# bytes of a file that is read into memory: a shard has 8 MB, of an old store up to half a gigabyte
LARGEST = 1 << 30


class RegularFiles(LocalStore):
    """A folder as Zarr reads it, but for what is no regular file, or too large for memory."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Read a file as ``LocalStore`` does; raises OSError where it refuses one."""
        self._refuse(key)
        return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of files as ``LocalStore`` does; raises OSError where it refuses one."""
        wanted = list(key_ranges)
        for key, _ in wanted:
            self._refuse(key)
        return await super().get_partial_values(prototype, wanted)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Read a file as ``LocalStore`` does; raises OSError where it refuses one."""
        self._refuse(key)
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)

    def _refuse(self, key: str) -> None:
        path = self.root / key
        if path.is_dir() or not (path.exists() or path.is_symlink()):
            return
        if not is_regular(path):
            raise OSError(f"{path} is no regular file")
        if path.stat().st_size > LARGEST:
            raise OSError(f"{path} is too large: {path.stat().st_size:,} bytes")


class Objects(ObjectStore[Any]):
    """A bucket as Zarr sees it; what its storage does not answer is an OSError, and no damage."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Read an object as ``ObjectStore`` does; raises OSError where the storage fails."""
        with as_os_error(key):
            return await super().get(key, prototype, byte_range)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Read parts of objects as ``ObjectStore`` does; raises OSError where the storage fails."""
        wanted = list(key_ranges)
        with as_os_error(", ".join(sorted({key for key, _ in wanted}))):
            return await super().get_partial_values(prototype, wanted)

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object as ``ObjectStore`` does; raises OSError where the storage fails."""
        with as_os_error(key):
            await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object where there is none; raises OSError where the storage fails."""
        with as_os_error(key):
            await super().set_if_not_exists(key, value)

    async def exists(self, key: str) -> bool:
        """Look whether there is an object; raises OSError where the storage fails."""
        with as_os_error(key):
            return await super().exists(key)


def open_group(path: Place, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open a group that is there.

    Raises
    ------
    Exception
        Of many classes, if there is none that can be read.
    """
    # consolidated metadata would hide what was written since
    return zarr.open_group(_store(path, mode), mode=mode, use_consolidated=False, zarr_format=3)


def create_root(path: Place, attributes: dict[str, Any]) -> None:
    """Make the group of a store; raises ContainsGroupError where there is one."""
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)
    zarr.create_group(_store(path, "r+"), attributes=attributes)
    sync(path / "zarr.json")


def open_array(path: Place) -> zarr.Array[Any]:
    """Open an array to read; raises as ``open_group`` does."""
    return zarr.open_array(_store(path, "r"), mode="r", zarr_format=3)


def _store(path: Place, mode: str) -> RegularFiles | Objects:
    if isinstance(path, ObjectPath):
        # not a path within the bucket: above it Zarr would make groups, too
        return Objects(storage_of(path.base, path.key), read_only=mode == "r")
    if not path.is_dir():
        # Zarr would make one
        raise FileNotFoundError(f"{path} is missing")
    return RegularFiles(path, read_only=mode == "r")


def set_attributes(path: Place, attributes: dict[str, Any], e_tag: str | None = None) -> str | None:
    """Set some attributes of a group by one write, and wait until it is on the disk.

    Parameters
    ----------
    path : of the group
    attributes : JSON values by name
    e_tag : on object storage, that its metadata had when they were last written; None to read them
        now

    Returns
    -------
    the tag that they have now; None on a disk

    Raises
    ------
    FileExistsError
        If, on object storage, another process has written them since.
    """
    if isinstance(path, ObjectPath):
        return _change_metadata(
            path, lambda metadata: metadata.setdefault("attributes", {}).update(attributes), e_tag
        )
    # not attrs.update, which is a write for each of them
    open_group(path, "r+").update_attributes(attributes)
    sync(path / "zarr.json")
    return None


def lengthen(path: ObjectPath, rows: int) -> None:
    """Give an array on object storage at least so many rows.

    A writer that has lost its lock, and whose request comes late, makes none shorter.

    Raises
    ------
    FileExistsError
        If another process has changed it meanwhile.
    """

    def lengthened(metadata: dict[str, Any]) -> None:
        metadata["shape"][0] = max(rows, metadata["shape"][0])

    _change_metadata(path, lengthened)


def _change_metadata(
    path: ObjectPath, change: Callable[[dict[str, Any]], None], e_tag: str | None = None
) -> str:
    """Write the metadata of a group or an array anew, unless another process has done so."""
    file = path / "zarr.json"
    data, stats = file.read_with_stats(LARGEST)
    metadata = json.loads(data)
    change(metadata)
    return file.write_bytes(json.dumps(metadata).encode(), e_tag=e_tag or stats.e_tag)


def metadata_damage(folder: Place) -> str:
    """Say what is wrong with the metadata of a group or an array; nothing if nothing is."""
    file = folder / "zarr.json"
    if not file.exists() and not file.is_symlink():
        return f"{file} is missing"
    try:
        zarr.open(_store(folder, "r"), mode="r", zarr_format=3)
    except (PermissionError, StorageFailure):
        raise
    except Exception as error:  # zarr raises a different class for each way to be damaged
        return f"{file} is damaged ({in_short(error)})"
    return ""


def in_short(error: Exception) -> str:
    """Say in a few words what a reader of Zarr found wrong."""
    text = one_line(error)
    if text.startswith("Stored and computed checksum"):
        return "its checksum does not match"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError | RecursionError):
        return "it is no whole JSON file"
    if isinstance(error, OSError):
        return text
    return f"{type(error).__name__}: {text}"
