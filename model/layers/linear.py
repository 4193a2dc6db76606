"""Linear layers for weights of any format, and what stands between them: the one interface to their kernels."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from model.kernels.cpu.library import kernels_available
from model.kernels.cpu.linear import linear as cpu_linear
from model.kernels.cpu.linear import norm as cpu_norm
from model.kernels.cpu.rope import rope as cpu_rope
from model.ops.activations import Activation
from model.ops.norm import Norm, normalise
from model.ops.precision import product_precision
from model.ops.rope import apply_rope
from model.params.packed_matrix import PackedMatrix, round_inputs, take_rows, unpack
from model.params.weights import Linear, Matrix


def project(
    x: Array,
    linear: Linear,
    norm: Norm | None = None,
    activation: Activation | None = None,
    times: Array | None = None,
    plus: Array | None = None,
) -> Array:
    """Compute activation(norm(x) W^T + b) * times + plus: x [..., in] float32 -> [..., out] float32.

    Sums are float32; at most one of `times` and `plus` is given. The operations around the product are part of this
    function because a kernel fuses them with it.
    """
    assert times is None or plus is None
    packed = linear.weight
    if isinstance(packed, PackedMatrix) and kernels_available():
        return jax.lax.platform_dependent(
            cpu=lambda: cpu_linear(x, packed, linear.bias, norm, activation, times, plus),
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
    """Multiply x [..., in] float32 with weight [out, in] transposed -> [..., out] float32.

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
    """Return norm(x) [..., n] float32, computed by the kernels that `project` uses with such a weight."""
    if isinstance(weight, PackedMatrix) and kernels_available():
        return jax.lax.platform_dependent(cpu=lambda: cpu_norm(x, norm), default=lambda: normalise(x, norm))
    return normalise(x, norm)


def rotate(x: Array, positions: Array, frequencies: np.ndarray, weight: Matrix) -> Array:
    """Return RoPE of x [..., T, H, hd] float32, computed by the kernels that `project` uses with such a weight.

    positions [..., T]; frequencies [hd / 2] as `ops.rope.rope_frequencies`.
    """
    if isinstance(weight, PackedMatrix) and kernels_available():
        return jax.lax.platform_dependent(
            cpu=lambda: cpu_rope(x, positions, frequencies), default=lambda: apply_rope(x, positions, frequencies)
        )
    return apply_rope(x, positions, frequencies)


def take(matrix: Matrix, ids: Array) -> Array:
    """Return the rows `ids` [...] int32 of a matrix [n, d] -> [..., d] float32."""
    if isinstance(matrix, PackedMatrix):
        return take_rows(matrix, ids)
    return matrix[ids].astype(jnp.float32)


def _dot(x: Array, weight: Array) -> Array:
    contract = (((x.ndim - 1,), (1,)), ((), ()))
    precision = product_precision(weight.dtype)
    return jax.lax.dot_general(x, weight, contract, precision=precision, preferred_element_type=jnp.float32)
