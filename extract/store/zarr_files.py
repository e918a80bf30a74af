"""Zarr's groups and arrays on a disk: no pipe is waited for, and an update is one write."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from extract.errors import one_line
from extract.files import is_regular, sync

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


def open_group(path: Path, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open a group that is there.

    Raises
    ------
    Exception
        Of many classes, if there is none that can be read.
    """
    # consolidated metadata would hide what was written since
    return zarr.open_group(_store(path, mode), mode=mode, use_consolidated=False)


def open_array(path: Path) -> zarr.Array[Any]:
    """Open an array to read; raises as ``open_group`` does."""
    return zarr.open_array(_store(path, "r"), mode="r")


def _store(path: Path, mode: str) -> RegularFiles:
    if not path.is_dir():
        # Zarr would make one
        raise FileNotFoundError(f"{path} is missing")
    return RegularFiles(path, read_only=mode == "r")


def set_attributes(path: Path, attributes: dict[str, Any]) -> None:
    """Set some attributes of a group by one write, and wait until it is on the disk."""
    # not attrs.update, which is a write for each of them
    open_group(path, "r+").update_attributes(attributes)
    sync(path / "zarr.json")


def metadata_damage(folder: Path) -> str:
    """Say what is wrong with the metadata of a group or an array; nothing if nothing is."""
    file = folder / "zarr.json"
    if not file.exists() and not file.is_symlink():
        return f"{file} is missing"
    try:
        zarr.open(_store(folder, "r"), mode="r")
    except PermissionError:
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
