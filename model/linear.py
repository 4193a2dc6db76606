"""A linear layer's weights and its product: the one seam behind which formats and kernels of weights differ."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

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


def product_precision(operands: DTypeLike) -> jax.lax.Precision | None:
    """float32 operands are multiplied as float32, unless `jax.default_matmul_precision` says otherwise.

    JAX's own default would round them on accelerators: to TF32 on a GPU, to bfloat16 on a TPU.
    """
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    exact = jnp.dtype(operands) == jnp.float32 and asked is None
    return jax.lax.Precision.HIGHEST if exact else None


def _dot(x: Array, weight: Array) -> Array:
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    precision = product_precision(weight.dtype)
    return jax.lax.dot_general(x, weight, contract, precision=precision, preferred_element_type=jnp.float32)
