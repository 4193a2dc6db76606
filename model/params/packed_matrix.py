"""Matrices in the order in which the CPU kernels read them, as float32, bfloat16, int8 or int4.

A panel holds 32 output features; within it lie steps along the inputs, and in a step, feature by feature, the four
bytes that are multiplied with four bytes of an input row (`kernels/cpu/src/kernels.h`). Quantised matrices have this
layout on every device; accelerators compute with `unpack`. `checkpoint.pack` makes these matrices.
"""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array

from model.ops.pytree import dataclass, static

PANEL = 32
INT8_INPUT_GROUP = 256  # inputs of a row that share a scale where weights are int8; int4 weights set their own group
CODE_OFFSET = {"int8": 128, "int4": 8}  # added to a quantised number, which makes it unsigned


@dataclass
class PackedMatrix:
    """A matrix [N, K] of features by inputs.

    data: float32 [P, K, 32]; bfloat16 [P, ceil(K/2), 32, 2]; int8, as w + 128 in uint8, [P, ceil(K/4), 32, 4];
        int4, as w + 8 in nibbles of uint8, [P, ceil(K/4), 16, 4], features 0 to 15 of a panel in the low ones.
        P is ceil(N/32); entries without a feature or an input hold zero weights.
    row_scale: [N] float32 where quantised. group_scale: [P, ceil(K/group), 32] float16 where int4, relative to it.
    A quantised weight is (data - offset) * row_scale (* group_scale).
    """

    data: Array
    row_scale: Array | None = None
    group_scale: Array | None = None
    shape: tuple[int, int] = static((0, 0))
    format: str = static("float32")
    group: int = static(0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the weights in a product."""
        return np.dtype(np.float32) if self.format == "float32" else np.dtype(ml_dtypes.bfloat16)


def packed_arrays(shape: tuple[int, ...], format: str, group: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shapes and dtypes of the arrays of a `PackedMatrix`, by field name."""
    if format == "float32":
        return {"data": ((-(-shape[0] // PANEL), shape[1], PANEL), np.dtype(np.float32))}
    if format == "bfloat16":
        return {"data": ((-(-shape[0] // PANEL), -(-shape[1] // 2), PANEL, 2), np.dtype(ml_dtypes.bfloat16))}
    panels, steps = -(-shape[0] // PANEL), -(-shape[1] // 4)
    int4 = format == "int4"
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "data": ((panels, steps, PANEL // 2 if int4 else PANEL, 4), np.dtype(np.uint8)),
        "row_scale": ((shape[0],), np.dtype(np.float32)),
    }
    if int4:
        arrays["group_scale"] = ((panels, -(-shape[1] // group), PANEL), np.dtype(np.float16))
    return arrays


def unpack(matrix: PackedMatrix) -> Array:
    """Return the weights [N, K] float32: the definition of what the kernels multiply with."""
    data, (N, K) = matrix.data, matrix.shape
    if matrix.format == "int4":
        data = jnp.concatenate([data & 15, data >> 4], axis=2)
    numbers = jnp.swapaxes(data, 1, 2).reshape(data.shape[0] * PANEL, -1)[:N, :K]
    groups = matrix.group_scale
    if groups is not None:
        groups = jnp.swapaxes(groups, 1, 2).reshape(data.shape[0] * PANEL, -1)[:N]
    return _scaled(matrix, numbers, matrix.row_scale, groups)


def round_inputs(x: Array, matrix: PackedMatrix) -> Array:
    """Return x [..., K] float32 as the CPU kernels round it for the product with the matrix.

    Beside bfloat16 weights, to bfloat16; beside quantised ones, per row and group of inputs, to a scale times an
    integer from -127 to 127.
    """
    if matrix.format == "float32":
        return x
    if matrix.format == "bfloat16":
        return x.astype(jnp.bfloat16).astype(jnp.float32)
    K = matrix.shape[1]
    group = matrix.group or INT8_INPUT_GROUP
    runs = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -K % group)]).reshape(*x.shape[:-1], -1, group)
    top = jnp.max(jnp.abs(runs), axis=-1, keepdims=True)
    factor = jnp.where(top > 1e-30, 127 / top, 0)  # below, the quotient would overflow
    return (jnp.round(runs * factor) * (top / 127)).reshape(*x.shape[:-1], -1)[..., :K]


def take_rows(matrix: PackedMatrix, ids: Array) -> Array:
    """Return the features `ids` [...] int32 -> [..., K] float32."""
    panel, feature = ids // PANEL, ids % PANEL
    if matrix.format == "int4":
        data = matrix.data[panel, :, feature % 16]
        data = jnp.where((feature < 16)[..., None, None], data & 15, data >> 4)
    else:
        data = matrix.data[panel, :, feature]  # [..., steps(, per step)]
    numbers = data.reshape(*ids.shape, -1)[..., : matrix.shape[1]]
    groups = None if matrix.group_scale is None else matrix.group_scale[panel, :, feature]
    return _scaled(matrix, numbers, None if matrix.row_scale is None else matrix.row_scale[ids], groups)


def _scaled(matrix: PackedMatrix, numbers: Array, row_scale: Array | None, group_scale: Array | None) -> Array:
    """Return weights [..., K] float32 of stored numbers [..., K] and scales [...] and [..., groups]."""
    if row_scale is None:
        return numbers.astype(jnp.float32)
    scale = row_scale[..., None]
    if group_scale is not None:
        scale = scale * jnp.repeat(group_scale.astype(jnp.float32), matrix.group, axis=-1)[..., : matrix.shape[1]]
    return (numbers.astype(jnp.float32) - CODE_OFFSET[matrix.format]) * scale
