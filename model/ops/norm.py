"""LayerNorm and RMSNorm over the last axis, in float32 (llm-foundry `models/layers/norm.py`)."""

import jax
import jax.numpy as jnp
from jax import Array

from model.ops.pytree import dataclass, static


@dataclass
class Norm:
    """Parameters of a norm: weight [n], bias [n] or None; `rms` selects RMSNorm, `eps` is added to the variance."""

    weight: Array
    bias: Array | None = None
    rms: bool = static(False)
    eps: float = static(1e-5)


def normalise(x: Array, norm: Norm) -> Array:
    """Return LayerNorm (population variance) or RMSNorm of x: [..., n] -> [..., n] float32."""
    x = x.astype(jnp.float32)
    if not norm.rms:
        x = x - x.mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + norm.eps)
    x = x * norm.weight.astype(jnp.float32)
    return x if norm.bias is None else x + norm.bias.astype(jnp.float32)
