"""Packs matrices on the host in the order of the CPU kernels (`params.packed_matrix`), quantised or not."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax import Array
from numpy.typing import NDArray

from model.checkpoint.host_threads import in_threads
from model.checkpoint.quantize import quantise_int4, quantise_int8
from model.checkpoint.stored_tensor import aligned_empty
from model.checkpoint.weight_memory import weight_empty
from model.config.mpt_config import MptConfig
from model.kernels.cpu.library import KernelLibrary, QuantiseArgs, kernel_library
from model.params.packed_matrix import CODE_OFFSET, PANEL, PackedMatrix, packed_arrays
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, path_name

_PART_BYTES = 2**21  # of a matrix in float32 that one thread quantises at a time: the size of its processor's cache
_PANELS_PER_THREAD = 32  # at least: with fewer, a thread costs more than it saves


def pack_weights(weights: Weights, config: MptConfig, format: WeightFormat) -> Weights:
    """Return the weights with their plain matrices in another format; those already packed stay as they are.

    Where the format packs nothing, the record itself is returned.
    """
    if not format.packs:
        return weights

    def convert(path: tuple[Any, ...], leaf: Array | PackedMatrix) -> Array | PackedMatrix:
        if isinstance(leaf, PackedMatrix):
            return leaf
        packed = format.of(path_name(path), leaf.dtype, config.tied_head)
        if packed is None:
            return leaf
        return jax.device_put(pack_matrix(np.asarray(leaf), packed, format.group), leaf.sharding)

    converted: Weights = jax.tree_util.tree_map_with_path(
        convert, weights, is_leaf=lambda node: isinstance(node, PackedMatrix)
    )
    return converted


def pack_matrix(weight: NDArray[Any], format: str, group: int) -> PackedMatrix:
    """Pack a matrix [N, K] on the host in a format of `PackedMatrix`; the result's arrays are numpy's.

    Needs little memory beside both. Raises ValueError where a number that is to be quantised is not finite.
    """
    shape = (weight.shape[0], weight.shape[1])
    if format in ("float32", "bfloat16"):
        return PackedMatrix(pack_floats(weight.astype(format, copy=False)), shape=shape, format=format)  # type: ignore[arg-type]
    arrays = {name: weight_empty(size, dtype) for name, (size, dtype) in packed_arrays(shape, format, group).items()}
    group = group if format == "int4" else 0
    library = kernel_library()
    finite = _quantise(weight, group, arrays) if library is None else _quantise_natively(library, weight, group, arrays)
    if not finite:
        raise ValueError("holds numbers that are not finite, which cannot be quantised")
    return PackedMatrix(**arrays, shape=shape, format=format, group=group)  # type: ignore[arg-type]


def _quantise(weight: NDArray[Any], group: int, arrays: Mapping[str, NDArray[Any]]) -> bool:
    """Fill the arrays of a `PackedMatrix`; return False where a number is not finite. group: 0 for int8."""
    finite = []

    def quantise(rows: slice) -> None:
        panels = panels_of(rows)
        part = weight[rows].astype(np.float32)
        finite.append(bool(np.isfinite(part).all()))
        if not finite[-1]:
            return
        if group == 0:
            codes, arrays["row_scale"][rows] = quantise_int8(part)
        else:
            codes, arrays["row_scale"][rows], relative = quantise_int4(part, group)
            relative = np.pad(relative, ((0, -len(relative) % PANEL), (0, 0)))
            arrays["group_scale"][panels] = relative.reshape(-1, PANEL, relative.shape[1]).swapaxes(1, 2)
        arrays["data"][panels] = pack_codes(codes, "int4" if group else "int8")

    in_threads(quantise, panel_parts(*weight.shape))
    return all(finite)


def _quantise_natively(
    library: KernelLibrary, weight: NDArray[Any], group: int, arrays: Mapping[str, NDArray[Any]]
) -> bool:
    """As `_quantise`, to the same bits."""
    if weight.dtype not in (np.float32, ml_dtypes.bfloat16):
        weight = weight.astype(np.float32)
    weight = np.ascontiguousarray(weight)
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    dtype = 0 if weight.dtype == np.float32 else 1
    args = QuantiseArgs(weight.ctypes.data, dtype, *weight.shape, group, **addresses)
    finite = []

    def quantise(rows: slice) -> None:
        panels = panels_of(rows)
        finite.append(library.quantise_panels(args, panels.start, panels.stop))

    in_threads(quantise, panel_parts(*weight.shape))
    return all(finite)


def pack_floats(weight: NDArray[Any]) -> NDArray[Any]:
    """Return `PackedMatrix.data` of a float32 or bfloat16 matrix [N, K]."""
    per_word = 4 // weight.dtype.itemsize
    if weight.shape[1] % per_word:
        weight = np.pad(weight, ((0, 0), (0, 1)))
    packed = _pack_words(np.ascontiguousarray(weight).view(np.uint32), 0, weight_empty).view(weight.dtype)
    return packed if per_word == 1 else packed.reshape(*packed.shape[:2], PANEL, per_word)


def pack_codes(codes: NDArray[np.int8], format: str) -> NDArray[np.uint8]:
    """Return `PackedMatrix.data` of quantised numbers [N, K]: int8 from -127 to 127, int4 from -8 to 7."""
    N, K = codes.shape
    offset = CODE_OFFSET[format]
    unsigned = np.full((N, -(-K // 4) * 4), offset, np.uint8)
    np.add(codes.view(np.uint8), np.uint8(offset), out=unsigned[:, :K])  # wraps around: the bits of codes + offset
    packed = _pack_words(unsigned.view(np.uint32), offset * 0x01010101).view(np.uint8)
    packed = packed.reshape(*packed.shape[:2], PANEL, 4)
    return packed if format == "int8" else np.bitwise_or(packed[:, :, :16], packed[:, :, 16:] << 4)


def _pack_words(
    words: NDArray[np.uint32],
    padding: int,
    empty: Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]] = aligned_empty,
) -> NDArray[np.uint32]:
    """Pack words [N, S] -> [P, S, 32] in memory from `empty`, `padding` where there is no feature."""
    N, S = words.shape
    panels = -(-N // PANEL)
    out = empty((panels, S, PANEL), np.dtype(np.uint32))
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


def panel_parts(N: int, K: int) -> list[slice]:
    """Return runs of whole panels that cover N features."""
    rows = PANEL * min(max(_PART_BYTES // (4 * PANEL * max(K, 1)), 1), 32)
    return [slice(start, min(start + rows, N)) for start in range(0, N, rows)]


def panels_of(rows: slice) -> slice:
    """Return the panels of a run of features that begins with a panel."""
    return slice(rows.start // PANEL, -(-rows.stop // PANEL))
