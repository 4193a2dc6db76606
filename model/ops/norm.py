"""LayerNorm and RMSNorm over the last axis, in float32 (llm-foundry `models/layers/norm.py`)."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
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


def normalise_on_host(x: npt.NDArray[np.float32], norm: Norm) -> npt.NDArray[np.float32]:
    """Return `normalise` of x [n, d] -> [n, d] float32, by numpy in float64: no row's result depends on the others.

    norm: its arrays may be numpy's.
    """
    y = x.astype(np.float64)
    if not norm.rms:
        y -= y.mean(axis=-1, keepdims=True)
    y /= np.sqrt(np.square(y).mean(axis=-1, keepdims=True) + norm.eps)
    y *= np.asarray(norm.weight).astype(np.float64)
    if norm.bias is not None:
        y += np.asarray(norm.bias).astype(np.float64)
    return y.astype(np.float32)
