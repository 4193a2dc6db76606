"""Products and norms by the native kernels: `layers.linear.project` and `ops.norm.normalise` on a CPU."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from model.kernels.cpu.library import kernel_call
from model.ops.activations import Activation
from model.ops.norm import Norm
from model.params.packed_matrix import PackedMatrix

# In the order of the enumerations in src/kernels.h.
_FORMATS = ("float32", "bfloat16", "int8", "int4")
_ACTIVATIONS = ("none", "gelu", "gelu_tanh", "silu", "relu", "quick_gelu")
_COMBINATIONS = ("none", "add", "multiply")
_FUSED = {
    Activation("gelu"): "gelu",
    Activation("gelu", (("approximate", "none"),)): "gelu",
    Activation("gelu", (("approximate", "tanh"),)): "gelu_tanh",
    Activation("silu"): "silu",
    Activation("relu"): "relu",
    Activation("quick_gelu"): "quick_gelu",
}


def linear(
    x: Array,
    weight: PackedMatrix,
    bias: Array | None = None,
    norm: Norm | None = None,
    activation: Activation | None = None,
    times: Array | None = None,
    plus: Array | None = None,
) -> Array:
    """Compute `layers.linear.project` over a packed matrix: x [..., K] float32 -> [..., N] float32.

    Inputs are rounded to bfloat16 where the weights are, and quantised where the weights are: per row and 256 inputs
    (int8) or group (int4), to integers from -127 to 127. A row's result does not depend on the other rows.
    """
    lead, (N, K) = x.shape[:-1], weight.shape
    fused = fused_activation(activation) if activation is not None else "none"
    other = times if times is not None else plus
    combination = "none" if other is None or fused is None else "add" if times is None else "multiply"
    norm_arguments, norm_attributes = _norm_arguments(norm)
    arguments = [*norm_arguments, weight.row_scale, weight.group_scale, vector(bias)]
    if combination != "none" and other is not None:
        arguments.append(other.reshape(-1, N))
    arguments = [x.reshape(-1, K), weight.data, *(a for a in arguments if a is not None)]
    y = kernel_call(
        "mpt_linear",
        jax.ShapeDtypeStruct((math.prod(lead), N), jnp.float32),
        input_output_aliases=None if combination == "none" else {len(arguments) - 1: 0},
    )(
        *arguments,
        **norm_attributes,
        format=np.int32(_FORMATS.index(weight.format)),
        bias=bias is not None,
        activation=activation_number(fused or "none"),
        combine=np.int32(_COMBINATIONS.index(combination)),
        group=np.int64(weight.group),
    ).reshape(*lead, N)
    if fused is None and activation is not None:  # an activation that no kernel has
        y = activation(y)
        y = y if times is None else y * times
        y = y if plus is None else y + plus
    return y


def norm(x: Array, norm: Norm) -> Array:
    """Compute `ops.norm.normalise`: x [..., K] float32 -> the same; no row's result depends on the other rows."""
    vectors, attributes = _norm_arguments(norm)
    arguments = [vector for vector in vectors if vector is not None]
    call = kernel_call("mpt_norm", jax.ShapeDtypeStruct(x.shape, jnp.float32))
    return call(x, *arguments, **attributes)


def fused_activation(activation: Activation) -> str | None:
    """Return the kernels' name of an activation; None where they do not have it."""
    return _FUSED.get(activation)


def activation_number(name: str) -> np.int32:
    """Return the number by which the kernels know an activation."""
    return np.int32(_ACTIVATIONS.index(name))


def norm_kind(norm: Norm | None) -> np.int32:
    """Return the number by which the kernels know a kind of norm; 0 for none."""
    return np.int32(0 if norm is None else 2 if norm.rms else 1)


def vector(x: Array | None) -> Array | None:
    """Return a vector in a dtype that the kernels read: float32 or bfloat16."""
    return x if x is None or x.dtype in (jnp.float32, jnp.bfloat16) else x.astype(jnp.float32)


def _norm_arguments(norm: Norm | None) -> tuple[list[Array | None], dict[str, object]]:
    if norm is None:
        return [], {"norm": norm_kind(None), "norm_bias": False, "eps": np.float32(0)}
    attributes = {"norm": norm_kind(norm), "norm_bias": norm.bias is not None, "eps": np.float32(norm.eps)}
    return [vector(norm.weight), vector(norm.bias)], attributes
