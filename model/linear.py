"""A linear layer's weights and its product: the one seam behind which formats and kernels of weights differ."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from flax.struct import dataclass


@dataclass
class Linear:
    """weight [out, in] in the checkpoint's order and dtype, bias [out] or None."""

    weight: Array
    bias: Array | None = None


def project(x: Array, linear: Linear) -> Array:
    """x [..., in] float32 -> [..., out] float32: x W^T + b, accumulated in float32."""
    y = matmul(x, linear.weight)
    return y if linear.bias is None else y + linear.bias.astype(jnp.float32)


def matmul(x: Array, weight: Array) -> Array:
    """x [..., in] float32 times weight [out, in] transposed -> [..., out] float32.

    The contraction lies on the minor axis of both, where XLA's CPU product is fastest. With 16-bit weights a CPU keeps
    x in float32 (the weights are then the only rounding); accelerators round x to the weights' type for their matrix
    units and accumulate in float32.
    """
    if weight.dtype == jnp.float32:
        return _dot(x, weight)
    return jax.lax.platform_dependent(
        x,
        weight,
        cpu=lambda x, w: _dot(x, w.astype(jnp.float32)),
        default=lambda x, w: _dot(x.astype(w.dtype), w),
    )


def _dot(x: Array, weight: Array) -> Array:
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    return jax.lax.dot_general(x, weight, contract, preferred_element_type=jnp.float32)
