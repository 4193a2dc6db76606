"""Optimisers: Muon (Jordan et al. 2024) for the matrices inside the blocks, Adam for everything else.

Muon replaces a matrix's momentum by (nearly) the closest orthogonal matrix, so that every direction of the update has
the same size. Matrices of one shape are orthogonalised as one stack, which a mesh can divide between its devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from model.params.weights import Weights

MOMENTUM = 0.95
BETA1, BETA2, EPSILON = 0.9, 0.95, 1e-8
# Coefficients of the quintic iteration: they trade exactness for speed, singular values end in about [0.7, 1.2].
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5

Place = Callable[[Array], Array]
"""Places a stack [n, rows, columns] where its parts are computed, e.g. one half on each of two devices."""


class OptimizerState(NamedTuple):
    """State of both: step [] int32, `first` the momentum, `second` Adam's second moment (a scalar zero under Muon)."""

    step: Array
    first: Weights
    second: Weights


def orthogonalize(stack: Array) -> Array:
    """Move all singular values of matrices [n, r, c], r <= c, to about one; singular vectors stay (Newton-Schulz)."""

    def iterate(_: int, x: Array) -> Array:
        gram = x @ x.mT  # [n, r, r]
        return _A * x + (_B * gram + _C * gram @ gram) @ x

    scaled = stack / (jnp.linalg.norm(stack, axis=(1, 2), keepdims=True) + 1e-7)
    return lax.fori_loop(0, _ITERATIONS, iterate, scaled)


def is_block_matrix(path: tuple[Any, ...], leaf: Array) -> bool:
    """Return whether Muon updates this parameter: a matrix, but not an embedding or a head."""
    return leaf.ndim == 2 and "blocks" in jax.tree_util.keystr(path)


def init_state(weights: Weights) -> OptimizerState:
    """Return a state of zeros."""
    second = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.zeros(()) if is_block_matrix(path, leaf) else jnp.zeros_like(leaf), weights
    )
    return OptimizerState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, weights), second)


def _parts(path: tuple[Any, ...], matrix: Array) -> list[Array]:
    """Return the matrices inside a parameter: Q, K and V are three."""
    return jnp.split(matrix, 3) if "qkv" in jax.tree_util.keystr(path) else [matrix]


def _directions(momenta: dict[int, list[Array]], place: Place) -> dict[int, Array]:
    """Orthogonalise all parts, stacked by shape; return each parameter reassembled."""
    by_shape: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for index, parts in momenta.items():
        for i, part in enumerate(parts):
            by_shape.setdefault((min(part.shape), max(part.shape)), []).append((index, i))
    done: dict[tuple[int, int], Array] = {}
    for members in by_shape.values():
        wide = [_wide(momenta[index][i]) for index, i in members]
        for (index, i), result in zip(members, orthogonalize(place(jnp.stack(wide))), strict=True):
            rows, columns = momenta[index][i].shape
            # The root makes an update as large for a tall matrix as for a wide one.
            done[index, i] = (result.T if rows > columns else result) * max(1.0, rows / columns) ** 0.5
    return {index: jnp.concatenate([done[index, i] for i in range(len(parts))]) for index, parts in momenta.items()}


def _wide(matrix: Array) -> Array:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def update(
    weights: Weights,
    gradients: Weights,
    state: OptimizerState,
    muon_rate: Array,
    adam_rate: Array,
    place: Place = lambda stack: stack,
) -> tuple[Weights, OptimizerState]:
    """Take one step of both optimisers; rates are learning rates, [] float32."""
    step = state.step + 1
    paths, tree = jax.tree_util.tree_flatten_with_path(weights)
    grads, firsts, seconds = (jax.tree.leaves(t) for t in (gradients, state.first, state.second))
    new, momenta = [weight for _, weight in paths], {}
    for i, ((path, weight), grad) in enumerate(zip(paths, grads, strict=True)):
        if is_block_matrix(path, weight):
            firsts[i] = MOMENTUM * firsts[i] + grad
            momenta[i] = _parts(path, grad + MOMENTUM * firsts[i])
        else:
            firsts[i] = BETA1 * firsts[i] + (1 - BETA1) * grad
            seconds[i] = BETA2 * seconds[i] + (1 - BETA2) * grad * grad
            mean, variance = firsts[i] / (1 - BETA1**step), seconds[i] / (1 - BETA2**step)
            new[i] = weight - adam_rate * mean / (jnp.sqrt(variance) + EPSILON)
    for i, direction in _directions(momenta, place).items():
        new[i] = new[i] - muon_rate * direction
    weights, first, second = (jax.tree.unflatten(tree, leaves) for leaves in (new, firsts, seconds))
    return weights, OptimizerState(step, first, second)
