"""A linear layer's weights and its product: the one seam behind which formats and kernels of weights differ."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from model.kernels.cpu import calls
from model.ops.activations import Activation
from model.ops.norm import Norm, normalise
from model.params.packed_matrix import PackedMatrix, round_inputs, take_rows, unpack

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from flax.struct import dataclass

Matrix = Array | PackedMatrix


@dataclass
class Linear:
    """weight [out, in], an array in the checkpoint's order and dtype or a packed one; bias [out] or None."""

    weight: Matrix
    bias: Array | None = None


def project(
    x: Array,
    linear: Linear,
    norm: Norm | None = None,
    activation: Activation | None = None,
    times: Array | None = None,
    plus: Array | None = None,
) -> Array:
    """activation(norm(x) W^T + b) * times + plus: x [..., in] float32 -> [..., out] float32.

    Summed in float32. What a layer does around its product belongs here because a kernel does it on the way.
    """
    assert times is None or plus is None
    packed = linear.weight
    if isinstance(packed, PackedMatrix) and calls.available():
        return jax.lax.platform_dependent(
            cpu=lambda: calls.linear(x, packed, linear.bias, norm, activation, times, plus),
            default=lambda: _project(x, linear, norm, activation, times, plus),
        )
    return _project(x, linear, norm, activation, times, plus)


def _project(
    x: Array, linear: Linear, norm: Norm | None, activation: Activation | None, times: Array | None, plus: Array | None
) -> Array:
    y = _product(x if norm is None else normalise(x, norm), linear.weight)
    y = y if linear.bias is None else y + linear.bias.astype(jnp.float32)
    y = y if activation is None else activation(y)
    y = y if times is None else y * times
    return y if plus is None else y + plus


def _product(x: Array, weight: Matrix) -> Array:
    """x [..., in] float32 times weight [out, in] transposed -> [..., out] float32.

    The contraction lies on the minor axis of both, where XLA's CPU product is fastest. With 16-bit weights a CPU keeps
    x in float32 (the weights are then the only rounding); accelerators round x to the weights' type for their matrix
    units and accumulate in float32.
    """
    if isinstance(weight, PackedMatrix):
        numbers = unpack(weight)
        return jax.lax.platform_dependent(
            cpu=lambda: _dot(round_inputs(x, weight), numbers),  # what the kernels compute
            default=lambda: _dot(x.astype(weight.dtype), numbers.astype(weight.dtype)),
        )
    if weight.dtype == jnp.float32:
        return _dot(x, weight)
    return jax.lax.platform_dependent(
        x,
        weight,
        cpu=lambda x, w: _dot(x, w.astype(jnp.float32)),
        default=lambda x, w: _dot(x.astype(w.dtype), w),
    )


def apply_norm(x: Array, norm: Norm, weight: Matrix) -> Array:
    """norm(x) [..., n] float32, computed where `project` computes with such a weight."""
    if isinstance(weight, PackedMatrix) and calls.available():
        return jax.lax.platform_dependent(cpu=lambda: calls.norm(x, norm), default=lambda: normalise(x, norm))
    return normalise(x, norm)


def take(matrix: Matrix, ids: Array) -> Array:
    """Rows `ids` [...] int32 of a matrix [n, d] -> [..., d] float32."""
    if isinstance(matrix, PackedMatrix):
        return take_rows(matrix, ids)
    return matrix[ids].astype(jnp.float32)


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
