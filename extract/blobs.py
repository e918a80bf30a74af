"""Bytes kept in a store as Zarr arrays with a checksum: snapshots, and networks in int8.

A blob is replaced whole: it is written beside the old one, synced, and renamed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from extract.errors import FxError
from extract.writer import UNFINISHED, sync


def write_blob(store: Path, kind: str, name: str, data: bytes, **attributes: Any) -> None:
    """Keep bytes under ``kind/name``; the caller holds the store's lock."""
    values = np.frombuffer(data, dtype=np.uint8)
    group = zarr.open_group(store, mode="r+").require_group(kind)
    folder = store / kind / name
    new, old = (folder.with_name(f"{name}.{age}{UNFINISHED}") for age in ("new", "old"))
    array = group.create_array(
        new.name,
        shape=values.shape,
        chunks=(max(1, len(values)),),
        dtype=values.dtype,
        compressors=[Crc32cCodec()],
        attributes=attributes,
        overwrite=True,
        config={"write_empty_chunks": True},
    )
    array[:] = values
    sync(*new.rglob("*"))
    if folder.exists():
        folder.replace(old)
    new.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    sync(folder)


def read_blob(store: Path, kind: str, name: str) -> bytes:
    """Read the bytes under ``kind/name``.

    Raises
    ------
    FxError
        If they are not there, or not as they were written.
    """
    folder = store / kind / name
    try:
        array = cast("zarr.Array[Any]", zarr.open(folder, mode="r"))
        # zarr would read zeros where the one chunk is missing
        if array.size and not (folder / "c" / "0").exists():
            raise ValueError("its bytes are missing")
        return np.asarray(array[:]).tobytes()
    except Exception as error:  # zarr raises a different class for each way to be damaged
        raise FxError(f"{folder} is damaged ({' '.join(str(error).split())})") from error


def blob_names(store: Path, kind: str) -> list[str]:
    """Names under a kind, sorted, damaged ones among them."""
    folders = (store / kind).glob("*") if (store / kind).exists() else ()
    return sorted(f.name for f in folders if f.is_dir() and not f.name.endswith(UNFINISHED))


def blob_attribute(store: Path, kind: str, name: str, attribute: str) -> Any:
    """Return an attribute of a blob, None where it cannot be read."""
    try:
        return zarr.open(store / kind / name, mode="r").attrs.get(attribute)
    except Exception:  # as in read_blob: damage is told by who reads the bytes
        return None
