"""Bytes kept in a store as Zarr arrays with a checksum: snapshots, their leaks, and networks.

A blob is replaced whole: it is written beside the old one, synced, and renamed. Between the two
renames that this takes, the old one is still found.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from zarr.codecs import Crc32cCodec

from extract.errors import FxError
from extract.files import (
    UNFINISHED,
    Place,
    StorageFailure,
    disk_full_as_fx_error,
    move,
    remote,
    remove,
    sync,
)
from extract.store.feature_set import checksum_of
from extract.store.records import Damage
from extract.store.zarr_files import LARGEST, in_short, metadata_damage, open_array, open_group

SNAPSHOTS, NETWORKS, LEAKS = "snapshots", "networks", "leaks"
OLD, NEW = f".old{UNFINISHED}", f".new{UNFINISHED}"


def write_blob(store: Place, kind: str, name: str, data: bytes, **attributes: Any) -> None:
    """Keep bytes under ``kind/name``; the caller holds the store's lock."""
    values, folder = np.frombuffer(data, dtype=np.uint8), store / kind / name
    new, old = folder.with_name(name + NEW), folder.with_name(name + OLD)
    with disk_full_as_fx_error(store, needs=len(data)):
        if kind_damage(store, kind):
            remove(store / kind / "zarr.json")
        remove(new)
        try:
            open_group(store, "r+").require_group(kind).create_array(
                new.name,
                data=values,
                chunks=(max(1, len(values)),),
                compressors=[Crc32cCodec()],
                attributes={**attributes, "checksum": checksum_of(values)},
                config={"write_empty_chunks": True},
            )
            if isinstance(new, Path):
                sync(*new.rglob("*"))
        except BaseException:
            # the disk may be full of it
            with suppress(OSError):
                remove(new)
            raise
        if folder.exists():
            move(folder, old)
        move(new, folder)
        with suppress(OSError):
            remove(old)
        sync(folder)


def read_blob(store: Place, kind: str, name: str) -> bytes:
    """Read the bytes under ``kind/name``.

    Raises
    ------
    FxError
        If they are not there, or not as they were written.
    """
    folder = _folder(store, kind, name)
    damage, file = metadata_damage(folder), folder / "c" / "0"
    try:
        if damage:
            raise FxError(damage)
        array = open_array(folder)
        # zarr would read zeros where the one chunk is missing
        if array.size and not file.exists():
            raise FxError(f"{file} is missing")
        if array.ndim != 1 or array.dtype != np.uint8 or array.nbytes > LARGEST:
            raise FxError(f"{folder} is damaged (it has {array.shape} numbers of {array.dtype})")
        values = np.asarray(array[:])
        # those of earlier versions have none
        if array.attrs.get("checksum", checksum_of(values)) != checksum_of(values):
            raise FxError(f"{file} is damaged (it is not what was written under this name)")
        return values.tobytes()
    except (FxError, StorageFailure):
        raise
    except Exception as error:  # zarr raises a different class for each way to be damaged
        raise FxError(f"{file} is damaged ({in_short(error)})") from error


def drop_blob(store: Place, kind: str, name: str) -> None:
    """Delete what is kept under ``kind/name``; the caller holds the store's lock."""
    doomed = store / kind / f"{name}{NEW}"
    # first out of sight, so that a kill in between leaves no half of it
    move(_folder(store, kind, name), doomed)
    remove(doomed)


def put_back_blobs(store: Place) -> None:
    """Put back what a killed run was about to replace; the caller holds the store's lock."""
    for kind in (SNAPSHOTS, NETWORKS, LEAKS):
        for old in (store / kind).glob(f"*{OLD}"):
            folder = old.with_name(old.name.removesuffix(OLD))
            if not _is_whole(folder):
                move(old, folder)


def blob_names(store: Place, kind: str) -> list[str]:
    """Names under a kind, sorted, damaged ones among them."""
    folders = (store / kind).glob("*") if (store / kind).exists() else ()
    names = {folder.name.removesuffix(OLD) for folder in folders if folder.is_dir()}
    return sorted(name for name in names if not name.endswith(UNFINISHED))


def snapshots_by_age(store: Place) -> list[str]:
    """Names of the snapshots, oldest first; damaged ones before all others."""

    def taken(name: str) -> int:
        try:
            return int(open_array(_folder(store, SNAPSHOTS, name)).attrs["taken_ns"])  # type: ignore[arg-type]
        except StorageFailure:
            raise
        except Exception:  # as in read_blob: damage is reported when the bytes are read
            return 0

    return sorted(blob_names(store, SNAPSHOTS), key=taken)


def kind_damage(store: Place, kind: str) -> str:
    """Say what is wrong with the metadata of a kind; nothing where there is no such kind."""
    return metadata_damage(store / kind) if (store / kind).exists() else ""


def damaged_blobs(store: Place, kind: str) -> list[Damage]:
    """Read everything of a kind back, and list what fails."""
    reason = kind_damage(store, kind)
    found = [Damage(kind, 0, 0, reason)] if reason else []
    for name in blob_names(store, kind):
        try:
            read_blob(store, kind, name)
        except FxError as error:
            found.append(Damage(f"{kind}/{name}", 0, 0, str(error)))
    return found


def _folder(store: Place, kind: str, name: str) -> Place:
    folder = store / kind / name
    old = folder.with_name(name + OLD)
    return old if not _is_whole(folder) and old.exists() else folder


def _is_whole(folder: Place) -> bool:
    """Whether it is there; on object storage, where its metadata are written last, all of it."""
    return (folder / "zarr.json" if remote(folder) else folder).exists()
