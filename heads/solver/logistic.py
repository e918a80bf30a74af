"""Multinomial logistic regression with an L2 penalty: all folds solved together, along C.

Every fold minimises, over weights W (k, d) and intercepts b (k,), scikit-learn's objective

    sum_i -log softmax(W x_i + b)[y_i]  +  |W|^2 / (2 C)                (b is not penalised)

on its own fitting rows, each with the weight of its class where classes have one. They are
standardised by their own mean and deviation, or centred alone, which changes nothing but b. One
matrix of rows serves all folds: a fold's x is `scale * (row - shift)`, and rows that it holds out
have no weight.

Three things make it fast. Products with the data are shared by folds and classes. L-BFGS is
preconditioned by the Hessian's diagonal in the basis of the rows' principal axes, in which it is
nearly diagonal. And weights change so smoothly along log C that extrapolating them all but solves
the next problem.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_sample_weight

from heads.learner import standardiser
from heads.solver.lbfgs import MAX_ITERATIONS, dot, minimise
from heads.solver.principal_axes import principal_axes, spread_of_folds

Array = NDArray[Any]  # float32 while searching, float64 for the delivered head
Map = Callable[[Callable[[slice], Any], Iterable[slice]], Iterable[Any]]

BLOCK = 1024  # rows of a product; fixed, so that the sum does not depend on the threads
GRADIENTS = 16  # of a product with the axes; fixed for the same reason
# Coefficients of the last solutions, the latest first, that extrapolate to where the next one
# begins: linear along log C, and from three on with half of the quadratic term, since all of it
# passes on too much noise.
EXTRAPOLATION = ((1,), (2, -1), (2.5, -2, 0.5))
SMOOTH = 0.03  # logit tolerance above which solutions are too rough to extrapolate from


@dataclass(frozen=True)
class Problems:
    """One problem a fold, on rows of all of them.

    Attributes
    ----------
    rows : float array of shape (n, d), each column standardised by the fold it varies least in
    target : float array of shape (k, n), one-hot
    fitting : float array of shape (q, 1, n), a row's weight in a fold; 0 where it is held out
    scale, shift : float arrays of shape (q, 1, d), from `rows` to a fold's standardised rows
    basis : float array of shape (d, r), orthonormal: principal axes of the rows as most folds
        standardise them
    spread : float array of shape (1 or q, 1, r), mean square of rows along each axis: of a fold's
        own where r < d, else of those that the axes were found by
    across : float array of shape (1 or q, 1, 1), mean square of what is left of them
    over : how blocks of rows are worked on, `map` or a pool's
    """

    rows: Array
    target: Array
    fitting: Array
    scale: Array
    shift: Array
    basis: Array
    spread: Array
    across: Array
    over: Map

    @classmethod
    def of(
        cls,
        features: Array,
        labels: NDArray[np.intp],
        fitting: Sequence[NDArray[np.intp]],
        *,
        standardise: bool = True,
        balanced: bool = False,
        axes: tuple[Array, Array] | None = None,
        over: Map = map,
    ) -> "Problems":
        """Prepare, in float32, the problems of fitting sides that are arrays of row numbers.

        `axes` are the basis and spread of earlier problems on the same features.
        """
        if standardise:
            scalers = [standardiser(features[side]) for side in fitting]
            means = np.stack([[scaler.mean_] for scaler in scalers])
            deviations = np.stack([[scaler.scale_] for scaler in scalers])
        else:
            means = np.stack([features[side].mean(axis=0, keepdims=True) for side in fitting])
            deviations = np.ones_like(means)
        # an outlier that one fold holds out would leave float32 no digits for that fold's rows
        narrowest = deviations.argmin(axis=0, keepdims=True)
        mean, deviation = (np.take_along_axis(of, narrowest, 0)[0, 0] for of in (means, deviations))
        rows = features.astype(np.float32)  # a copy
        rows -= mean
        rows /= deviation
        target = np.eye(int(labels.max()) + 1)[:, labels]
        sides = np.zeros((len(fitting), 1, len(rows)))
        for side, members in zip(sides, fitting, strict=True):
            weights = compute_sample_weight("balanced", labels[members]) if balanced else 1
            side[:, members] = weights
        scale, shift = deviation / deviations, (means - mean) / deviation
        basis, spread = axes or principal_axes(rows, scale, shift)
        across = np.zeros((1, 1, 1))
        if basis.shape[1] < len(basis):
            spread, across = spread_of_folds(rows, sides, scale, shift, basis)
        return cls(rows, target, sides, scale, shift, basis, spread, across, over).cast(np.float32)

    def cast(self, dtype: DTypeLike) -> "Problems":
        """Give the same problems in another precision."""
        arrays = {
            field.name: getattr(self, field.name).astype(dtype, copy=False)
            for field in fields(self)
            if field.name != "over"
        }
        return replace(self, **arrays)

    def start(self) -> Array:
        """Weights of zero: shape (q, k, d + 1), the intercept last."""
        shape = (len(self.fitting), len(self.target), self.rows.shape[1] + 1)
        return np.zeros(shape, self.rows.dtype)

    def logits(self, weights: Array, block: slice) -> Array:
        """Logits of a block of rows by every fold's weights: shape (q, k, rows of the block)."""
        coefficients = weights[:, :, :-1] * self.scale
        intercepts = weights[:, :, -1:] - (coefficients * self.shift).sum(axis=2, keepdims=True)
        flat = coefficients.reshape(-1, coefficients.shape[2]) @ self.rows[block].T
        return np.asarray(flat.reshape(*coefficients.shape[:2], -1) + intercepts)

    def evaluate(self, ridge: Array, weights: Array) -> tuple[Array, Array]:
        """Give the gradient (q, k, d + 1), and sum_i p (1 - p) of every class: (q, k, 1)."""

        def part(block: slice) -> tuple[Array, Array, Array]:
            p = self.logits(weights, block)
            p -= p.max(axis=1, keepdims=True)
            np.exp(p, out=p)
            p /= p.sum(axis=1, keepdims=True)
            fitting = self.fitting[:, :, block]
            curvature = (p * (1 - p) * fitting).sum(axis=2, keepdims=True)
            p -= self.target[:, block]
            p *= fitting
            product = (p.reshape(-1, p.shape[2]) @ self.rows[block]).reshape(*p.shape[:2], -1)
            return product, p.sum(axis=2, keepdims=True), curvature

        blocks = [slice(at, at + BLOCK) for at in range(0, len(self.rows), BLOCK)]
        products, residuals, curvatures = zip(*self.over(part, blocks), strict=True)
        residual = sum(residuals)
        gradients = (
            self.scale * (sum(products) - residual * self.shift) + ridge * weights[:, :, :-1]
        )
        return np.concatenate([gradients, residual], axis=2), sum(curvatures)

    def precondition(self, ridge: Array, curvature: Array, gradient: Array) -> Array:
        """Divide a gradient by about the Hessian: spread x sum p (1 - p) + ridge on each axis."""
        n, (d, r) = len(self.rows), self.basis.shape
        preconditioner_diagonal = (self.spread * curvature + ridge).reshape(-1, r)
        # what is left may all lie in one direction; a step too short is made longer soon, one too
        # long ends where every probability is 0 or 1 and the loss has no curvature any more
        diagonal_across = (self.across * curvature + ridge).reshape(-1, 1)
        gradients = gradient[:, :, :-1].reshape(-1, d)

        def part(block: slice) -> Array:
            inside = gradients[block] @ self.basis
            divided = (inside / preconditioner_diagonal[block]) @ self.basis.T
            if r < d:
                across = gradients[block] - inside @ self.basis.T
                # bounded, for float32
                least = 1e-6 * preconditioner_diagonal[block].max(axis=1, keepdims=True)
                divided += across / np.maximum(diagonal_across[block], least)
            return np.asarray(divided)

        blocks = [slice(at, at + GRADIENTS) for at in range(0, len(gradients), GRADIENTS)]
        divided = np.concatenate(list(self.over(part, blocks))).reshape(*gradient.shape[:2], d)
        intercepts = gradient[:, :, -1:] / np.maximum(curvature, 1e-6 * n)
        return np.concatenate([divided, intercepts], axis=2)


def along_path(
    problems: Problems,
    cs: Sequence[float],
    *,
    tolerance: float,
    logit_tolerance: Callable[[], float] = lambda: 0.0,
    start: Array | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> Iterator[Array]:
    """Solve every fold for one C after the other.

    Each C begins where the last solutions lead, which is why values should ascend in equal ratios.

    Parameters
    ----------
    problems : Problems of q folds
    cs : inverse penalties
    tolerance : float, bound on the relative error of W, as far as the precision allows
    logit_tolerance : asked before each C; root mean square, over the rows that are not predicted
        with certainty, of what logits still have to move: below it a solution will do as well
    start : weights to begin the first with; zero where not given
    max_iterations : for each C; where fewer than MAX_ITERATIONS, solutions may miss the tolerance

    Yields
    ------
    weights : float array of shape (q, k, d + 1), on each fold's standardised rows, intercept last
    """
    # Two classes: scikit-learn penalises |w|^2 of one vector w = w1 - w0, and at the optimum
    # w1 = -w0 = w / 2, so that |w|^2 = 2 (|w0|^2 + |w1|^2).
    penalties = 2 if len(problems.target) == 2 else 1
    dtype = problems.rows.dtype
    # probabilities are right to about epsilon, and their errors weigh as much as the rows do
    squares = len(problems.rows) * (
        problems.spread.sum(axis=(1, 2)) + problems.across.sum(axis=(1, 2))
    )
    noise = np.finfo(dtype).eps * np.sqrt(squares)
    solved: list[Array] = []
    for c in cs:
        ridge = np.array(penalties / c, dtype)
        logit_tol = logit_tolerance()
        begin = problems.start() if start is None else start.astype(dtype)
        if solved:
            factors = EXTRAPOLATION[len(solved) - 1]
            begin = np.add.reduce([by * one for by, one in zip(factors, solved, strict=True)])

        def is_close(
            weights: Array,
            gradient: Array,
            decrement: Array,
            curvature: Array,
            ridge: Array = ridge,
            logit_tol: float = logit_tol,
        ) -> NDArray[np.bool_]:
            # The objective is 1/C-strongly convex in W, so that |gradient| <= t |W| / C puts W
            # within t |W| of the minimum.
            size = np.sqrt(dot(weights[:, :, :-1], weights[:, :, :-1]))
            close = np.sqrt(dot(gradient, gradient)) <= np.maximum(tolerance * ridge * size, noise)
            # The decrement is what the logits of the fitting rows still have to move, squared,
            # weighted by p (1 - p) and summed.
            logits_close = decrement <= logit_tol**2 * curvature.sum(axis=(1, 2))
            return np.asarray(close | logits_close)

        weights, done = minimise(
            begin,
            evaluate=partial(problems.evaluate, ridge),
            precondition=partial(problems.precondition, ridge),
            is_done=is_close,
            max_iterations=max_iterations,
        )
        if not done and max_iterations == MAX_ITERATIONS:
            warnings.warn(
                f"logistic regression stopped short of its tolerance at C = {c:g}",
                ConvergenceWarning,
                stacklevel=2,
            )
        # a rough solution says where to begin, not where the path leads
        solved = [weights, *(solved[:2] if logit_tol <= SMOOTH else [])]
        yield weights
