"""Rotary position embedding by the native kernels: `ops.rope.apply_rope` on a CPU."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from model.kernels.cpu.library import kernel_call


def rope(x: Array, positions: Array, frequencies: np.ndarray) -> Array:
    """Rotate x [..., T, H, hd] float32 by positions [..., T] -> the same shape; a token's result is its own alone."""
    lead, (heads, hd) = x.shape[:-2], x.shape[-2:]
    tokens = (math.prod(lead), heads, hd)
    y = kernel_call("mpt_rope", jax.ShapeDtypeStruct(tokens, jnp.float32))(
        x.reshape(tokens),
        jnp.broadcast_to(positions, lead).reshape(-1).astype(jnp.int32),
        frequencies=np.asarray(frequencies, np.float32),
    )
    return y.reshape(x.shape)
