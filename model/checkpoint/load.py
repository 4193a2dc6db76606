"""Loads a checkpoint folder into `Weights`: found, checked against the config as a whole, then read tensor by tensor.

Nothing is read before every name, shape and dtype has been compared with the model's table, so that a checkpoint that
does not fit is refused in milliseconds, with all its differences. Each tensor then goes straight to its dtype, format
and devices; the peak is the weights themselves and one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from numpy.typing import NDArray

from model.checkpoint.folder import find_tensors
from model.checkpoint.keep_int4 import Int4Keeper
from model.checkpoint.load_progress import LoadProgress
from model.checkpoint.match import Source, match_tensors
from model.checkpoint.pack import pack_matrix
from model.checkpoint.stored_tensor import CheckpointError, aligned_empty, read_tensor
from model.config.mpt_config import MptConfig
from model.params.head_layout import arrange_heads
from model.params.packed_matrix import PackedMatrix
from model.params.weight_format import AS_STORED, WeightFormat
from model.params.weights import Weights, assemble_weights, leaf_paths


def load_weights(
    folder: str | Path,
    config: MptConfig,
    dtype: DTypeLike | None = None,
    shardings: Weights | Sharding | None = None,
    progress: bool | None = None,
    format: WeightFormat = AS_STORED,
) -> Weights:
    """Read the weights of the checkpoint in `folder`.

    dtype: bfloat16, float16 or float32 for every parameter; None keeps each as it is stored (but float64, and float16
        where `format` is packed, as float32: no kernel reads them).
    shardings: where parameters go: one Sharding for all, a `Weights` of them (`sharding.weight_shardings`, whose
        `Attention.shards` also sets the order of heads), or None for JAX's default device.
    progress: whether to show a bar on stderr; None shows it on a terminal only.
    format: how matrices are kept; packed and quantised ones go to a single device.

    Raises CheckpointError where files are missing or damaged, or names, shapes or dtypes do not fit `config`.
    """
    shards = shardings.blocks[0].attn.shards if isinstance(shardings, Weights) else 1
    placements = leaf_paths(shardings) if isinstance(shardings, Weights) else {}
    leaves = {}
    for path, leaf in read_parameters(folder, config, dtype, shards, progress, format):
        leaves[path] = place(leaf, placements.get(path, shardings))
        del leaf
    return assemble_weights(config, leaves, shards)


def read_parameters(
    folder: str | Path,
    config: MptConfig,
    dtype: DTypeLike | None,
    shards: int,
    progress: bool | None,
    format: WeightFormat,
) -> Iterator[tuple[str, NDArray[Any] | PackedMatrix]]:
    """Yield the path of each parameter (`WeightSpec.path`) and its numbers on the host, one at a time.

    The arguments and errors are those of `load_weights`; shards: sets the order of heads.
    """
    target = _target_dtype(dtype)
    sources = match_tensors(Path(folder), find_tensors(folder), config)
    # The largest first: a tensor is in memory twice while it is packed, best while few others are. Of equal size in the
    # order of the file.
    sources.sort(key=lambda source: (-source.nbytes, source.parts[0].path.name, source.parts[0].offset))
    keeper = Int4Keeper(config, format)
    with LoadProgress(sum(source.nbytes for source in sources), progress) as bar:
        for source in sources:
            leaf: NDArray[Any] | PackedMatrix | None = keeper.matrix(source)
            if leaf is None:
                leaf = _in_format(_read(source, target, config, shards, format), source, config, format)
            yield source.spec.path, leaf
            del leaf
            bar.update(source.nbytes)
    keeper.log()


def _target_dtype(dtype: DTypeLike | None) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    target = jnp.dtype(dtype)
    if target not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise CheckpointError(f"dtype {target} is not one of bfloat16, float16, float32")
    return target


def _read(
    source: Source, target: np.dtype[Any] | None, config: MptConfig, shards: int, format: WeightFormat
) -> NDArray[Any]:
    """Read the parameter to the host, in its final dtype and order."""
    stored = source.parts[0].dtype
    dtype = target or format.kept_dtype(stored)
    host = aligned_empty(source.spec.shape, dtype)
    row = 0
    for part in source.parts:
        read_tensor(part, host[row : row + part.shape[0]])
        row += part.shape[0]
    return arrange_heads(source.spec.path, host, config, shards)


def _in_format(
    host: NDArray[Any], source: Source, config: MptConfig, format: WeightFormat
) -> NDArray[Any] | PackedMatrix:
    packed = format.of(source.spec.path, host.dtype, config.tied_head)
    if packed is None:
        return host
    try:
        return pack_matrix(host, packed, format.group)
    except ValueError as error:
        raise CheckpointError(f"{source.parts[0].path}: {source.spec.name!r} {error}") from None


def place(host: NDArray[Any] | PackedMatrix, sharding: Sharding | None) -> jax.Array | PackedMatrix:
    """Move a parameter to its devices. On the CPU the array adopts `host`, which nothing may write to any more."""
    if isinstance(host, PackedMatrix) or sharding is None or len(sharding.device_set) == 1:
        array = jax.device_put(host, sharding)
    else:  # every process provides only its own devices' slices
        array = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
    return jax.block_until_ready(array)  # so that copies on the host do not accumulate
