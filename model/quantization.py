"""Which parameter is kept in which format, and how a matrix becomes int8 or int4.

int8: one scale per output feature. int4: one scale per `group` inputs of a feature; of several scales, the one with
the least squared error. The embedding and the head stay int8 beside int4 blocks: they are few of a large model's
bytes, and their errors reach the logits directly.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from model.config import MptConfig
from model.packed import PANEL, PackedMatrix, pack_codes, pack_floats
from model.sharding import leaf_paths
from model.weights import Weights, assemble_weights

Quantization = Literal["none", "int8", "int4"]
QUANTIZATIONS: tuple[str, ...] = get_args(Quantization)

_ROWS_AT_ONCE = 4096  # features quantised at a time: bounds what that holds beside the matrix
_SHRINKINGS = tuple(1.0 - 0.04 * i for i in range(8))  # of a group's range, tried for int4


@dataclass(frozen=True)
class WeightFormat:
    """How matrices are kept: quantised or not, and in the CPU kernels' order (`packed`) or the checkpoint's.

    group: inputs that share a scale where weights are int4; a multiple of 4. Raises ValueError where a field is wrong.
    """

    quantization: str = "none"
    packed: bool = False
    group: int = 32

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


AS_STORED = WeightFormat()
"""Arrays in the checkpoint's order and dtype."""


def pack_matrix(weight: NDArray[Any], format: str, group: int) -> PackedMatrix:
    """A matrix [N, K] on the host in a format of `PackedMatrix`; its arrays are numpy's."""
    shape = (weight.shape[0], weight.shape[1])
    if format in ("float32", "bfloat16"):
        return PackedMatrix(pack_floats(weight.astype(format, copy=False)), shape=shape, format=format)  # type: ignore[arg-type]
    codes = np.empty(shape, np.int8)
    row_scale = np.empty(shape[0], np.float32)
    groups = np.zeros((-(-shape[0] // PANEL) * PANEL, -(-shape[1] // group)), np.float16)
    for start in range(0, shape[0], _ROWS_AT_ONCE):
        part = slice(start, min(start + _ROWS_AT_ONCE, shape[0]))
        if format == "int8":
            codes[part], row_scale[part] = _on_cpu(_quantise_int8, weight[part])
        else:
            codes[part], row_scale[part], groups[part] = _on_cpu(partial(_quantise_int4, group=group), weight[part])
    data = pack_codes(codes, format)
    if format == "int8":
        return PackedMatrix(data, row_scale, shape=shape, format=format)  # type: ignore[arg-type]
    panels = np.ascontiguousarray(groups.reshape(-1, PANEL, groups.shape[1]).swapaxes(1, 2))
    return PackedMatrix(data, row_scale, panels, shape, format, group)  # type: ignore[arg-type]


def pack_weights(weights: Weights, config: MptConfig, format: WeightFormat) -> Weights:
    """The same weights with their plain matrices in another format; what is packed already stays as it is."""

    def convert(path: str, leaf: Array | PackedMatrix) -> Array | PackedMatrix:
        packed = None if isinstance(leaf, PackedMatrix) else format.of(path, leaf.dtype, config.tied_head)
        return leaf if packed is None else jax.device_put(pack_matrix(np.asarray(leaf), packed, format.group))

    leaves = leaf_paths(weights, is_leaf=lambda node: isinstance(node, PackedMatrix))
    converted = {path: convert(path, leaf) for path, leaf in leaves.items()}
    return assemble_weights(config, converted, weights.blocks[0].attn.shards)


def _on_cpu(quantise: Any, weight: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return tuple(np.asarray(a) for a in quantise(weight))


@jax.jit
def _quantise_int8(weight: Array) -> tuple[Array, Array]:
    """[n, K] -> numbers [n, K] int8, scale [n] float32"""
    weight = weight.astype(jnp.float32)
    top = jnp.max(jnp.abs(weight), axis=1)
    scale = jnp.where(top > 0, top / 127, 1.0)
    return jnp.round(weight / scale[:, None]).astype(jnp.int8), scale


@partial(jax.jit, static_argnames="group")
def _quantise_int4(weight: Array, group: int) -> tuple[Array, Array, Array]:
    """[n, K] -> numbers [n, K] int8, scale [n] float32, scale of each group relative to it [n, G] float16.

    A group's number of the largest magnitude becomes -8, the one place that has no counterpart, so that scales may be
    negative.
    """
    n, K = weight.shape
    weight = jnp.pad(weight.astype(jnp.float32), ((0, 0), (0, -K % group))).reshape(n, -1, group)
    largest = jnp.take_along_axis(weight, jnp.argmax(jnp.abs(weight), axis=2, keepdims=True), axis=2)[..., 0]
    full = largest / -8  # [n, G]
    top = jnp.max(jnp.abs(full), axis=1)
    row_scale = jnp.where(top > 0, top, 1.0)

    def numbers(scale: Array) -> Array:
        safe = jnp.where(scale == 0, 1.0, scale)[..., None]
        return jnp.clip(jnp.round(weight / safe), -8, 7)

    def relative(shrinking: float) -> Array:
        return (shrinking * full / row_scale[:, None]).astype(jnp.float16)

    best, least = relative(1.0), jnp.full(full.shape, jnp.inf)
    for shrinking in _SHRINKINGS:
        candidate = relative(shrinking)
        scale = candidate.astype(jnp.float32) * row_scale[:, None]
        error = jnp.sum(jnp.square(numbers(scale) * scale[..., None] - weight), axis=2)
        best, least = jnp.where(error < least, candidate, best), jnp.minimum(error, least)
    codes = numbers(best.astype(jnp.float32) * row_scale[:, None])
    return codes.reshape(n, -1)[:, :K].astype(jnp.int8), row_scale, best
