"""Networks kept with the features that they computed, in place of the backbone's own module.

They are in OpenVINO's format, which holds no code to run.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from extract.errors import FxError, one_line
from extract.files import read_regular, write_whole

SUFFIXES = (".xml", ".bin")
# bytes of a network's graph and of its tensors
LARGEST = 2**26, 2**30


@dataclass(frozen=True)
class StoredNetwork:
    """A network's two files.

    Attributes
    ----------
    graph : bytes, XML
    tensors : bytes
    """

    graph: bytes
    tensors: bytes

    @property
    def hash(self) -> str:
        """SHA-256, in hex, of the graph and its tensors."""
        digest = hashlib.sha256(self.graph)
        digest.update(self.tensors)
        return digest.hexdigest()

    def write(self, folder: Path) -> None:
        """Write the network's two files into a folder; raises as ``write_whole`` does."""
        for suffix, data in zip(SUFFIXES, (self.graph, self.tensors), strict=True):
            write_whole(folder / f"network{suffix}", data)

    @classmethod
    def read(cls, folder: Path) -> "StoredNetwork":
        """Read what ``write`` wrote.

        Raises
        ------
        FxError
            If a file is missing, is no regular file, or is larger than any network's.
        """
        found = []
        for suffix, largest in zip(SUFFIXES, LARGEST, strict=True):
            file = folder / f"network{suffix}"
            try:
                found.append(read_regular(file, largest))
            except OSError as error:
                raise FxError(
                    f"{file} cannot be read ({one_line(error)}); fit the head again"
                ) from error
        return cls(*found)
