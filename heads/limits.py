"""What held-out rows tell: images unlike all seen, and labels that are possible."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from extract.errors import FxError
from extract.files import open_regular, refuse_holes, stored_entries, write_whole
from heads.learner import Features, Fold, Labels

FILE = "limits.npz"
NEIGHBOURS = 5  # training rows whose mean distance says how unlike an image is
LARGEST_FILE = 2**30  # bytes
MAX_ROWS = 2_000  # training rows that distances are measured to
CHUNK_SIZE = 1_024  # rows measured at a time, so that memory stays flat


@dataclass(frozen=True, eq=False)
class Limits:
    """What rows that a head, or a network, had not seen tell about it.

    Attributes
    ----------
    rows : float32 array of shape (m, d), training rows divided by their lengths
    distances : float32 array of shape (n,), ascending: how far training rows lie from those of
        other folds
    nonconformity : float32 array of shape (n,), ascending: 1 less the probability of the true
        class, of rows that the model had not seen
    """

    rows: NDArray[np.float32]
    distances: NDArray[np.float32]
    nonconformity: NDArray[np.float32]

    @classmethod
    def of(
        cls,
        features: Features,
        splits: list[Fold],
        probabilities: NDArray[np.float64],
        labels: Labels,
        *,
        known: Features | None = None,
        seed: int = 0,
    ) -> "Limits":
        """Learn them from rows that were held out.

        Parameters
        ----------
        features : float32 array of shape (n, d)
        splits : list of (fitting rows, held-out rows), int arrays
        probabilities : float64 array of shape (m, k), of held-out rows
        labels : int array of shape (m,), of those
        known : float32 array of shape (l, d), what new images are to be compared with; by
            default the features themselves
        seed : chooses among many rows
        """
        rng = np.random.default_rng(seed)
        # as many for the head as for every fold: among more rows the nearest would be nearer
        count = min(MAX_ROWS, *(len(fitting) for fitting, _ in splits))

        def some(rows: Features) -> Features:
            chosen: Features = rows[rng.permutation(len(rows))[:count]]
            return chosen

        distances = [
            _distance(_directions(some(features[fitting])), features[rest])
            for fitting, rest in splits
        ]
        wrong = 1 - probabilities[np.arange(len(labels)), labels]
        return cls(
            _directions(some(features if known is None else known)),
            np.sort(np.concatenate(distances)),
            np.sort(wrong.astype(np.float32)),
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
        """Distance beyond which a share `rate` of images like the training ones lie.

        Raises
        ------
        FxError
            Where the rate is not between 0 and 1.
        """
        _check_share("reject", rate)
        return float(np.quantile(self.distances, 1 - rate))

    def least_probability(self, coverage: float) -> float:
        """Probability from which on labels belong to a set that holds the true one so often.

        Split conformal prediction with the probability of the true class as its score (Sadinle, Lei
        and Wasserman, "Least Ambiguous Set-Valued Classifiers", 2019): of n held-out rows, the
        ceil((n + 1) coverage)-th smallest nonconformity bounds the set; with too few rows for the
        coverage every label belongs to it.

        Raises
        ------
        FxError
            Where the coverage is not between 0 and 1.
        """
        _check_share("conformal", coverage)
        n = len(self.nonconformity)
        place = int(np.ceil((n + 1) * coverage))
        return 0.0 if place > n else float(1 - self.nonconformity[place - 1])

    @staticmethod
    def least_bytes(rows: int, dim: int) -> int:
        """Bytes that ``save`` writes at least, after so many training rows of so many features."""
        # folds leave some of the rows out
        return 4 * dim * min(MAX_ROWS, rows // 2)

    def save(self, directory: Path) -> None:
        """Write ``limits.npz``; raises as ``extract.files.durable.write_whole`` does."""
        file = io.BytesIO()
        np.savez(
            file,
            rows=self.rows,
            distances=self.distances,
            nonconformity=self.nonconformity,
        )
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
        names = ("rows", "distances", "nonconformity")
        try:
            with open_regular(path, LARGEST_FILE) as (file, status):
                refuse_holes(status)
                stored_entries(file)
                with np.load(file, allow_pickle=False) as arrays:
                    limits = cls(*(arrays[name] for name in names))
        except FileNotFoundError as error:
            raise FxError(
                f"no {path}, which is written with a head or a network; fit it again"
            ) from error
        except Exception as error:  # a damaged archive fails in as many ways as there are bytes
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise FxError(f"{path} cannot be read ({reason}); fit it again") from error
        if not limits.is_sound:
            raise FxError(f"{path} cannot be read (no limits of a model); fit it again")
        return limits

    @property
    def is_sound(self) -> bool:
        """Whether they are arrays such as `of` makes, with something in each."""
        arrays = (self.rows, self.distances, self.nonconformity)
        return [array.ndim for array in arrays] == [2, 1, 1] and all(
            array.dtype == np.float32 and array.size and np.isfinite(array).all()
            for array in arrays
        )


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


def _check_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise FxError(f"`{name}` must lie between 0 and 1; got {share:g}")
