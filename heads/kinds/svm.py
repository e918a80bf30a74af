"""Support vector machine: rbf or linear kernel; nystroem and linearsvc for many images."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, LinearSVC

from extract.errors import FxError
from heads.calibration import SHARPNESS, pair_weights, pairwise_scores
from heads.kinds._linear import LinearLearner
from heads.kinds._nystroem import LANDMARKS, NYSTROEM, NystroemMachine
from heads.learner import (
    AUTO,
    Features,
    HeadKind,
    Labels,
    Learner,
    Scores,
    State,
    Trial,
    fit_normaliser,
    grid_of_c,
    scale_gamma,
)
from heads.solver import SquaredHinge

LINEAR_SVC = "linearsvc"
EXACT_ROWS = 30_000  # a fold's kernel matrix then takes 6 GB
CHUNK_SIZE = 4096  # rows scored at a time, so that memory stays flat
BLOCK = 512  # rows of a kernel matrix computed at once
CACHE_MB = 500  # of kernel columns, for libsvm


class SupportVectors(Learner):
    """Support vector machine, one for each pair of classes; see `pairwise_scores`.

    One kernel matrix a fold serves all values of C.
    """

    calibrated_search = True
    extensible = True
    weights = ("dual_coef_", "intercept_")
    fitted = tuple(
        f"classify.{one}"
        for one in (
            *("support_ n", "support_vectors_ nd", "_n_support k", "_dual_coef_ on"),
            *("_intercept_ p", "_gamma", "shape_fit_ 2"),
        )
    )

    def estimator(self, c: float) -> SVC:
        """Make scikit-learn's own SVC."""
        return self._machine(c, str(self.kernel))

    def grid(self, features: Features, fewest: int) -> list[float]:
        """Ten values; the RBF kernel's gamma minds the rows' length already."""
        if self.kernel == "rbf":
            return grid_of_c(-1.5, "standard", features)
        return grid_of_c(-5, self.normalize, features)

    def held_out_scores(self, trial: Trial, cs: Sequence[float]) -> list[list[Scores]]:
        """Compute a fold's kernel once for all values of C, which `jobs` threads share."""
        by_fold = []
        for fitting, rest in trial.splits:
            normaliser = fit_normaliser(self.normalize, trial.features[fitting])
            known, others = (normaliser.transform(trial.features[side]) for side in (fitting, rest))
            gamma = scale_gamma(known)
            gram, cross = (
                self._kernel(side, known, gamma=gamma, jobs=trial.jobs) for side in (known, others)
            )

            def margins(
                c: float, gram: Scores = gram, cross: Scores = cross, fitting: Labels = fitting
            ) -> Scores:
                machine = self._machine(c, "precomputed").fit(gram, trial.labels[fitting])
                return pairwise_scores(machine.decision_function(cross))

            # of few rows threads cost more than they bring
            jobs = trial.jobs if len(known) > BLOCK else 1
            threads = Parallel(jobs, backend="threading")
            by_fold.append(threads(delayed(margins)(c) for c in cs))
            trial.tick(len(cs))
        return [list(of_c) for of_c in zip(*by_fold, strict=True)]

    def fit(
        self, features: Features, names: NDArray[np.generic], c: float, *, jobs: int
    ) -> Pipeline:
        """Fit scikit-learn's own SVC, with gamma="scale".

        It is solved on a kernel matrix: libsvm, which would compute every entry again and again
        by itself, takes a hundred times as long on 20,000 rows.
        """
        normaliser = fit_normaliser(self.normalize, features)
        rows = normaliser.transform(features)
        gamma = scale_gamma(rows)
        gram = self._kernel(rows, rows, gamma=gamma, jobs=jobs)
        solved = self._machine(c, "precomputed").fit(gram, names)
        machine = self.estimator(c)
        learned = {
            name: value for name, value in vars(solved).items() if "_" in (name[0], name[-1])
        }
        vars(machine).update(learned)
        machine.support_vectors_ = rows[solved.support_].astype(np.float64)
        machine.shape_fit_, machine.n_features_in_ = rows.shape, rows.shape[1]
        machine._gamma = gamma
        return Pipeline([("normalize", normaliser), ("classify", machine)])

    def scores(self, pipeline: Pipeline, features: Features) -> Scores:
        """Pairwise scores of the machine's margins, which libsvm takes fifty times as long for."""
        machine = pipeline[-1]
        # in float64: a row's probabilities shall not depend on the rows it is asked for with
        rows = pipeline[0].transform(features).astype(np.float64)
        vectors, weights = machine.support_vectors_, pair_weights(machine)
        kernel = partial(self._kernel, right=vectors, gamma=machine._gamma, jobs=cpu_count())
        blocks = [rows[at : at + CHUNK_SIZE] for at in range(0, len(rows), CHUNK_SIZE)]
        margins = np.concatenate([kernel(block) @ weights for block in blocks])
        margins += machine.intercept_
        return pairwise_scores(margins[:, 0] if margins.shape[1] == 1 else margins)

    def sizes(self, state: State, k: int) -> dict[str, int]:
        """As many vectors, n, as the classes have in all: libsvm would read past fewer."""
        counts = state["classify._n_support"]
        if counts.ndim != 1 or counts.dtype.kind not in "iu" or (counts < 0).any():
            raise ValueError("no numbers of support vectors")
        return {"k": k, "o": k - 1, "n": int(counts.sum()), "p": k * (k - 1) // 2, "2": 2}

    def complete(self, pipeline: Pipeline, classes: NDArray[np.str_]) -> None:
        """Set what SVC derives from the rest; of two classes it has coefficients of both signs."""
        super().complete(pipeline, classes)
        machine = pipeline["classify"]
        sign = -1 if len(classes) == 2 else 1
        machine.dual_coef_, machine.intercept_ = (
            sign * machine._dual_coef_,
            sign * machine._intercept_,
        )
        machine.shape_fit_ = tuple(machine.shape_fit_.tolist())
        machine._sparse, machine.fit_status_ = False, 0
        machine._effective_probability = False
        machine._probA = machine._probB = np.empty(0)

    def _machine(self, c: float, kernel: str) -> SVC:
        return SVC(
            C=c,
            kernel=kernel,
            class_weight=self.class_weight,
            decision_function_shape="ovo",
            cache_size=CACHE_MB,
        )

    def _kernel(
        self,
        left: NDArray[np.floating[Any]],
        right: NDArray[np.floating[Any]],
        *,
        gamma: float,
        jobs: int,
    ) -> NDArray[np.float64]:
        """Kernel matrix as SVC defines it.

        Computed in the rows' dtype, in blocks of rows that `jobs` threads share; of rows with
        themselves one half, and copied to the other.
        """
        symmetric = left is right
        matrix = np.empty((len(left), len(right)))
        squares = np.square(right).sum(axis=1)
        factor = left.dtype.type(-gamma)

        def fill(block: slice) -> None:
            start = block.start if symmetric else 0
            products = left[block] @ right[start:].T
            if self.kernel == "rbf":
                products *= -2
                products += np.square(left[block]).sum(axis=1)[:, None]
                products += squares[start:]
                np.maximum(products, 0, out=products)  # a row from itself may round below zero
                products *= factor
                np.exp(products, out=products)
            matrix[block, start:] = products
            if symmetric:
                matrix[block.stop :, block] = products[:, BLOCK:].T

        blocks = [slice(at, at + BLOCK) for at in range(0, len(left), BLOCK)]
        if len(blocks) == 1:
            fill(blocks[0])
        else:
            Parallel(jobs, backend="threading")(delayed(fill)(block) for block in blocks)
        return matrix


class LinearMachine(LinearLearner):
    """Linear support vector machine of any number of rows, one class against the others.

    The loss is the squared hinge's, as scikit-learn's LinearSVC has it; the intercepts are not
    penalised, and balanced weights are those of a row's own class in every one of the machines.
    """

    calibrated_search = True
    problem = SquaredHinge
    sharpness = SHARPNESS
    share = 1

    def estimator(self, c: float) -> LinearSVC:
        """Make scikit-learn's own classifier."""
        return LinearSVC(C=c, class_weight=self.class_weight)

    def grid(self, features: Features, fewest: int) -> list[float]:
        """Ten values from 0.00001 to 0.3, or as far for rows of another length."""
        return grid_of_c(-5, self.normalize, features)


class _Machines(HeadKind):
    """The kernels, of which the exact ones take a limited number of rows."""

    def kernels_for(self, kernel: str | None, rows: int) -> tuple[Sequence[str | None], list[str]]:
        """Of ``auto``, both exact kernels, or the approximation where rows are too many."""
        if kernel == AUTO:
            if rows <= EXACT_ROWS:
                return ["rbf", "linear"], []
            return [NYSTROEM], [
                f"{rows:,} rows are more than the {EXACT_ROWS:,} of an exact SVM: approximated "
                f"with {LANDMARKS:,} landmarks (Nyström)"
            ]
        if kernel == "linear" and rows > EXACT_ROWS:
            return [LINEAR_SVC], [
                f"{rows:,} rows are more than the {EXACT_ROWS:,} of libsvm: one class against the "
                "others, by squared hinges (LinearSVC)"
            ]
        if kernel == "rbf" and rows > EXACT_ROWS:
            raise FxError(
                f"too many rows for an exact SVM; got {rows:,} where {EXACT_ROWS:,} are feasible; "
                "choose `kernel=auto`, which approximates, or fit logreg"
            )
        return [kernel], []


HEAD = _Machines(
    "svm",
    {
        "rbf": SupportVectors,
        "linear": SupportVectors,
        NYSTROEM: NystroemMachine,
        LINEAR_SVC: LinearMachine,
    },
    takes_class_weight=True,
)
