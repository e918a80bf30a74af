"""L-BFGS for several convex problems at once, whose gradients cost least when computed together.

Arrays have the problems first, (q, ...); each problem has its own step and its own memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Evaluate = Callable[[Array], tuple[Array, Array]]  # point to its gradient and its curvature
Precondition = Callable[[Array, Array], Array]  # curvature, vector to its product
Pair = tuple[Array, Array, Array]  # step, change of gradient, 1 / their product

HISTORY = 10  # pairs remembered
RESCALED = 2  # iterations in which the preconditioner is rescaled; more cost more than they save
MAX_ITERATIONS = 2000


def minimise(
    start: Array,
    *,
    evaluate: Evaluate,
    precondition: Precondition,
    is_done: Callable[[Array, Array, Array, Array], NDArray[np.bool_]],
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Array, bool]:
    """Minimise until every problem is done; one that is done stays where it is.

    Parameters
    ----------
    start : float array of shape (q, k, d)
    evaluate : called with a point, gives its gradient (q, k, d), and whatever of its curvature
        `precondition` takes
    precondition : called with a curvature and a vector, multiplies that by about the inverse
        Hessian
    is_done : called with a point, its gradient, its squared Newton decrement (the gradient's
        product with the inverse Hessian and itself, of shape (q,)) and its curvature, gives a bool
        array of shape (q,)
    max_iterations : int

    Returns
    -------
    point : float array of shape (q, k, d)
    all_done : bool, False where so many iterations did not suffice
    """
    point = start
    gradient, curvature = evaluate(point)
    pairs: list[Pair] = []
    scale = np.ones_like(dot(gradient, gradient))
    for _ in range(max_iterations):
        apply = partial(precondition, curvature)
        if 0 < len(pairs) <= RESCALED:
            scale = _scale(pairs[-1], apply)
        direction = -_inverse_hessian_times(gradient, pairs, apply, scale)
        # before there are pairs nothing is known of the curvature that the decrement speaks of
        decrement = -dot(gradient, direction) if pairs else np.full_like(scale, np.inf)
        done = is_done(point, gradient, decrement, curvature)
        if done.all():
            return point, True
        if (dot(gradient, direction) >= 0)[~done].any():  # rounding has spoilt the memory
            pairs, direction = [], -apply(gradient)
        direction[done] = 0
        step, ahead, curvature = _line_search(evaluate, point, gradient, direction)
        change = ahead - gradient
        product = dot(step, change)
        inverse = np.divide(1, product, out=np.zeros_like(product), where=product > 0)
        pairs = [*pairs[1 - HISTORY :], (step, change, inverse)]
        point, gradient = point + step, ahead
    return point, False


def dot(a: Array, b: Array) -> Array:
    """Inner product of each problem's arrays: shapes (q, k, d) and (q, k, d) to (q,)."""
    return np.asarray(np.einsum("qkd,qkd->q", a, b))


def _scale(pair: Pair, precondition: Callable[[Array], Array]) -> Array:
    """By how much the preconditioner, right in shape, is too small, by the latest pair: (q,)."""
    step, change, _ = pair
    expected = dot(change, precondition(change))
    return np.divide(dot(step, change), expected, out=np.ones_like(expected), where=expected > 0)


def _inverse_hessian_times(
    gradient: Array, pairs: list[Pair], precondition: Callable[[Array], Array], scale: Array
) -> Array:
    """Run the two loops of L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.4)."""
    q, factors = gradient.copy(), []
    for step, change, inverse in reversed(pairs):
        factor = inverse * dot(step, q)
        q -= factor[:, None, None] * change
        factors.append(factor)
    q = scale[:, None, None] * precondition(q)
    for (step, change, inverse), factor in zip(pairs, reversed(factors), strict=True):
        q += (factor - inverse * dot(change, q))[:, None, None] * step
    return q


def _line_search(
    evaluate: Evaluate, point: Array, gradient: Array, direction: Array
) -> tuple[Array, Array, Array]:
    """Shorten each problem's step until the gradient along it has not turned up steeply.

    The problems are convex, so that the gradient alone tells a good step (the approximate Wolfe
    condition of Hager and Zhang, 2005); a loss in float32 is too coarse near the minimum.
    """
    start = dot(gradient, direction)
    length = np.ones_like(start)
    for _ in range(10):
        step = length[:, None, None] * direction
        ahead, curvature = evaluate(point + step)
        end = dot(ahead, direction)
        beyond = end > 0.8 * np.abs(start)
        if not beyond.any():
            break
        secant = np.divide(start, start - end, out=np.ones_like(start), where=beyond)
        length *= np.where(beyond, secant.clip(0.1, 0.9), 1)
    return step, ahead, curvature
