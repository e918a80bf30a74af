"""The heads as a scikit-learn estimator: for pipelines, searches and comparisons of one's own."""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from extract.errors import FxError
from heads.fitting import fit_head


@dataclass(eq=False, repr=False)  # it is hashed and shown as scikit-learn's estimators are
class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A head whose C, and the temperature of whose probabilities, are chosen by cross-validation.

    Parameters
    ----------
    kind : name of a head in ``heads.kinds.HEADS``
    kernel : {"rbf", "linear", "nystroem", "linearsvc", "auto"}, of the SVM
    normalize : {"standard", "l2", "none", "auto"}
    balanced : bool, whether classes weigh the same however many rows they have
    C : float, optional; the inverse penalty, or the number of neighbours; searched if not given
    folds : int, of the cross-validation
    random_state : int, RandomState or None, of the shuffling into folds
    n_jobs : int, optional; threads, all cores if not given, or for -1

    Attributes
    ----------
    classes_ : array of shape (k,)
    head_ : Head, whose own classes are numbers, the positions in `classes_`
    C_ : float, the chosen C
    n_features_in_ : int

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from heads.estimator import HeadClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> HeadClassifier("svm").fit(X[:300], y[:300]).score(X[300:600], y[300:600]) > 0.9
    True
    """

    kind: str = "logreg"
    _: KW_ONLY
    kernel: str = "rbf"
    normalize: str = "standard"
    balanced: bool = False
    C: float | None = None
    folds: int = 5
    random_state: int | np.random.RandomState | None = 0
    n_jobs: int | None = None

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> "HeadClassifier":
        """Choose and fit.

        Parameters
        ----------
        X : float array of shape (n, d)
        y : array of shape (n,)
        groups : array of shape (n,), optional; rows of one value are never on both sides of a fold

        Raises
        ------
        ValueError
            Where there is nothing to learn; it says why.
        """
        X, y = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        # of one width, so that they sort as they count
        names = np.char.zfill(numbers.astype(str), len(str(len(self.classes_))))
        seed = self.random_state
        if not isinstance(seed, Integral):
            seed = check_random_state(seed).randint(2**31)
        try:
            self.head_ = fit_head(
                X,
                names,
                kind=self.kind,
                kernel=self.kernel,
                normalize=self.normalize,
                class_weight="balanced" if self.balanced else None,
                c=self.C,
                folds=self.folds,
                groups=groups,
                seed=int(seed),
                jobs=self.n_jobs,
            )
        except FxError as error:
            raise ValueError(str(error)) from error
        self.C_ = self.head_.c
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities of the classes: float64 of shape (n, k)."""
        check_is_fitted(self)
        rows = validate_data(self, X, dtype=np.float32, reset=False)
        return self.head_.predict_proba(rows)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The most probable class: shape (n,)."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])
