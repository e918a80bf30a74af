"""A head on disk: `head.skops` (plain scikit-learn, no pickle) and `head.json` (all the rest).

Loading constructs nothing until every type in the file is one that fx itself writes.
"""

import io
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZipFile

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
from extract.files import check_room, write_whole
from heads.calibration import Calibration
from heads.head import Head
from heads.metrics import Metrics
from heads.nystroem import NYSTROEM
from heads.search import Candidate
from heads.support_vectors import KERNELS

MODEL, RECORD = "head.skops", "head.json"
FORMAT = 3

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
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    model = skops.io.dumps(head.pipeline)
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
    pipeline = _read_model(model)
    try:
        head = Head(
            kind=fields["kind"],
            kernel=fields["kernel"],
            normalize=fields["normalize"],
            class_weight=fields["class_weight"],
            classes=tuple(fields["classes"]),
            pipeline=pipeline,
            calibration=Calibration(**fields["calibration"]),
            c=fields["c"],
            search=tuple(Candidate(**candidate) for candidate in fields["search"]),
            folds=fields["folds"],
            protocol=fields["protocol"],
            notes=tuple(fields["notes"]),
            n_train=fields["n_train"],
            spec=fields["spec"],
            source=fields["source"],
            metrics=Metrics(**fields["metrics"]) if fields["metrics"] else None,
        )
    except (KeyError, TypeError) as error:
        raise FxError(f"head cannot be read; got {error!r} in {record}; fit it again") from error
    if not _is_consistent(head):
        raise FxError(
            f"head cannot be read; got a model in {model} that does not fit {record.name}"
            "; fit it again"
        )
    return head


def _read(path: Path) -> bytes:
    """Read a file of a head, or raise FxError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FxError(
            f"head cannot be read; got {error.strerror} for {path}; give the folder that "
            "`fx fit-head` wrote"
        ) from error


def _read_record(path: Path) -> dict[str, Any]:
    """Parse head.json."""
    try:
        fields = json.loads(_read(path))
        if fields["format"] == FORMAT:
            return dict(fields)
        got = f"format {fields['format']!r} instead of {FORMAT}"
    except (ValueError, KeyError, TypeError) as error:
        got = f"{error!r}"
    raise FxError(f"head cannot be read; got {got} in {path}; fit it again")


def _read_model(path: Path) -> Any:
    """Construct what head.skops holds, after every type in it has been checked."""
    import skops.io

    data = _read(path)
    try:
        schema = json.loads(ZipFile(io.BytesIO(data)).read("schema.json"))
        strange = _strange_types(schema) or skops.io.get_untrusted_types(data=data)
    except Exception as error:  # a damaged archive fails in as many ways as there are bytes
        raise FxError(f"head cannot be read; got {error!r} from {path}; fit it again") from error
    if strange:
        raise FxError(
            f"head refused; got the type {strange[0]} in {path}, which fx does not write; do not "
            "use this file unless you know who made it"
        )
    try:
        return skops.io.loads(data, trusted=[])
    except Exception as error:
        raise FxError(f"head cannot be read; got {error!r} from {path}; fit it again") from error


def _strange_types(schema: Any) -> list[str]:
    """Name the types in a skops schema that are not in TRUSTED, or come by another loader."""
    strange, nodes = set(), [schema]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            nodes.extend(node.values())
            if "__loader__" in node or "__class__" in node:
                name = f"{node.get('__module__')}.{node.get('__class__')}"
                if node.get("__loader__") not in TRUSTED.get(name, ()):
                    strange.add(name)
        elif isinstance(node, list):
            nodes.extend(node)
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
        d = pipeline.n_features_in_
        shapes: list[tuple[Any, tuple[int, ...]]] = [(classifier.classes_, (k,))]
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
                (classifier.coef_, (vectors, m)),
            ]
        elif head.kind == "svm" and isinstance(classifier, SVC):
            if classifier.kernel != head.kernel or head.kernel not in KERNELS:
                return False
            s = int(np.sum(classifier._n_support))
            shapes += [
                (classifier.support_vectors_, (s, d)),
                (classifier._n_support, (k,)),
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
    except AttributeError:
        return False
    return all(np.shape(array) == shape for array, shape in shapes) and (
        list(classifier.classes_) == list(head.classes)
    )
