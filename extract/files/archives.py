"""Untrusted zip archives: the directory is checked before a library reads them.

PyTorch, NumPy and skops write archives without compression, so that reading one takes no more
memory than the file has bytes. An archive that claims otherwise is not one of theirs.
"""

import os
import struct
from typing import BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

# bytes; of 60 to 100 for each entry
LARGEST_DIRECTORY = 2**22
_END, _LOCATOR, _END_64 = b"PK\5\6", b"PK\6\7", b"PK\6\6"
_ENCRYPTED = 1


def stored_entries(file: BinaryIO) -> list[ZipInfo]:
    """List the entries of an archive that compresses none and claims no more than it has.

    Parameters
    ----------
    file : opened to read; nothing but its directory is read

    Raises
    ------
    BadZipFile
        If it is no such archive, or two readers might find two directories in it.
    """
    size = file.seek(0, os.SEEK_END)
    begin = _begin_of_directory(file, size)
    with ZipFile(file) as archive:
        entries = archive.infolist()
    for entry in entries:
        if entry.compress_type != ZIP_STORED or entry.flag_bits & _ENCRYPTED:
            raise BadZipFile(f"{entry.filename[:80]!r} is compressed")
        if entry.header_offset + entry.file_size > begin or entry.file_size != entry.compress_size:
            raise BadZipFile(f"{entry.filename[:80]!r} claims more than the file has")
    if sum(entry.file_size for entry in entries) > size:
        raise BadZipFile("its entries claim more than the file has")
    if len({entry.filename for entry in entries}) < len(entries):
        raise BadZipFile("two of its entries have one name")
    return entries


def _begin_of_directory(file: BinaryIO, size: int) -> int:
    """Where the directory begins, which must end where the record of its end does."""
    place = max(0, size - 98)
    file.seek(place)
    tail = file.read(98).rjust(98, b"\0")
    # both without what may lie between them: readers differ in where they then look
    older, locator, newer = tail[76:], tail[56:76], tail[:56]
    if older[:4] != _END or older[20:] != b"\0\0":
        raise BadZipFile("no directory at its end")
    length, begin = struct.unpack("<LL", older[12:20])
    end = size - 22
    if locator[:4] == _LOCATOR:
        end = size - 98
        if newer[:4] != _END_64 or struct.unpack("<Q", locator[8:16])[0] != end:
            raise BadZipFile("two directories")
        length, begin = struct.unpack("<QQ", newer[40:56])
    if begin + length != end:
        raise BadZipFile("no directory at its end")
    if length > LARGEST_DIRECTORY:
        raise BadZipFile(f"a directory of {length:,} bytes")
    return int(begin)
