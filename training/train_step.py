"""The compiled training step: loss, data-parallel gradients, and the optimisers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from training import muon
from training.forward import forward
from training.schedule import ADAM_RATE, MUON_RATE

AXIS = "data"
Step = Callable[
    [Weights, muon.OptimizerState, ArrayLike, ArrayLike, ArrayLike],
    tuple[Weights, muon.OptimizerState, Array | float],
]


def weighted_loss(weights: Weights, config: MptConfig, tokens: Array, target_weights: Array) -> tuple[Array, Array]:
    """Return the sum of weighted cross entropies (nats) and the sum of weights.

    tokens [B, T+1] int32, target_weights [B, T] float32 -> [] and [] float32.
    """
    logits = forward(weights, config, tokens[:, :-1])  # [B, T, V]
    picked = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    return jnp.sum(losses * target_weights), jnp.sum(target_weights)


def data_mesh() -> Mesh:
    """Return all local devices along one axis."""
    return Mesh(np.array(jax.devices()), (AXIS,))


@cache
def make_step(config: MptConfig, mesh: Mesh) -> Step:
    """Return the jitted (weights, state, tokens [B, T+1], target_weights [B, T], rate []) -> (weights, state, loss).

    B must be a multiple of the number of devices.
    """

    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(AXIS), P(AXIS)), out_specs=(P(), P()), check_vma=False)
    def gradients(weights: Weights, tokens: Array, target_weights: Array) -> tuple[Array, Weights]:
        def loss(weights: Weights) -> Array:
            total, _ = weighted_loss(weights, config, tokens, target_weights)
            return total / lax.psum(jnp.sum(target_weights), AXIS)

        value, grads = jax.value_and_grad(loss)(weights)
        return lax.psum((value, grads), AXIS)

    def place(stack: Array) -> Array:
        spec = P(AXIS) if stack.shape[0] % mesh.size == 0 else P()
        return lax.with_sharding_constraint(stack, NamedSharding(mesh, spec))

    @partial(jax.jit, donate_argnums=(0, 1), out_shardings=NamedSharding(mesh, P()))
    def step(
        weights: Weights, state: muon.OptimizerState, tokens: Array, target_weights: Array, rate: Array
    ) -> tuple[Weights, muon.OptimizerState, Array]:
        loss, grads = gradients(weights, tokens, target_weights)
        weights, state = muon.update(weights, grads, state, MUON_RATE * rate, ADAM_RATE * rate, place)
        return weights, state, loss

    return step
