"""Which parameter is kept in which format, and how a matrix becomes int8 or int4.

int8: one scale per output feature. int4: one scale per `group` inputs of a feature; of several scales, the one with
the least squared error. The embedding and the head stay int8 beside int4 blocks: they are few of a large model's
bytes, and their errors reach the logits directly.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax import Array
from numpy.typing import NDArray

from model.checkpoint.stored_tensor import aligned_empty
from model.config.mpt_config import MptConfig
from model.params.packed_matrix import PANEL, PackedMatrix, in_threads, pack_codes, pack_floats
from model.params.sharding import leaf_paths
from model.params.weights import Weights, assemble_weights

Quantization = Literal["none", "int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

_SHRINKINGS = (1.0, 0.94, 0.88, 0.82, 0.76)  # of a group's range, tried for int4
_PART_BYTES = 2**21  # of a matrix in float32 that one thread quantises at a time: what its processor's cache holds
_LEAST = 1e-30  # rows and groups below it become zero: their scales' inverses would overflow


@dataclass(frozen=True)
class WeightFormat:
    """How matrices are kept: quantised or not, and in the CPU kernels' order (`packed`) or the checkpoint's.

    group: inputs that share a scale where weights are int4; a multiple of 4. Raises ValueError where a field is wrong.
    """

    quantization: str = "none"
    packed: bool = False
    group: int = 64

    def __post_init__(self) -> None:
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {self.quantization!r}")
        if self.group < 4 or self.group % 4:
            raise ValueError(f"group must be a multiple of 4, got {self.group}")

    def of(self, path: str, dtype: Any, tied_head: bool) -> str | None:
        """The packed format of the parameter at `path` (`WeightSpec.path`), or None: an array as it is."""
        head = path == "lm_head" or (path == "wte" and tied_head)
        linear = path.endswith(("wqkv/weight", "_proj/weight"))
        if not head and not linear:
            return None
        if self.quantization != "none":
            return "int8" if head else self.quantization
        name = np.dtype(dtype).name
        return name if self.packed and name in ("float32", "bfloat16") else None

    def kept_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """The dtype in memory of a parameter stored as `stored`, where none is asked for."""
        widened = stored == np.float64 or (stored == np.float16 and self.packed)  # no kernel reads float16
        return np.dtype(np.float32) if widened else stored


AS_STORED = WeightFormat()
"""Arrays in the checkpoint's order and dtype."""


def packed_arrays(shape: tuple[int, ...], format: str, group: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shapes and dtypes of the arrays of a quantised `PackedMatrix`, by their names."""
    panels, steps = -(-shape[0] // PANEL), -(-shape[1] // 4)
    int4 = format == "int4"
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "data": ((panels, steps, PANEL // 2 if int4 else PANEL, 4), np.dtype(np.uint8)),
        "row_scale": ((shape[0],), np.dtype(np.float32)),
    }
    if int4:
        arrays["group_scale"] = ((panels, -(-shape[1] // group), PANEL), np.dtype(np.float16))
    return arrays


def pack_matrix(weight: NDArray[Any], format: str, group: int) -> PackedMatrix:
    """A matrix [N, K] on the host in a format of `PackedMatrix`; its arrays are numpy's.

    Needs little memory beside both. Raises ValueError where a number that is to be quantised is not finite.
    """
    shape = (weight.shape[0], weight.shape[1])
    if format in ("float32", "bfloat16"):
        return PackedMatrix(pack_floats(weight.astype(format, copy=False)), shape=shape, format=format)  # type: ignore[arg-type]
    arrays = {name: aligned_empty(size, dtype) for name, (size, dtype) in packed_arrays(shape, format, group).items()}

    def quantise(rows: slice) -> None:
        panels = slice(rows.start // PANEL, -(-rows.stop // PANEL))
        part = weight[rows].astype(np.float32)
        if not np.isfinite(part).all():
            raise ValueError("holds numbers that are not finite, which cannot be quantised")
        if format == "int8":
            codes, arrays["row_scale"][rows] = _quantise_int8(part)
        else:
            codes, arrays["row_scale"][rows], relative = _quantise_int4(part, group)
            relative = np.pad(relative, ((0, -len(relative) % PANEL), (0, 0)))
            arrays["group_scale"][panels] = relative.reshape(-1, PANEL, relative.shape[1]).swapaxes(1, 2)
        arrays["data"][panels] = pack_codes(codes, format)

    in_threads(quantise, _parts(*shape))
    return PackedMatrix(**arrays, shape=shape, format=format, group=group if format == "int4" else 0)  # type: ignore[arg-type]


def pack_weights(weights: Weights, config: MptConfig, format: WeightFormat) -> Weights:
    """The same weights with their plain matrices in another format; what is packed already stays as it is."""

    def convert(path: str, leaf: Array | PackedMatrix) -> Array | PackedMatrix:
        if isinstance(leaf, PackedMatrix) or (packed := format.of(path, leaf.dtype, config.tied_head)) is None:
            return leaf
        return jax.device_put(pack_matrix(np.asarray(leaf), packed, format.group), leaf.sharding)

    leaves = leaf_paths(weights, is_leaf=lambda node: isinstance(node, PackedMatrix))
    converted = {path: convert(path, leaf) for path, leaf in leaves.items()}
    return assemble_weights(config, converted, weights.blocks[0].attn.shards)


def _parts(N: int, K: int) -> list[slice]:
    """Runs of whole panels that cover N features."""
    rows = PANEL * min(max(_PART_BYTES // (4 * PANEL * max(K, 1)), 1), 32)
    return [slice(start, min(start + rows, N)) for start in range(0, N, rows)]


def _quantise_int8(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """[n, K], overwritten -> numbers [n, K], scale [n]"""
    top = np.maximum(weight.max(axis=1), -weight.min(axis=1))
    scale = np.where(top > _LEAST, top / np.float32(127), np.float32(1))
    weight *= (1 / scale)[:, None]
    return np.rint(weight, out=weight).astype(np.int8), scale


def _quantise_int4(
    weight: NDArray[np.float32], group: int
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float16]]:
    """[n, K] -> numbers [n, K], scale [n], scale of each group relative to it [n, G].

    A group's number of the largest magnitude becomes -8, the one place that has no counterpart, so that scales may be
    negative. Where less error comes of it, the scale shrinks and the largest numbers are cut off. The scale chosen
    then moves to the one that is best for its whole numbers.
    """
    n, K = weight.shape
    if K % group:
        weight = np.pad(weight, ((0, 0), (0, -K % group)))
    weight = weight.reshape(n, -1, group)
    high, low = weight.max(axis=2), weight.min(axis=2)
    full = np.where(high > -low, high, low) / np.float32(-8)  # [n, G]
    top = np.abs(full).max(axis=1)
    row_scale = np.where(top > _LEAST, top, np.float32(1))

    best, least = np.zeros(full.shape, np.float16), np.full(full.shape, np.inf, np.float32)
    numbers = np.empty_like(weight)
    for shrinking in _SHRINKINGS:
        relative = (np.float32(shrinking) * full / row_scale[:, None]).astype(np.float16)
        scale = _to_int4(weight, relative, row_scale, numbers)
        numbers *= scale[..., None]
        numbers -= weight
        error = np.einsum("ngk,ngk->ng", numbers, numbers)
        best, least = np.where(error < least, relative, best), np.minimum(error, least)
    _to_int4(weight, best, row_scale, numbers)
    fitted = np.einsum("ngk,ngk->ng", weight, numbers) / np.maximum(np.einsum("ngk,ngk->ng", numbers, numbers), 1)
    best = (fitted / row_scale[:, None]).astype(np.float16)
    _to_int4(weight, best, row_scale, numbers)
    return numbers.reshape(n, -1)[:, :K].astype(np.int8), row_scale, best


def _to_int4(
    weight: NDArray[np.float32], relative: NDArray[np.float16], row_scale: NDArray[np.float32], out: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Whole numbers of weight [n, G, group] into `out`; returns the scales [n, G] that they were found with."""
    scale = relative.astype(np.float32) * row_scale[:, None]
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > _LEAST)
    np.multiply(weight, inverse[..., None], out=out)
    np.rint(out, out=out)
    np.clip(out, -8, 7, out=out)
    return scale
