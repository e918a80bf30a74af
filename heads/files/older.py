"""Models of heads as older versions wrote them: `head.skops`, scikit-learn's objects as a whole.

Nothing is constructed until every type in the file is one that fx wrote.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

import skops.io
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    LabelBinarizer,
    Normalizer,
    StandardScaler,
)
from sklearn.svm import SVC

from extract.errors import FxError
from extract.files import stored_entries

# bytes of what says how a model is built
LARGEST_SCHEMA = 2**20

# What a file of ours holds, and by which of skops' loaders. skops trusts much more by default.
TRUSTED = {
    **{
        f"{one.__module__}.{one.__qualname__}": {"ObjectNode"}
        for one in (
            Pipeline,
            StandardScaler,
            Normalizer,
            FunctionTransformer,
            LogisticRegression,
            SVC,
            KNeighborsClassifier,
            NearestCentroid,
            Nystroem,
            RidgeClassifier,
            LabelBinarizer,
        )
    },
    **{f"numpy.{one}": {"NdArrayNode"} for one in ("ndarray", "float64", "float32", "int64")},
    "builtins.dict": {"DictNode"},
    "builtins.list": {"ListNode"},
    "builtins.tuple": {"TupleNode"},
    "builtins.str": {"JsonNode", "TypeNode"},
}


def check_types(path: Path, file: BinaryIO) -> None:
    """Check every type in a model's file before any is constructed.

    Raises
    ------
    FxError
        Where fx does not write one of them.
    BadZipFile, ValueError
        Where the file is damaged.
    """
    opened: Any = file  # skops' types want more of it than it uses
    schema = _schema(file, stored_entries(file))
    strange = _strange_types(schema) or skops.io.get_untrusted_types(file=opened)
    if strange:
        raise FxError(
            f"head refused; got the type {strange[0]} in {path}, which fx does not write; do "
            "not use this file unless you know who made it"
        )


def read_pipeline(file: BinaryIO) -> Any:
    """Construct what a file holds whose types have been checked."""
    file.seek(0)
    opened: Any = file
    return skops.io.load(opened, trusted=[])


def _schema(file: BinaryIO, entries: list[ZipInfo]) -> Any:
    """Read how a model is built; each of its arrays may be used once."""
    with ZipFile(file) as archive:
        (entry,) = (entry for entry in entries if entry.filename == "schema.json")
        if entry.file_size > LARGEST_SCHEMA:
            raise BadZipFile(f"a schema of {entry.file_size:,} bytes")
        schema = json.loads(archive.read(entry))
    used: dict[str, set[str]] = {}
    for node in _nodes(schema):
        if "file" in node:
            used.setdefault(str(node["file"]), set()).add(str(node.get("__id__")))
    if any(len(by) > 1 for by in used.values()):
        raise BadZipFile("arrays that are used several times")
    return schema


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Give every dictionary in a schema."""
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _strange_types(schema: Any) -> list[str]:
    """Name the types in a skops schema that are not in TRUSTED, or come by another loader."""
    strange = set()
    for node in _nodes(schema):
        if "__loader__" in node or "__class__" in node:
            name = f"{node.get('__module__')}.{node.get('__class__')}"
            if node.get("__loader__") not in TRUSTED.get(name, ()):
                strange.add(name)
    return sorted(strange)
