"""Matrices in the order in which the CPU kernels read them, as float32, bfloat16, int8 or int4.

A panel holds 32 output features; within it lie steps along the inputs, and in a step, feature by feature, the four
bytes that meet four bytes of an input row (`kernels/cpu/src/kernels.h`). Quantised matrices lie like that on every
device; accelerators compute with `unpack`.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import flax.struct
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array
from numpy.typing import NDArray

from model.checkpoint.stored_tensor import aligned_empty
from model.kernels.cpu.library import kernel_library

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    from flax.struct import dataclass

PANEL = 32
INT8_INPUT_GROUP = 256  # inputs of a row that share a scale where weights are int8; int4 weights have groups of theirs
_PANELS_PER_THREAD = 32  # at least: below it a thread costs more than it brings
_MOST_THREADS = 16  # each holds memory of its own
_OFFSET = {"int8": 128, "int4": 8}  # added to a quantised number, which makes it unsigned


@dataclass
class PackedMatrix:
    """A matrix [N, K] of features by inputs.

    data: float32 [P, K, 32]; bfloat16 [P, ceil(K/2), 32, 2]; int8, as w + 128 in uint8, [P, ceil(K/4), 32, 4];
        int4, as w + 8 in nibbles of uint8, [P, ceil(K/4), 16, 4], features 0 to 15 of a panel in the low ones.
        P is ceil(N/32); places without a feature or an input hold zero weights.
    row_scale: [N] float32 where quantised. group_scale: [P, ceil(K/group), 32] float16 where int4, relative to it.
    A quantised weight is (data - offset) * row_scale (* group_scale).
    """

    data: Array
    row_scale: Array | None = None
    group_scale: Array | None = None
    shape: tuple[int, int] = flax.struct.field(pytree_node=False, default=(0, 0))
    format: str = flax.struct.field(pytree_node=False, default="float32")
    group: int = flax.struct.field(pytree_node=False, default=0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What the numbers are to those who compute with them."""
        return np.dtype(np.float32) if self.format == "float32" else np.dtype(ml_dtypes.bfloat16)


def pack_floats(weight: NDArray[Any]) -> NDArray[Any]:
    """`PackedMatrix.data` of a float32 or bfloat16 matrix [N, K] on the host."""
    per_word = 4 // weight.dtype.itemsize
    if weight.shape[1] % per_word:
        weight = np.pad(weight, ((0, 0), (0, 1)))
    packed = _pack_words(np.ascontiguousarray(weight).view(np.uint32), 0).view(weight.dtype)
    return packed if per_word == 1 else packed.reshape(*packed.shape[:2], PANEL, per_word)


def pack_codes(codes: NDArray[np.int8], format: str) -> NDArray[np.uint8]:
    """`PackedMatrix.data` of quantised numbers [N, K]: int8 from -127 to 127, int4 from -8 to 7."""
    N, K = codes.shape
    offset = _OFFSET[format]
    unsigned = np.full((N, -(-K // 4) * 4), offset, np.uint8)
    np.add(codes, offset, out=unsigned[:, :K], dtype=np.int16, casting="unsafe")
    packed = _pack_words(unsigned.view(np.uint32), offset * 0x01010101).view(np.uint8)
    packed = packed.reshape(*packed.shape[:2], PANEL, 4)
    return packed if format == "int8" else np.bitwise_or(packed[:, :, :16], packed[:, :, 16:] << 4)


def _pack_words(words: NDArray[np.uint32], padding: int) -> NDArray[np.uint32]:
    """[N, S] -> [P, S, 32], `padding` where there is no feature."""
    N, S = words.shape
    panels = -(-N // PANEL)
    out = aligned_empty((panels, S, PANEL), np.dtype(np.uint32))
    library = kernel_library()
    if library is None:
        padded = np.pad(words, ((0, panels * PANEL - N), (0, 0)), constant_values=padding)
        np.copyto(out, padded.reshape(panels, PANEL, S).swapaxes(1, 2))
        return out

    def pack(part: slice) -> None:
        library.pack_panels(words.ctypes.data, N, S, padding, part.start, part.stop, out.ctypes.data)

    threads = max(1, min(os.cpu_count() or 1, panels // _PANELS_PER_THREAD))
    in_threads(pack, [slice(panels * i // threads, panels * (i + 1) // threads) for i in range(threads)])
    return out


def in_threads(work: Callable[[slice], None], parts: Sequence[slice]) -> None:
    """Every part's work, on as many threads as there are cores; for native code, which holds no interpreter lock."""
    if len(parts) == 1:
        work(parts[0])
        return
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as executor:
        for _ in executor.map(work, parts):
            pass


def unpack(matrix: PackedMatrix) -> Array:
    """-> [N, K] float32. The definition of what the kernels multiply with."""
    data, (N, K) = matrix.data, matrix.shape
    if matrix.format == "int4":
        data = jnp.concatenate([data & 15, data >> 4], axis=2)
    numbers = jnp.swapaxes(data, 1, 2).reshape(data.shape[0] * PANEL, -1)[:N, :K]
    groups = matrix.group_scale
    if groups is not None:
        groups = jnp.swapaxes(groups, 1, 2).reshape(data.shape[0] * PANEL, -1)[:N]
    return _scaled(matrix, numbers, matrix.row_scale, groups)


def round_inputs(x: Array, matrix: PackedMatrix) -> Array:
    """x [..., K] float32 as the matrix meets it on a CPU: rounded to bfloat16 beside bfloat16 weights; beside
    quantised ones, per row and group of inputs, a whole number from -127 to 127 times a scale.
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
    """Features `ids` [...] int32 -> [..., K] float32."""
    panel, place = ids // PANEL, ids % PANEL
    if matrix.format == "int4":
        data = matrix.data[panel, :, place % 16]
        data = jnp.where((place < 16)[..., None, None], data & 15, data >> 4)
    else:
        data = matrix.data[panel, :, place]  # [..., steps(, per step)]
    numbers = data.reshape(*ids.shape, -1)[..., : matrix.shape[1]]
    groups = None if matrix.group_scale is None else matrix.group_scale[panel, :, place]
    return _scaled(matrix, numbers, None if matrix.row_scale is None else matrix.row_scale[ids], groups)


def _scaled(matrix: PackedMatrix, numbers: Array, row_scale: Array | None, group_scale: Array | None) -> Array:
    """Stored numbers [..., K] with scales [...] and [..., groups] -> weights [..., K] float32."""
    if row_scale is None:
        return numbers.astype(jnp.float32)
    scale = row_scale[..., None]
    if group_scale is not None:
        scale = scale * jnp.repeat(group_scale.astype(jnp.float32), matrix.group, axis=-1)[..., : matrix.shape[1]]
    return (numbers.astype(jnp.float32) - _OFFSET[matrix.format]) * scale
