"""What is on the disk for good, and what is not yet."""

import os
from pathlib import Path

# how the names end of what zarr, or fx itself, has not finished writing
UNFINISHED = ".partial"


def sync(*files: Path) -> None:
    """Wait until files, and the folders' entries that name them, are on the disk."""
    for path in {*files, *(file.parent for file in files)}:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
