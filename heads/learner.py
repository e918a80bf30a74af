"""What a head is made of: a learner, which is searched, fitted, and gives scores and its state.

A learner has one number to choose: C, the inverse penalty, or how many nearest neighbours vote. Its
scores have shape (m, k), and softmax of them, at a temperature, is its probabilities.
Normalisation belongs to the learner: it is fitted on the fitting rows alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from extract.errors import FxError
from extract.imports import in_place_of
from heads.calibration import Calibration, calibrate

# scikit-learn imports pandas and makes no use of it: 0.3 s of CPU. `heads.kinds.HEADS` sees to it
# that this module is imported before others that need scikit-learn.
with in_place_of("pandas"):
    from sklearn.base import BaseEstimator
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

Features = NDArray[np.float32]
Labels = NDArray[np.intp]
Scores = NDArray[np.float64]
State = dict[str, NDArray[Any]]
Fold = tuple[Labels, Labels]  # rows that fit, rows that are held out

if TYPE_CHECKING:
    from heads.solver import RowsOnDisk

AUTO = "auto"
STEP = float(np.sqrt(10))  # between neighbouring values of C
STANDARDISED_AT_ONCE = 4096  # rows
# that may be given: beyond them, and far beyond all use, single precision overflows
LEAST_C, MOST_C = 1e-10, 1e10
NORMALISERS = {"standard": StandardScaler, "l2": Normalizer, "none": FunctionTransformer}


@dataclass(frozen=True)
class Trial:
    """Rows and folds that every candidate of a search is fitted and scored on.

    Attributes
    ----------
    features : float32 array of shape (n, d)
    labels : int array of shape (n,), every class in every fold's fitting side
    splits : the folds, the same for all candidates
    jobs : int, threads
    tick : called with the number of fits that are newly done
    """

    features: Features
    labels: Labels
    splits: Sequence[Fold]
    jobs: int
    tick: Callable[[int], None]


@dataclass(frozen=True)
class Candidate:
    """One value of C and what it reached on held-out rows.

    Attributes
    ----------
    c : float; of nearest neighbours, how many
    log_loss : float, mean over the folds: what is chosen by
    log_loss_std : float, standard deviation over the folds; 0 for a single one
    accuracy : float, mean over the folds
    normalize : "standard", "l2" or "none"
    kernel : of an SVM, else None
    """

    c: float
    log_loss: float
    log_loss_std: float
    accuracy: float
    normalize: str = "standard"
    kernel: str | None = None


@dataclass
class Learner(ABC):
    """A head whose choices are made, before it is fitted.

    A pipeline that it fits has the steps ``normalize`` and ``classify``; others may lie between.

    Parameters
    ----------
    normalize : "standard", "l2" or "none"
    class_weight : "balanced" or None
    kernel : str, of a head that has kernels

    Attributes
    ----------
    calibrated_search : bool, whether scores mean nothing before they have a temperature
    extensible : bool, whether the grid goes on where the best value lies at its end
    is_linear : bool, whether the classifier's `coef_` and `intercept_` give the scores
    grid_label : str, what the grid's values are, on the axis of a plot
    choice_text : str, format of the value that was chosen, in a line of text; empty for none
    weights : names of the arrays of the classifier that hold the numbers that the fit chose
    fitted : the arrays that it has found, besides the normaliser's: ``step.attribute``, a blank,
        and a letter for each dimension, see `sizes`
    """

    normalize: str = "standard"
    class_weight: str | None = None
    kernel: str | None = None

    calibrated_search = False
    extensible = False
    is_linear = False
    grid_label = "C (less penalty to the right)"
    choice_text = "C {:.3g}"
    weights: ClassVar[Sequence[str]] = ("coef_", "intercept_")
    fitted: ClassVar[Sequence[str]] = ("classify.coef_ vd", "classify.intercept_ v")

    @abstractmethod
    def estimator(self, c: float) -> BaseEstimator:
        """Make the classifier, not fitted."""

    def grid(self, features: Features, fewest: int) -> list[float]:
        """Ascending values to try, of C in equal steps of its logarithm; here nothing is chosen.

        Parameters
        ----------
        features : float32 array of shape (n, d)
        fewest : rows of the smallest fitting side
        """
        return [1.0]

    def check_c(self, c: float, fewest: int) -> None:
        """Raise FxError where a value that was given cannot be.

        Parameters
        ----------
        c : the value
        fewest : rows of the smallest fitting side
        """
        if not LEAST_C <= c <= MOST_C:
            raise FxError(
                f"C must be from {LEAST_C:g} to {MOST_C:g}; got {c:g}; leave it out to have it "
                "searched"
            )

    def held_out_scores(self, trial: Trial, cs: Sequence[float]) -> list[list[Scores]]:
        """Fit every fold for every value, and score the rows that the fold holds out.

        Parameters
        ----------
        trial : Trial
        cs : ascending values of the grid

        Returns
        -------
        scores : for every value, for every fold, a float64 array of shape (n_held_out, k)
        """
        scores: list[list[Scores]] = [[] for _ in cs]
        for fitting, rest in trial.splits:
            for of_c, c in zip(scores, cs, strict=True):
                known, labels = trial.features[fitting], trial.labels[fitting]
                pipeline = self.fit(known, labels, c, jobs=trial.jobs)
                of_c.append(self.scores(pipeline, trial.features[rest]))
                trial.tick(1)
        return scores

    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Fit the head that is delivered: a normaliser, then a plain scikit-learn classifier."""
        normaliser = fit_normaliser(self.normalize, features)
        classifier = self.estimator(c).fit(normaliser.transform(features), names)
        return Pipeline([("normalize", normaliser), ("classify", classifier)])

    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Score rows by the decision function; of two classes, half of it each way."""
        scores = np.asarray(pipeline.decision_function(features), dtype=np.float64)
        return np.stack([-scores / 2, scores / 2], axis=1) if scores.ndim == 1 else scores

    def calibrate(
        self, scores: Scores, labels: Labels, weights: NDArray[np.float64] | None
    ) -> Calibration:
        """Fit the temperature on scores of held-out rows, (n, k), and their labels."""
        return calibrate(scores, labels, weights=weights, any_unit=self.calibrated_search)

    def state(self, pipeline: Pipeline) -> State:
        """Give all that a fit has found, as arrays named ``step.attribute``."""
        state = {}
        for name in self.arrays:
            step, _, attribute = name.partition(".")
            state[name] = np.array(getattr(pipeline[step], attribute), order="C")
        return state

    @property
    def arrays(self) -> dict[str, str]:
        """The arrays of a state, and the letters of their dimensions."""
        scaler = ("mean_ d", "scale_ d", "var_ d") if self.normalize == "standard" else ()
        names = [*(f"normalize.{one}" for one in ("n_features_in_", *scaler)), *self.fitted]
        return {name: letters for name, _, letters in (one.partition(" ") for one in names)}

    def rebuild(self, state: State, classes: Sequence[str], c: float) -> Pipeline:
        """Make a pipeline of plain scikit-learn objects that predicts as the one that was fitted.

        Parameters
        ----------
        state : what `state` gave
        classes : str, sorted
        c : what was chosen

        Raises
        ------
        ValueError
            Where an array is missing, or is not what its name says.
        """
        d, names = int(state["normalize.n_features_in_"]), np.array(classes, dtype=str)
        if not 0 < d <= sum(map(np.size, state.values())):
            raise ValueError(f"{d} features")
        sizes, pipeline = {"d": d, **self.sizes(state, len(names))}, self.unfitted(c)
        for step in pipeline:
            step.n_features_in_ = d
        for name, letters in self.arrays.items():
            array = state[name]
            sides = zip(letters, array.shape, strict=True)
            if array.dtype.kind not in "fiu" or any(sizes.setdefault(a, n) != n for a, n in sides):
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
            place, _, attribute = name.partition(".")
            setattr(pipeline[place], attribute, array if array.ndim else array.item())
        self.complete(pipeline, names)
        return pipeline

    def unfitted(self, c: float) -> Pipeline:
        """Make the pipeline that `rebuild` writes the state into."""
        normaliser = NORMALISERS[self.normalize]()
        return Pipeline([("normalize", normaliser), ("classify", self.estimator(c))])

    def sizes(self, state: State, k: int) -> dict[str, int]:
        """Say how long dimensions are, for k classes; any other is as in the first array with it.

        ``k`` stands for classes, ``v`` for vectors of coefficients, ``d`` for features.
        """
        return {"k": k, "v": 1 if k == 2 else k}

    def complete(self, pipeline: Pipeline, classes: NDArray[np.str_]) -> None:
        """Give a rebuilt pipeline the attributes that follow from others."""
        pipeline["classify"].classes_ = classes

    def parameters(self, pipeline: Pipeline) -> int:
        """Count the numbers that the fit chose, or keeps of the training rows."""
        return sum(int(np.size(getattr(pipeline["classify"], name))) for name in self.weights)


class StreamingLearner(Learner):
    """A learner that also fits rows which are too many for memory."""

    @abstractmethod
    def fit_on_disk(
        self,
        features: "RowsOnDisk",
        labels: Labels,
        c: float,
        *,
        like: Pipeline,
        sample: Features,
        jobs: int,
    ) -> Pipeline:
        """Fit rows that are read chunk after chunk, again and again.

        Parameters
        ----------
        features : rows on a disk, of shape (n, d)
        labels : int array of shape (n,), positions in the classes
        c : the inverse penalty
        like : the same head, fitted on a sample: where the fit begins
        sample : float32 array of shape (m, d), some of the rows
        jobs : int, threads
        """


@dataclass(frozen=True)
class HeadKind:
    """A head that can be fitted, as `heads.kinds.HEADS` has it.

    Attributes
    ----------
    name : str
    learners : what fits it, by kernel; by None for a head that has no kernels
    takes_class_weight : bool, whether classes can weigh the same however many rows they have
    """

    name: str
    learners: Mapping[str | None, type[Learner]]
    takes_class_weight: bool = False

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels; none where there is nothing to choose."""
        return tuple(name for name in self.learners if name is not None)

    def learner(
        self,
        normalize: str = "standard",
        class_weight: str | None = None,
        kernel: str | None = None,
    ) -> Learner:
        """Make a learner; a head without kernels takes any.

        Raises
        ------
        FxError
            Where a choice is none of those offered.
        """
        if normalize not in NORMALISERS:
            choices = _listed(*NORMALISERS, AUTO)
            raise FxError(f"unknown normalisation {normalize!r}; choose {choices}")
        if class_weight not in (None, "balanced"):
            raise FxError(
                f"unknown class weight {class_weight!r}; choose balanced, or leave it out"
            )
        if class_weight and not self.takes_class_weight:
            raise FxError(f"{self.name} knows no class weights; leave out `class_weight`")
        kernel = kernel if self.kernels else None
        if kernel not in self.learners:
            raise FxError(f"unknown kernel {kernel!r}; choose {_listed(*self.kernels, AUTO)}")
        return self.learners[kernel](normalize, class_weight, kernel)

    def candidates(
        self, normalize: str, class_weight: str | None, kernel: str | None, *, rows: int
    ) -> tuple[list[Learner], list[str]]:
        """Make the learners among which a search chooses: ``auto`` stands for all of its choices.

        Returns
        -------
        learners : those that can be fitted on so many rows
        notes : why there are others than asked for, if there are

        Raises
        ------
        FxError
            Where a choice is none of those offered, or out of reach with so many rows.
        """
        kernels, notes = self.kernels_for(kernel, rows)
        normalisations = tuple(NORMALISERS) if normalize == AUTO else (normalize,)
        learners = [
            self.learner(how, class_weight, one) for one in kernels for how in normalisations
        ]
        return learners, notes

    def kernels_for(self, kernel: str | None, rows: int) -> tuple[Sequence[str | None], list[str]]:
        """Give the kernels that one stands for, with so many rows, and notes on them."""
        return [kernel], []


def grid_of_c(lowest: float, normalize: str, features: Features) -> list[float]:
    """Ten values of C from 10 ** lowest up, moved to where they mean the same for other rows.

    A penalty on weights weighs the more the smaller the features are: standardised rows have a
    squared length of about d, others are measured.
    """
    grid = 10**lowest * STEP ** np.arange(10)
    if normalize != "standard":
        rows = fit_normaliser(normalize, features).transform(features)
        variance = max(float(np.var(rows, axis=0, dtype=np.float64).sum()), 1e-12)
        grid *= STEP ** np.round(np.log(features.shape[1] / variance) / np.log(STEP))
    return list(map(float, grid))


def fit_normaliser(
    name: str, features: NDArray[Any]
) -> StandardScaler | Normalizer | FunctionTransformer:
    """Fit a normalisation on rows of shape (n, d).

    ``standard`` is `standardiser`; ``l2`` gives every row the length 1; ``none`` changes nothing.
    """
    if name != "standard":
        return NORMALISERS[name]().fit(features)
    # by parts, since each is copied in float64
    starts = range(0, len(features), STANDARDISED_AT_ONCE)
    return standardiser(features[at : at + STANDARDISED_AT_ONCE] for at in starts)


def standardiser(parts: Iterable[NDArray[Any]]) -> StandardScaler:
    """Fit a scaler whose scale is at least the root mean square of all standard deviations.

    A feature that is silent in all but a few training rows (many are, behind a ReLU) has next to
    no spread there, and by its own standard deviation a test row that it speaks in would be
    hundreds of deviations away. With 100 of scikit-learn's digits (efficientnet_lite0 at 96 pixels,
    best C, mean of three draws) the floor raised the RBF SVM's accuracy from 0.57 to 0.84 and
    lowered the log loss of logistic regression from 1.01 to 0.43; on 40 to 1,000 CIFAR-10 images
    of four classes (mobilenet_v2 at 224) it raised accuracies by 0 to 0.02.

    Parameters
    ----------
    parts : float arrays of shape (m, d), of the fitting rows alone

    Returns
    -------
    scaler : a plain StandardScaler, fitted
    """
    scaler = StandardScaler()
    for part in parts:
        scaler.partial_fit(part)
    scaler.scale_ = np.maximum(scaler.scale_, np.sqrt(scaler.var_.mean()))
    return scaler


def scale_gamma(rows: Features) -> float:
    """What SVC makes of gamma="scale", for rows of shape (n, d)."""
    return float(1 / (rows.shape[1] * rows.var(dtype=np.float64)))


def _listed(*names: str) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
