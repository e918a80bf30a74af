"""A head on disk: `head.skops` (plain scikit-learn, no pickle) and `head.json` (all the rest).

Loading constructs nothing until every type in the file is one that fx itself writes, and the model
is the one that the record was written with.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo

import msgspec
import numpy as np
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
from extract.files import (
    LARGEST_RECORD,
    check_depth,
    check_room,
    decoded,
    open_regular,
    read_regular,
    refuse_holes,
    stored_entries,
    write_whole,
)
from heads.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration
from heads.evaluation import Evaluation
from heads.head import Head
from heads.kinds import KERNELS, NYSTROEM
from heads.search import Candidate

MODEL, RECORD = "head.skops", "head.json"
FORMAT = 3
# bytes: of a model, which keeps 200,000 rows at most, and of what tells how it is built
LARGEST_MODEL = 2**32
LARGEST_SCHEMA = 2**20

NORMALISERS = {"standard": StandardScaler, "l2": Normalizer, "none": FunctionTransformer}

# What a file of ours holds, and by which of skops' loaders. skops trusts much more by default.
TRUSTED = {
    **{
        f"{one.__module__}.{one.__qualname__}": {"ObjectNode"}
        for one in (
            Pipeline,
            *NORMALISERS.values(),
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


class _Format(msgspec.Struct, frozen=True):
    """Of what version a head.json is."""

    format: int


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What head.json says; the fields are those of `Head`, and what they may be."""

    kind: str
    kernel: str | None
    normalize: str
    class_weight: str | None
    classes: tuple[str, ...]
    c: Annotated[float, msgspec.Meta(gt=0)]
    folds: Annotated[int, msgspec.Meta(ge=0)]
    protocol: str | None
    n_train: Annotated[int, msgspec.Meta(ge=1)]
    notes: tuple[str, ...]
    calibration: Calibration
    search: tuple[Candidate, ...]
    metrics: dict[str, Any] | None
    spec: dict[str, Any]
    source: dict[str, Any]
    versions: dict[str, str] = {}
    # heads of older versions do not say
    model_sha256: str | None = None


def save_head(head: Head, directory: str | os.PathLike[str]) -> None:
    """Write a head into a directory, which is made where it is not there.

    Parameters
    ----------
    head : Head
    directory : path of a folder; a head in it is replaced

    Raises
    ------
    CannotWrite
        If there is no room for it, or nothing can be written there.
    """
    # where it is used: it imports all of scikit-learn, which takes as long as torch
    import skops.io

    folder = Path(directory)
    record = {
        "format": FORMAT,
        "kind": head.kind,
        "kernel": head.kernel,
        "normalize": head.normalize,
        "class_weight": head.class_weight,
        "classes": list(head.classes),
        "c": head.c,
        "folds": head.folds,
        "protocol": head.protocol,
        "n_train": head.n_train,
        "notes": list(head.notes),
        "calibration": head.calibration.as_dict(),
        "search": [candidate.as_dict() for candidate in head.search],
        "metrics": head.metrics.as_dict() if head.metrics else None,
        "spec": head.spec,
        "source": head.source,
        "versions": {name: version(name) for name in ("numpy", "scikit-learn", "skops")},
    }
    model = skops.io.dumps(head.pipeline)
    # a run that is killed between the two leaves no record with another's model
    record["model_sha256"] = hashlib.sha256(model).hexdigest()
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    # one without the other is no head
    check_room(folder, len(model) + len(text))
    write_whole(folder / MODEL, model)
    write_whole(folder / RECORD, text)


def load_head(directory: str | os.PathLike[str]) -> Head:
    """Read a head that `save_head` wrote.

    Raises
    ------
    FxError
        Where a file is missing or damaged, or holds a type that fx does not write.
    """
    folder = Path(directory)
    model, record = folder / MODEL, folder / RECORD
    fields = _read_record(record)
    pipeline = _read_model(model, fields.model_sha256)
    head = Head(
        kind=fields.kind,
        kernel=fields.kernel,
        normalize=fields.normalize,
        class_weight=fields.class_weight,
        classes=fields.classes,
        pipeline=pipeline,
        calibration=fields.calibration,
        c=fields.c,
        search=fields.search,
        folds=fields.folds,
        protocol=fields.protocol,
        notes=fields.notes,
        n_train=fields.n_train,
        spec=fields.spec,
        source=fields.source,
        metrics=None if fields.metrics is None else Evaluation.from_dict(fields.metrics),
    )
    if not _is_consistent(head) or not _predicts(head):
        raise FxError(_DOES_NOT_FIT.format(model))
    return head


def _read_record(path: Path) -> _Record:
    """Parse head.json."""
    with _told(path):
        data = read_regular(path, LARGEST_RECORD)
        found = decoded(data, _Format).format
        if found != FORMAT:
            raise ValueError(f"format {found!r} instead of {FORMAT}")
        fields = decoded(data, _Record)
        check_depth(fields.spec)
        check_depth(fields.source)
        if fields.metrics is not None:
            Evaluation.from_dict(fields.metrics)
        if not MIN_TEMPERATURE / 10 <= fields.calibration.temperature <= 10 * MAX_TEMPERATURE:
            raise ValueError(f"a temperature of {fields.calibration.temperature:g}")
        return fields


def _read_model(path: Path, sha256: str | None) -> Any:
    """Construct what head.skops holds, after every type in it has been checked."""
    import skops.io

    with _told(path), open_regular(path, LARGEST_MODEL) as (file, status):
        refuse_holes(status)
        opened: Any = file  # both libraries' types want less or more of it than they use
        schema = _schema(file, stored_entries(file))
        strange = _strange_types(schema) or skops.io.get_untrusted_types(file=opened)
        if strange:
            raise FxError(
                f"head refused; got the type {strange[0]} in {path}, which fx does not write; do "
                "not use this file unless you know who made it"
            )
        file.seek(0)
        if sha256 not in (None, hashlib.file_digest(opened, "sha256").hexdigest()):
            raise FxError(_DOES_NOT_FIT.format(path))
        return skops.io.load(opened, trusted=[])


_DOES_NOT_FIT = f"head cannot be read; got a model in {{}} that does not fit {RECORD}; fit it again"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Tell in one line what is wrong with a file of a head."""
    try:
        yield
    except FxError:
        raise
    except OSError as error:
        raise FxError(
            f"head cannot be read; got {error.strerror or error} for {path}; give the folder that "
            "`fx fit-head` wrote"
        ) from error
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise FxError(f"head cannot be read; got {reason} in {path}; fit it again") from error


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


def _is_consistent(head: Head) -> bool:
    """Whether model and record fit each other; libsvm would read past arrays of a wrong size."""
    pipeline, k = head.pipeline, len(head.classes)
    steps = 3 if head.kernel == NYSTROEM else 2
    if not isinstance(pipeline, Pipeline) or len(pipeline.steps) != steps:
        return False
    normaliser, classifier = pipeline[0], pipeline[-1]
    if type(normaliser) is not NORMALISERS.get(head.normalize):
        return False
    try:
        if np.shape(classifier.classes_) != (k,):
            return False
        d = pipeline.n_features_in_
        shapes: list[tuple[Any, tuple[int, ...]]] = []
        if head.normalize == "standard":
            shapes += [(normaliser.mean_, (d,)), (normaliser.scale_, (d,))]
        elif head.normalize == "none" and (normaliser.func, normaliser.inverse_func) != (
            None,
            None,
        ):
            return False
        if head.kind == "logreg" and isinstance(classifier, LogisticRegression):
            vectors = 1 if k == 2 else k
            shapes += [(classifier.coef_, (vectors, d)), (classifier.intercept_, (vectors,))]
        elif head.kind == "svm" and isinstance(classifier, RidgeClassifier):
            landmarks, vectors = pipeline[1], 1 if k == 2 else k
            m = landmarks.n_components
            if not isinstance(landmarks, Nystroem) or landmarks.kernel != "rbf":
                return False
            shapes += [
                (landmarks.components_, (m, d)),
                (landmarks.normalization_, (m, m)),
                # of two classes, scikit-learn's versions have one vector or a row of it
                (np.atleast_2d(classifier.coef_), (vectors, m)),
            ]
        elif head.kind == "svm" and isinstance(classifier, SVC):
            if classifier.kernel != head.kernel or head.kernel not in KERNELS:
                return False
            s = int(np.sum(classifier._n_support))
            if np.min(classifier._n_support) < 0:
                return False
            shapes += [
                (classifier.support_vectors_, (s, d)),
                (classifier._n_support, (k,)),
                (classifier.support_, (s,)),
                (classifier._dual_coef_, (k - 1, s)),
                (classifier._intercept_, (k * (k - 1) // 2,)),
            ]
        elif head.kind == "knn" and isinstance(classifier, KNeighborsClassifier):
            n = head.n_train
            shapes += [(classifier._fit_X, (n, d)), (classifier._y, (n,))]
        elif head.kind == "centroid" and isinstance(classifier, NearestCentroid):
            shapes += [(classifier.centroids_, (k, d))]
        else:
            return False
    # what is none of the arrays that it ought to be
    except (AttributeError, TypeError, ValueError):
        return False
    fits = all(np.shape(array) == shape for array, shape in shapes)
    real = all(np.asarray(array).dtype.kind in "fiu" for array, _ in shapes)
    return fits and real and list(classifier.classes_) == list(head.classes)


def _predicts(head: Head) -> bool:
    """Whether the head gives probabilities; what else its model may lack or be shows here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = head.predict_proba(np.zeros((2, head.dim), dtype=np.float32))
    except Exception:
        return False
    return found.shape == (2, len(head.classes)) and bool(np.isfinite(found).all())
