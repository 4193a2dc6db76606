"""LayerNorm and RMSNorm over the last axis, in float32 (llm-foundry `models/layers/norm.py`)."""

from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from flax.struct import dataclass


@dataclass
class Norm:
    """weight [n], bias [n] or None; `rms` says which norm it is, eps what is added to the variance."""

    weight: Array
    bias: Array | None = None
    rms: bool = flax.struct.field(pytree_node=False, default=False)
    eps: float = flax.struct.field(pytree_node=False, default=1e-5)


def normalise(x: Array, norm: Norm) -> Array:
    """x [..., n] -> [..., n] float32: LayerNorm (population variance) or RMSNorm."""
    x = x.astype(jnp.float32)
    if not norm.rms:
        x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + norm.eps)
    x = x * norm.weight.astype(jnp.float32)
    return x if norm.bias is None else x + norm.bias.astype(jnp.float32)
