"""L-BFGS for a convex problem whose Hessian is about known."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Evaluate = Callable[[Array], tuple[Array, Array]]  # point to its gradient and its curvature
Precondition = Callable[[Array], Array]  # vector to its product with about the inverse Hessian
Pair = tuple[Array, Array, float]  # step, change of gradient, 1 / their product

HISTORY = 10  # pairs remembered
RESCALED = 2  # iterations in which the preconditioner is rescaled; more cost more than they save
CHANGED = 2.0  # factor of the curvature from which on the preconditioner is made anew
MAX_ITERATIONS = 2000


def minimise(
    start: Array,
    *,
    evaluate: Evaluate,
    preconditioner: Callable[[Array, Array], Precondition],
    is_done: Callable[[Array, Array, float, Array], bool],
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Array, bool]:
    """Minimise until it is done.

    Parameters
    ----------
    start : float array of shape (k, d)
    evaluate : called with a point, gives its gradient (k, d), and its curvature, an array of which
        the sum says how much of it there is
    preconditioner : called with a point and its curvature, gives what multiplies a vector by about
        the inverse Hessian; called again where the curvature has changed
    is_done : called with a point, its gradient, its squared Newton decrement (the gradient's
        product with the inverse Hessian and itself) and its curvature
    max_iterations : int

    Returns
    -------
    point : float array of shape (k, d)
    done : bool, False where so many iterations did not suffice
    """
    point = start
    gradient, curvature = evaluate(point)
    known = curvature.sum()
    precondition = preconditioner(point, curvature)
    pairs: list[Pair] = []
    scale = 1.0
    for _ in range(max_iterations):
        if not known / CHANGED <= curvature.sum() <= known * CHANGED:
            known = curvature.sum()
            precondition = preconditioner(point, curvature)
        if 0 < len(pairs) <= RESCALED:
            scale = _scale(pairs[-1], precondition)
        direction = -_inverse_hessian_times(gradient, pairs, precondition, scale)
        # before there are pairs nothing is known of the curvature that the decrement speaks of
        decrement = -_dot(gradient, direction) if pairs else np.inf
        if is_done(point, gradient, decrement, curvature):
            return point, True
        if _dot(gradient, direction) >= 0:  # rounding has spoilt the memory
            pairs, direction = [], -precondition(gradient)
        step, ahead, curvature = _line_search(evaluate, point, gradient, direction)
        change = ahead - gradient
        product = _dot(step, change)
        pairs = [*pairs[1 - HISTORY :], (step, change, 1 / product if product > 0 else 0.0)]
        point, gradient = point + step, ahead
    return point, False


def _dot(a: Array, b: Array) -> float:
    return float(np.vdot(a, b))


def _scale(pair: Pair, precondition: Precondition) -> float:
    """By how much the preconditioner, right in shape, is too small, by the latest pair."""
    step, change, _ = pair
    expected = _dot(change, precondition(change))
    return _dot(step, change) / expected if expected > 0 else 1.0


def _inverse_hessian_times(
    gradient: Array, pairs: list[Pair], precondition: Precondition, scale: float
) -> Array:
    """Run the two loops of L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.4)."""
    q, factors = gradient.copy(), []
    for step, change, inverse in reversed(pairs):
        factor = inverse * _dot(step, q)
        q -= factor * change
        factors.append(factor)
    q = scale * precondition(q)
    for (step, change, inverse), factor in zip(pairs, reversed(factors), strict=True):
        q += (factor - inverse * _dot(change, q)) * step
    return q


def _line_search(
    evaluate: Evaluate, point: Array, gradient: Array, direction: Array
) -> tuple[Array, Array, Array]:
    """Shorten the step until the gradient along it has not turned up steeply.

    The problem is convex, so that the gradient alone tells a good step (the approximate Wolfe
    condition of Hager and Zhang, 2005); a loss in float32 is too coarse near the minimum.
    """
    start = _dot(gradient, direction)
    length = 1.0
    for _ in range(10):
        step = length * direction
        ahead, curvature = evaluate(point + step)
        end = _dot(ahead, direction)
        if end <= 0.8 * abs(start):
            break
        length *= min(max(start / (start - end), 0.1), 0.9) if start < end else 0.1
    return step, ahead, curvature
