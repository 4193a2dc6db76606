"""Muon's updates are nearly orthogonal; Adam's and Muon's parameters are distinguished."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.params.weights import Weights
from training import muon


@pytest.mark.parametrize("shape", [(16, 16), (16, 64)])
def test_orthogonalize_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, int]) -> None:
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(shape[0], shape[0])))
    v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(shape[1], shape[1])))
    values = np.linspace(1, 20, shape[0])
    matrix = (u * values) @ v[: shape[0]]
    result = np.asarray(muon.orthogonalize(jnp.asarray(matrix[None], jnp.float32)))[0]
    inside = u.T @ result @ v[: shape[0]].T  # diagonal when the singular vectors are the same
    assert np.all((np.diag(inside) > 0.6) & (np.diag(inside) < 1.3))
    assert np.abs(inside - np.diag(np.diag(inside))).max() < 1e-3


def test_orthogonalize_treats_each_matrix_of_a_stack_alone() -> None:
    stack = jnp.asarray(np.random.default_rng(2).normal(size=(3, 8, 12)), jnp.float32)
    together = muon.orthogonalize(stack)
    for i in range(3):
        np.testing.assert_allclose(together[i], muon.orthogonalize(stack[i : i + 1])[0], rtol=1e-4, atol=1e-5)


def test_update_moves_block_matrices_along_near_orthogonal_directions(weights: Weights) -> None:
    gradients = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(1.0, leaf.size + 1.0) ** 1.5).reshape(leaf.shape), weights)
    update = jax.jit(muon.update)
    moved, state = update(weights, gradients, muon.init_state(weights), jnp.float32(0.5), jnp.float32(0.01))
    assert int(state.step) == 1
    before, after = weights.blocks[0], moved.blocks[0]
    rows = weights.wte.shape[1]
    steps = (
        before.ffn.down_proj.weight - after.ffn.down_proj.weight,
        (before.ffn.up_proj.weight - after.ffn.up_proj.weight) / 2,  # tall by four: twice as large
        before.attn.wqkv.weight[:rows] - after.attn.wqkv.weight[:rows],
        before.attn.wqkv.weight[rows : 2 * rows] - after.attn.wqkv.weight[rows : 2 * rows],
    )
    for step in steps:
        sizes = np.linalg.svd(np.asarray(step) / 0.5, compute_uv=False)
        assert sizes.max() < 1.3
        assert np.median(sizes) > 0.6
    # Adam's first step is the rate times the sign of the gradient.
    np.testing.assert_allclose(weights.wte - moved.wte, 0.01 * np.sign(gradients.wte), atol=1e-5)


def test_muon_takes_block_matrices_only(weights: Weights) -> None:
    taken = jax.tree_util.tree_map_with_path(muon.is_block_matrix, weights)
    assert not taken.wte
    assert not taken.blocks[0].norm_1.weight
    assert taken.blocks[0].ffn.up_proj.weight
    assert taken.blocks[0].attn.wqkv.weight
