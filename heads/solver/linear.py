"""Linear classifiers with an L2 penalty, solved for one C after the other.

They minimise, over weights W (k, d) and intercepts b (k,), which are not penalised,

    sum_i loss(W x_i + b, y_i)  +  |W|^2 / (2 C)

with the weight of a row's class where classes have one. The loss of multinomial logistic regression
is -log softmax(f)[y], as scikit-learn's LogisticRegression has it; that of a linear support vector
machine, one class against the others, is sum_j max(0, 1 - s_j f_j)^2, s_j = 1 for j = y and -1 for
all others, as its LinearSVC has it.

Three things make it fast. Rows are given along their principal axes, of which there are no more
than rows. L-BFGS is preconditioned by the Hessian's block of each class, which knows the rows of
the greatest curvature p (1 - p) as they are, and of all others the spread along the axes. And
weights change so smoothly along log C that extrapolating them all but solves the next problem.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from sklearn.exceptions import ConvergenceWarning

from heads.solver.lbfgs import MAX_ITERATIONS, Precondition, minimise

Array = NDArray[Any]  # float32 while searching, float64 for the delivered head
Block = Any  # a slice of rows, or positions of rows that are read together
Map = Callable[[Callable[[Block], Any], Iterable[Block]], Iterable[Any]]

BLOCK = 1024  # rows of a product; fixed, so that the sum does not depend on the threads
# OpenBLAS multiplies without copying where rows, columns and classes have no greater product, which
# takes down to half of the time with up to so many classes, if not with too few rows. NumPy cuts
# blocks into such parts: as blocks of their own they would keep threads waiting for each other.
SMALL_PRODUCT, FEW_CLASSES, FEW_ROWS = 10**6, 16, 32
# Rows of each class that the preconditioner knows singly: more take fewer iterations, and more time
# for each; of few rows in all more cost more than they save. With 64 in the place of 16, 300
# classes of 40 rows took 39 iterations in the place of more than 100.
LEAST_HEAVY, MOST_HEAVY, ROWS_A_HEAVY = 16, 64, 128
HEAVY_NUMBERS = 1 << 26  # of all classes and columns, which must fit into memory several times
LEAST_REST = 0.01  # share of the curvature that all other rows have at least
# Coefficients of the last solutions, the latest first, that extrapolate to where the next one
# begins: linear along log C, and from three on with half of the quadratic term, since all of it
# passes on too much noise.
EXTRAPOLATION = ((1,), (2, -1), (2.5, -2, 0.5))
SMOOTH = 0.03  # logit tolerance above which solutions are too rough to extrapolate from


@dataclass(frozen=True)
class Problem:
    """Rows and their classes, and the loss of multinomial logistic regression.

    Attributes
    ----------
    rows : float32 array of shape (n, r + 1), centred, along their principal axes; the last column,
        of ones, is the intercept's; or rows on a disk, (n, d + 1), not along the axes
    labels : int array of shape (n,), all of 0 to k - 1
    weights : float array of shape (n,), what a row counts
    spread : float array of shape (r + 1,), mean squares of the columns; in its precision all is
        computed, of rows too, a block at a time
    over : how blocks of rows are worked on, `map` or a pool's
    axes : of rows on a disk, float array of shape (d + 1, r + 1): weights are turned, not the rows
    """

    rows: Any
    labels: NDArray[np.intp]
    weights: Array
    spread: Array
    over: Map
    axes: Array | None = None

    @classmethod
    def of(
        cls, rows: Array, labels: NDArray[np.intp], weights: Array, *, over: Map = map
    ) -> "Problem":
        """Measure the spread of rows that are as the attribute says."""
        spread = np.einsum("ij,ij->j", rows, rows) / len(rows)
        return cls(rows, labels, weights, spread, over).cast(rows.dtype)

    def cast(self, dtype: DTypeLike) -> "Problem":
        """Give the same problem in another precision."""
        weights, spread = (of.astype(dtype, copy=False) for of in (self.weights, self.spread))
        return replace(self, weights=weights, spread=spread)

    def start(self) -> Array:
        """Weights of zero: shape (k, r + 1), the intercept last."""
        return np.zeros((int(self.labels.max()) + 1, len(self.spread)), self.spread.dtype)

    @property
    def penalties(self) -> int:
        """How many times |W|^2 / (2 C) is the penalty, so that it is scikit-learn's.

        Of two classes that penalises |w|^2 of one vector w = w1 - w0, and at the optimum
        w1 = -w0 = w / 2, so that |w|^2 = 2 (|w0|^2 + |w1|^2).
        """
        return 2 if int(self.labels.max()) == 1 else 1

    def slopes(self, weights: Array, rows: Array, labels: NDArray[np.intp]) -> tuple[Array, Array]:
        """Give the loss's first and second derivatives by the scores of rows: both (k, m)."""
        p = _scores(weights, rows)
        p -= p.max(axis=0)
        np.exp(p, out=p)
        p /= p.sum(axis=0)
        curvature = p * (1 - p)
        p[labels, np.arange(len(labels))] -= 1
        return p, curvature

    def evaluate(self, ridge: Array, weights: Array) -> tuple[Array, Array]:
        """Give the gradient (k, r + 1), and every class's sum of second derivatives: (k,)."""
        turned = weights if self.axes is None else weights @ self.axes.T

        def part(block: Block) -> tuple[Array, Array]:
            rows, of_rows = self._rows(block), self.weights[block]
            slopes, curvature = self.slopes(turned, rows, self.labels[block])
            slopes *= of_rows
            return _sum_of_rows(slopes, rows), curvature @ of_rows

        gradient, curvature = np.zeros_like(turned), np.zeros(len(weights), weights.dtype)
        for of_part, bent in self.over(part, self._blocks()):
            gradient += of_part
            curvature += bent
        if self.axes is not None:
            gradient = gradient @ self.axes
        gradient[:, :-1] += ridge * weights[:, :-1]
        return gradient, curvature

    def preconditioner(self, ridge: Array, weights: Array, curvature: Array) -> Precondition:
        """Invert about the Hessian's block of each class.

        With D = ridge + the spread of the rows that are not heavy, and rows U of weight p (1 - p),
        the block is D + U' U, and its inverse by Woodbury D^-1 - D^-1 U' (1 + U D^-1 U')^-1 U D^-1.
        """
        rows, of_heavy = self._heavy(weights)
        # bounded, for float32
        rest = np.maximum(curvature - of_heavy.sum(axis=1), LEAST_REST * curvature)
        ridges = np.full(len(self.spread), ridge)
        ridges[-1] = 0
        # where every probability is 0 or 1 nothing is left but the penalty
        diagonal = np.maximum(self.spread * rest[:, None] + ridges, LEAST_REST * ridge)
        rows *= np.sqrt(of_heavy)[:, :, None]
        across = (rows / diagonal[:, None]) @ rows.transpose(0, 2, 1)
        inner = np.linalg.inv(across + np.eye(across.shape[1], dtype=across.dtype))

        def apply(vector: Array) -> Array:
            product = vector / diagonal
            inside = rows.transpose(0, 2, 1) @ (inner @ (rows @ product[:, :, None]))
            product -= inside[:, :, 0] / diagonal
            return self.without_common(product)

        return apply

    def without_common(self, step: Array) -> Array:
        """Take away what all classes have in common: no optimum has it."""
        return np.asarray(step - step.mean(axis=0))

    def _heavy(self, weights: Array) -> tuple[Array, Array]:
        """Find each class's rows of the greatest second derivatives: (k, h, r + 1), and those.

        On a disk there are so many rows that none is heavy.
        """
        n, (k, r) = len(self.rows), weights.shape
        if self.axes is not None:
            return np.zeros((k, 0, r), weights.dtype), np.zeros((k, 0), weights.dtype)
        most = min(MOST_HEAVY, n // ROWS_A_HEAVY, HEAVY_NUMBERS // (k * r))
        count = min(n, max(LEAST_HEAVY, most))

        def part(block: slice) -> tuple[NDArray[np.intp], Array]:
            _, curvature = self.slopes(weights, self._rows(block), self.labels[block])
            curvature *= self.weights[block]
            some = np.argpartition(curvature, -min(count, curvature.shape[1]), axis=1)[:, -count:]
            return some + block.start, np.take_along_axis(curvature, some, 1)

        rows, curvatures = (
            np.concatenate(of, axis=1) for of in zip(*self.over(part, self._blocks()), strict=True)
        )
        some = np.argpartition(curvatures, -count, axis=1)[:, -count:]
        heaviest = np.take_along_axis(rows, some, 1)
        return self._rows(heaviest), np.take_along_axis(curvatures, some, 1)

    def _rows(self, block: Block) -> Array:
        return np.asarray(self.rows[block].astype(self.spread.dtype, copy=False))

    def _blocks(self) -> Sequence[Block]:
        if self.axes is not None:
            chunks: Sequence[Block] = self.rows.chunks
            return chunks
        return blocks_of(len(self.rows), BLOCK)


def _scores(weights: Array, rows: Array) -> Array:
    """Multiply weights (k, d) by rows (m, d): ``weights @ rows.T``."""
    parts, rest = _in_parts(rows, len(weights))
    made = np.empty((len(weights), len(rows)), weights.dtype)
    whole = len(rows) - len(rest)
    in_parts = made[:, :whole].reshape(len(weights), *parts.shape[:2]).transpose(1, 0, 2)
    np.matmul(weights, parts.transpose(0, 2, 1), out=in_parts)
    np.matmul(weights, rest.T, out=made[:, whole:])
    return made


def _sum_of_rows(factors: Array, rows: Array) -> Array:
    """Sum rows (m, d) by factors (k, m): ``factors @ rows``."""
    parts, rest = _in_parts(rows, len(factors))
    whole = len(rows) - len(rest)
    in_parts = factors[:, :whole].reshape(len(factors), *parts.shape[:2]).transpose(1, 0, 2)
    return np.asarray((in_parts @ parts).sum(axis=0) + factors[:, whole:] @ rest)


def _in_parts(rows: Array, classes: int) -> tuple[Array, Array]:
    """Cut rows (m, d) into parts that are multiplied fast, and what is left: (p, s, d), (l, d)."""
    m, d = rows.shape
    most = min(SMALL_PRODUCT // (classes * d), BLOCK)
    # a power of two, so that nothing is left of a block
    size = 1 << max(most.bit_length() - 1, 0)
    parts = m // size if classes <= FEW_CLASSES and size >= FEW_ROWS else 0
    return rows[: parts * size].reshape(parts, size, d), rows[parts * size :]


def blocks_of(rows: int, size: int) -> list[slice]:
    """Cut so many rows into blocks of a size."""
    return [slice(at, at + size) for at in range(0, rows, size)]


class SquaredHinge(Problem):
    """The loss of a linear support vector machine, of every class against the others."""

    @property
    def penalties(self) -> int:
        """Every class has a vector of its own."""
        return 1

    def slopes(self, weights: Array, rows: Array, labels: NDArray[np.intp]) -> tuple[Array, Array]:
        """Give the loss's first and second derivatives by the scores of rows: both (k, m)."""
        signs = np.full((len(weights), len(rows)), -1, rows.dtype)
        signs[labels, np.arange(len(labels))] = 1
        slack = np.maximum(1 - signs * _scores(weights, rows), 0)
        return -2 * signs * slack, (2 * (slack > 0)).astype(rows.dtype)

    def without_common(self, step: Array) -> Array:
        """Keep a step as it is: each class is on its own."""
        return step


def along_path(
    problem: Problem,
    cs: Sequence[float],
    *,
    tolerance: float,
    logit_tolerance: Callable[[], float] = lambda: 0.0,
    start: Sequence[Array] = (),
    max_iterations: int = MAX_ITERATIONS,
    precise: bool = True,
) -> Iterator[Array]:
    """Solve a problem for one C after the other.

    Each C begins where the last solutions lead, which is why values should ascend in equal ratios.

    Parameters
    ----------
    problem : Problem
    cs : inverse penalties
    tolerance : float, bound on the relative error of W, as far as the precision allows
    logit_tolerance : asked before each C; root mean square, over the rows that are not predicted
        with certainty, of what logits still have to move: below it a solution will do as well
    start : solutions before the first C, the latest first: it begins where they lead, and at zero
        where there are none
    max_iterations : for each C
    precise : whether to warn where so many do not suffice

    Yields
    ------
    weights : float array of shape (k, r + 1), the intercept last
    """
    zero = problem.start()
    dtype = zero.dtype
    # probabilities are right to about epsilon, and their errors weigh as much as the rows do
    noise = np.finfo(dtype).eps * np.sqrt(len(problem.rows) * problem.spread.sum())
    solved = [weights.astype(dtype, copy=False) for weights in start]
    for c in cs:
        ridge = np.array(problem.penalties / c, dtype)
        logit_tol = logit_tolerance()
        begin = zero
        if solved:
            factors = EXTRAPOLATION[len(solved) - 1]
            begin = np.add.reduce([by * one for by, one in zip(factors, solved, strict=True)])

        def is_close(
            weights: Array,
            gradient: Array,
            decrement: float,
            curvature: Array,
            ridge: Array = ridge,
            logit_tol: float = logit_tol,
        ) -> bool:
            # The objective is 1/C-strongly convex in W, so that |gradient| <= t |W| / C puts W
            # within t |W| of the minimum.
            size = np.linalg.norm(weights[:, :-1])
            close = np.linalg.norm(gradient) <= max(tolerance * ridge * size, noise)
            # The decrement is what the logits of the fitting rows still have to move, squared,
            # weighted by p (1 - p) and summed.
            return bool(close or decrement <= logit_tol**2 * curvature.sum())

        weights, done = minimise(
            begin,
            evaluate=partial(problem.evaluate, ridge),
            preconditioner=partial(problem.preconditioner, ridge),
            is_done=is_close,
            max_iterations=max_iterations,
        )
        if precise and not done:
            warnings.warn(
                f"the linear head stopped short of its tolerance at C = {c:g}",
                ConvergenceWarning,
                stacklevel=2,
            )
        # a rough solution says where to begin, not where the path leads
        solved = [weights, *(solved[:2] if logit_tol <= SMOOTH else [])]
        yield weights
