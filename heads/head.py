"""A fitted head: what it is, how it was chosen, and the probabilities that it gives."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from extract.errors import FxError
from heads.calibration import Calibration
from heads.evaluation import Evaluation, evaluate
from heads.kinds import HEADS
from heads.learner import Candidate, Fold, Learner

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FLOAT_CLASSES = frozenset({"fp32", "bf16", "fp16"})


@dataclass(frozen=True, eq=False)
class OutOfFoldPredictions:
    """What models that had not seen rows said of them, while the head was chosen.

    Attributes
    ----------
    splits : list of (fitting rows, held-out rows), int arrays
    rows : int array of shape (n,), positions among the training rows, then the validation rows
    labels : int array of shape (n,), positions in the head's classes
    probabilities : float64 array of shape (n, k), calibrated
    """

    splits: list[Fold]
    rows: NDArray[np.intp]
    labels: NDArray[np.intp]
    probabilities: NDArray[np.float64]


class Source(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to compute a head's features anew.

    Attributes
    ----------
    weights : where the network's weights came from; of joined features those of each set
    snapshot : name of the images' state
    images : its fingerprint
    """

    weights: tuple[str, ...] = ()
    snapshot: str = ""
    images: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Turn into what JSON can hold: joined sets stand in a list, ``features``."""
        rest: dict[str, Any] = msgspec.to_builtins(self)
        sets = [{"weights": one} for one in rest.pop("weights", ())]
        return (sets[0] if len(sets) == 1 else {"features": sets} if sets else {}) | rest

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> Source:
        """Read what `as_dict` gave; raises ValueError where something is of another type."""
        sets = record.get("features", [record] if "weights" in record else [])
        weights = [one.weights for one in msgspec.convert(sets, list[_SetSource])]
        return msgspec.convert({**record, "weights": weights}, cls)


class _SetSource(msgspec.Struct, frozen=True):
    """Where the network of one set of features comes from, in JSON."""

    weights: str


@dataclass(frozen=True, eq=False)
class Head:
    """A classifier on features, with its calibration and the record of its choice.

    Attributes
    ----------
    kind : name of a head in ``heads.kinds.HEADS``
    kernel : name of a kernel, of a head that has them, else None
    normalize : "standard", "l2" or "none", what the pipeline begins with
    class_weight : "balanced" or None
    classes : tuple of str, sorted; columns of probabilities are in this order
    pipeline : scikit-learn Pipeline of a normaliser and a plain classifier (with a map between
        them where the kernel is approximated), fitted on the training rows, without the temperature
    calibration : Calibration, fitted on rows that the scoring models had not seen
    c : float, the inverse penalty; of nearest neighbours their number
    search : tuple of Candidate, ascending in C, of one normalisation and kernel after the other
    folds : int, of the cross-validation; 0 where validation rows were given
    notes : tuple of str, whatever was not as asked for
    n_train : int, rows that it was fitted on
    spec : dict that JSON can hold, what the features mean; not interpreted but for `check_spec`
    source : Source, how to compute such features anew; not interpreted
    metrics : Evaluation on test rows, once `tested`
    held_out : OutOfFoldPredictions, of a head that was just fitted; not kept on the disk
    """

    kind: str
    kernel: str | None
    normalize: str
    class_weight: str | None
    classes: tuple[str, ...]
    pipeline: Pipeline
    calibration: Calibration
    c: float
    search: tuple[Candidate, ...]
    folds: int
    notes: tuple[str, ...]
    n_train: int
    spec: dict[str, Any] = field(default_factory=dict)
    source: Source = field(default_factory=Source)
    metrics: Evaluation | None = None
    held_out: OutOfFoldPredictions | None = None

    @property
    def dim(self) -> int:
        """Features per image that the head takes."""
        return int(self.pipeline.n_features_in_)

    @property
    def parameters(self) -> int:
        """Numbers that the fit chose: weights, dual coefficients, centroids; or rows kept."""
        return self.learner.parameters(self.pipeline)

    @property
    def learner(self) -> Learner:
        """What fits such a head."""
        return HEADS[self.kind].learner(self.normalize, self.class_weight, self.kernel)

    def scores(self, features: ArrayLike) -> NDArray[np.float64]:
        """Score features before calibration: softmax of the scores is the uncalibrated head.

        Parameters
        ----------
        features : float array of shape (n, d)

        Returns
        -------
        scores : float64 array of shape (n, k)

        Raises
        ------
        FxError
            Where the features have another width, or are not finite.
        """
        rows = checked_features(features)
        if rows.shape[1] != self.dim:
            raise FxError(
                f"features do not fit the head; got {rows.shape[1]} a row where it takes "
                f"{self.dim}; extract with the backbone that it was fitted on"
            )
        if not len(rows):
            return np.zeros((0, len(self.classes)))
        return self.learner.scores(self.pipeline, rows)

    def predict_proba(self, features: ArrayLike) -> NDArray[np.float64]:
        """Give calibrated probabilities, float64 of shape (n, k), for features of shape (n, d)."""
        return np.asarray(softmax(self.scores(features) / self.calibration.temperature, axis=1))

    def predict(self, features: ArrayLike) -> NDArray[np.str_]:
        """Name the most probable class: str of shape (n,), for features of shape (n, d)."""
        best = self.predict_proba(features).argmax(axis=1)
        return np.asarray(np.array(self.classes)[best])

    def as_linear(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Fold standardisation, weights and temperature of a linear head into one layer.

        Returns
        -------
        weight : float32 array of shape (k, d)
        bias : float32 array of shape (k,)
            softmax(features @ weight.T + bias) equals `predict_proba(features)`.

        Raises
        ------
        ValueError
            Where the head is not linear, or divides rows by their length.
        """
        if not self.learner.is_linear or self.normalize == "l2":
            raise ValueError(
                "only a linear head on standardised or raw features is one linear layer, not "
                f"{self.kind} with normalisation {self.normalize}"
            )
        scaler, classifier = self.pipeline[0], self.pipeline[-1]
        weight, bias = classifier.coef_, classifier.intercept_
        if len(weight) == 1:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        # W ((x - mean) / scale) + b = (W / scale) x + (b - (W / scale) mean)
        if self.normalize == "standard":
            weight = weight / scaler.scale_
            bias = bias - weight @ scaler.mean_
        temperature = self.calibration.temperature
        return (weight / temperature).astype(np.float32), (bias / temperature).astype(np.float32)

    def tested(
        self, features: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None
    ) -> Head:
        """Measure on test rows, and return the head with its `metrics`.

        Parameters
        ----------
        features : float array of shape (n, d)
        labels : str array of shape (n,), all among `classes`
        groups : array of shape (n,), optional; rows of one value (a patient, a video) are alike

        Raises
        ------
        FxError
            Where there is no row, or one of a class that the head does not know.
        """
        return self.measured(self.scores(features), labels, groups=groups)

    def measured(
        self, scores: NDArray[np.float64], labels: ArrayLike, *, groups: ArrayLike | None = None
    ) -> Head:
        """Measure on test rows, as `tested` does, by their scores: float64 of shape (n, k)."""
        y = positions(labels, self.classes, of="test rows")
        calibrated = softmax(scores / self.calibration.temperature, axis=1)
        measured = evaluate(
            calibrated, y, self.classes, uncalibrated=softmax(scores, axis=1), groups=groups
        )
        return replace(self, metrics=measured)

    def check_spec(self, spec: dict[str, Any]) -> None:
        """Refuse features that mean something else than those that the head was fitted on.

        Features that differ in their float class alone (fp32, bf16, fp16) are taken with a warning.

        Raises
        ------
        FxError
            Where a field differs; it names the first one, and both values.
        """
        ours, theirs = (_flat(json.loads(json.dumps(one))) for one in (self.spec, spec))
        names = [*ours, *(name for name in theirs if name not in ours)]
        differing = [name for name in names if ours.get(name) != theirs.get(name)]
        if not differing:
            return
        first = differing[0]
        got = f"got {first} {theirs.get(first)!r} where the head has {ours.get(first)!r}"
        if {name.rpartition(".")[2] for name in differing} == {"numerics"} and {
            ours.get(first),
            theirs.get(first),
        } <= FLOAT_CLASSES:
            warnings.warn(f"features of another precision; {got}", UserWarning, stacklevel=2)
            return
        raise FxError(
            f"features of another spec; {got}; extract with the head's spec, or fit a head on these"
        )


def checked_features(features: ArrayLike) -> NDArray[np.float32]:
    """Turn features into contiguous float32 of shape (n, d), or raise FxError if not finite."""
    rows = np.ascontiguousarray(features, dtype=np.float32)
    if rows.ndim != 2:
        raise FxError(
            f"features must be a matrix; got shape {rows.shape}; give one row of numbers per image"
        )
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise FxError(
            f"features are not finite; got NaN or infinity in {len(bad)} rows, the first of them "
            f"row {bad[0]}; extract them again with `precision=fp32`"
        )
    return rows


def positions(labels: ArrayLike, classes: tuple[str, ...], *, of: str) -> NDArray[np.intp]:
    """Turn class names into positions in `classes`, or raise FxError at an unknown one."""
    place = {name: position for position, name in enumerate(classes)}
    names = np.asarray(labels, dtype=str).tolist()
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise FxError(
            f"{of} have a class without training rows; got {unknown[0]!r}; add training images of "
            "it or leave it out"
        )
    return np.array([place[name] for name in names], dtype=np.intp)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Spell nested fields as outer.inner, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
            value = {str(number): one for number, one in enumerate(value, 1)}
        flat |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return flat
