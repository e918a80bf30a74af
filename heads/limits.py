"""What held-out rows tell: images unlike all seen, and labels that are possible."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from joblib import cpu_count
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from extract.errors import FxError, one_line
from extract.files import open_regular, refuse_holes, stored_entries, write_whole
from heads.head import OutOfFoldPredictions
from heads.learner import Features

FILE = "limits.npz"
NEIGHBOURS = 5  # training rows whose mean distance says how unlike an image is
LARGEST_FILE = 2**30  # bytes
MAX_ROWS = 2_000  # training rows that distances are measured to
CHUNK_SIZE = 1_024  # rows measured at a time, so that memory stays flat
ROUNDING = 1e-9  # more than rounding errors of sums of masses, less than any mass


@dataclass(frozen=True, eq=False)
class Limits:
    """What rows that a head, or a network, had not seen tell about it.

    Attributes
    ----------
    rows : float32 array of shape (m, d), training rows divided by their lengths
    distances : float32 array of shape (n,), how far rows that were held out lie from the others
    nonconformity : float32 array of shape (n,), 1 less the probability of the true class, of rows
        that the model had not seen
    labels : int32 array of shape (n,), their true classes; empty where an earlier version of fx
        wrote them: then one threshold is for all classes
    groups : int32 array of shape (n,), which of them belong together
    """

    rows: NDArray[np.float32]
    distances: NDArray[np.float32]
    nonconformity: NDArray[np.float32]
    labels: NDArray[np.int32]
    groups: NDArray[np.int32]

    @classmethod
    def of(
        cls,
        features: Features,
        held_out: OutOfFoldPredictions,
        *,
        groups: ArrayLike | None = None,
        known: Features | None = None,
    ) -> "Limits":
        """Learn them from rows that were held out.

        Parameters
        ----------
        features : float32 array of shape (n, d)
        held_out : what was said of some of these rows, fold after fold
        groups : array of shape (n,), optional; rows of one value (a patient, a video) are alike
        known : float32 array of shape (l, d), what new images are to be compared with; by
            default the features themselves
        """
        rng, splits, labels = np.random.default_rng(0), held_out.splits, held_out.labels
        # as many for the head as for every fold: among more rows the nearest would be nearer
        count = min(MAX_ROWS, *(len(fitting) for fitting, _ in splits))

        def some(rows: Features) -> Features:
            return rows[rng.permutation(len(rows))[:count]]

        distances = [
            _distance(_directions(some(features[fitting])), features[rest])
            for fitting, rest in splits
        ]
        alone = member = np.arange(len(labels))
        if groups is not None:
            member = np.unique(np.asarray(groups)[held_out.rows], return_inverse=True)[1]
        return cls(
            _directions(some(features if known is None else known)),
            np.concatenate(distances),
            (1 - held_out.probabilities[alone, labels]).astype(np.float32),
            labels.astype(np.int32),
            member.astype(np.int32),
        )

    def distance(self, features: Features) -> NDArray[np.float32]:
        """How unlike the training rows features (m, d) are: from 0 to 2, shape (m,).

        The mean cosine distance to the nearest training rows. After Y. Sun et al.,
        "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022. Digits were told
        from CIFAR-10 images by it (area under the ROC curve 0.999), and not by Euclidean or
        Mahalanobis distances (0.05 to 0.26: what a network hardly knows has short features), nor
        by cosines seen from the rows' mean (0.05).

        Raises
        ------
        FxError
            Where the features have another width.
        """
        if features.shape[1] != self.rows.shape[1]:
            raise FxError(
                f"{FILE} is of another model; got rows of {self.rows.shape[1]} numbers for "
                f"features of {features.shape[1]}; fit it again"
            )
        return _distance(self.rows, features)

    def farthest(self, rate: float) -> float:
        """Distance beyond which at most a share `rate` of images like the training ones lie.

        See `conformal_quantile`; infinite where there are too few groups for the rate.

        Raises
        ------
        FxError
            Where the rate is not between 0 and 1.
        """
        _check_share("reject", rate)
        return conformal_quantile(self.distances, self.groups, 1 - rate)

    def least_probabilities(self, coverage: float, classes: int) -> NDArray[np.float64]:
        """Probability from which on each label is in a set that holds the true one so often.

        Split conformal prediction, with the probability of the true class as its score (M. Sadinle,
        J. Lei and L. Wasserman, "Least Ambiguous Set-Valued Classifiers", 2019), for each class by
        its own held-out rows, so that a rare class is covered as often as a common one (V. Vovk,
        "Conditional validity of inductive conformal predictors", 2012). A class with too few of
        them is in every set.

        Parameters
        ----------
        coverage : how often the true label is in the set
        classes : how many

        Returns
        -------
        float64 array of shape (classes,)

        Raises
        ------
        FxError
            Where the coverage is not between 0 and 1, or these limits are of other classes.
        """
        _check_share("conformal", coverage)
        if not len(self.labels):
            every = conformal_quantile(self.nonconformity, self.groups, coverage)
            return _at_most(np.full(classes, every))
        if self.labels.max() >= classes:
            raise FxError(
                f"{FILE} is of another model; got more than {classes} classes; fit it again"
            )
        each = (self.labels == label for label in range(classes))
        most = [conformal_quantile(self.nonconformity[i], self.groups[i], coverage) for i in each]
        return _at_most(np.array(most))

    def held_out_per_class(self, classes: int) -> NDArray[np.intp]:
        """Count each class's held-out rows, or groups of such: int array of shape (classes,).

        Limits of an earlier version count all for each.
        """
        if not len(self.labels):
            return np.full(classes, len(self.groups))
        pairs = np.unique(np.stack([self.labels, self.groups]), axis=1)
        return np.bincount(pairs[0], minlength=classes)

    @staticmethod
    def least_bytes(rows: int, dim: int) -> int:
        """Bytes that ``save`` writes at least, after so many training rows of so many features."""
        # folds leave some of the rows out
        return 4 * dim * min(MAX_ROWS, rows // 2)

    def save(self, directory: Path) -> None:
        """Write ``limits.npz``; raises as ``extract.files.durable.write_whole`` does."""
        file = io.BytesIO()
        np.savez(file, **vars(self))
        write_whole(directory / FILE, file.getvalue())

    @classmethod
    def load(cls, directory: Path) -> "Limits":
        """Read what ``save`` wrote.

        Raises
        ------
        FxError
            Where it is missing or damaged.
        """
        path = directory / FILE
        try:
            with open_regular(path, LARGEST_FILE) as (file, status):
                refuse_holes(status)
                stored_entries(file)
                with np.load(file, allow_pickle=False) as arrays:
                    found = {name: arrays[name] for name in arrays}
                # an earlier version knew neither
                found.setdefault("labels", np.zeros(0, np.int32))
                found.setdefault("groups", np.arange(len(found["distances"]), dtype=np.int32))
                limits = cls(**found)
        except FileNotFoundError as error:
            raise FxError(
                f"no {path}, which is written with a head or a network; fit it again"
            ) from error
        except Exception as error:  # a damaged archive fails in as many ways as there are bytes
            raise FxError(f"{path} cannot be read ({one_line(error)}); fit it again") from error
        if not limits.is_sound:
            raise FxError(f"{path} cannot be read (no limits of a model); fit it again")
        return limits

    @property
    def is_sound(self) -> bool:
        """Whether they are arrays such as `of` makes, with something in each."""
        n, wholes = len(self.distances), (self.labels, self.groups)
        floats = (self.rows, self.distances, self.nonconformity)
        return (
            [array.ndim for array in (*floats, *wholes)] == [2, 1, 1, 1, 1]
            and all(
                one.dtype == np.float32 and one.size and np.isfinite(one).all() for one in floats
            )
            and all(one.dtype == np.int32 and (one >= 0).all() for one in wholes)
            and len(self.labels) in (0, n)
            and len(self.nonconformity) == len(self.groups) == n
        )


def conformal_quantile(
    scores: NDArray[np.floating[Any]], groups: NDArray[np.integer[Any]], level: float
) -> float:
    """Value that the score of a row of a new group exceeds at most 1 - `level` of the time.

    Of g groups each has a mass of 1 / (g + 1), which its rows share evenly, and the new group has
    the rest, at infinity (Y. Lee, R. F. Barber and R. Willett, "Distribution-free inference with
    hierarchical data", 2023). Of groups of one row it is the ceil((n + 1) level)-th smallest score.

    Parameters
    ----------
    scores : float array of shape (n,)
    groups : int array of shape (n,)
    level : float, between 0 and 1

    Returns
    -------
    float, infinite where there are fewer groups than `groups_needed`
    """
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores)
    mass = np.cumsum(1 / sizes[member][order]) / (len(sizes) + 1)
    place = int(np.searchsorted(mass, level - ROUNDING))
    return float(scores[order[place]]) if place < len(scores) else float("inf")


def groups_needed(level: float) -> int:
    """Fewest groups, or rows that are each their own, by which `conformal_quantile` is finite."""
    return int(np.ceil(level / (1 - level) - ROUNDING))


def _directions(rows: Features) -> Features:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def _distance(known: Features, features: Features) -> Features:
    def part(begin: int) -> Features:
        cosines = _directions(features[begin : begin + CHUNK_SIZE]) @ known.T
        nearest = np.partition(cosines, -min(NEIGHBOURS, len(known)), axis=1)[:, -NEIGHBOURS:]
        return np.asarray(1 - nearest.mean(axis=1), dtype=np.float32)

    # each product on one core: threads inside of one wait for each other, and busily
    with threadpool_limits(1), ThreadPoolExecutor(cpu_count()) as pool:
        parts = list(pool.map(part, range(0, len(features), CHUNK_SIZE)))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _at_most(nonconformity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities that are in a set up to such a nonconformity, which is kept rounded.

    Of nearest neighbours many probabilities are the same: none of those that tie falls out by
    rounding.
    """
    above = np.nextafter(nonconformity.astype(np.float32), np.float32(np.inf))
    return np.asarray(1 - above.astype(np.float64))


def _check_share(name: str, share: float) -> None:
    if not (0 < share < 1 and 0 < 1 - share < 1):  # nor so near to 0 that they add up to 1
        raise FxError(f"`{name}` must lie between 0 and 1; got {share:g}")
