"""Loads a checkpoint folder into `Weights`: found, checked against the config as a whole, then read tensor by tensor.

Nothing is read before every name, shape and dtype has been compared with the model's table, so a checkpoint that does
not fit is refused in milliseconds, with all its differences. Each tensor then goes straight to its dtype and devices;
the peak is the weights themselves and one tensor.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from numpy.typing import NDArray
from tqdm import tqdm

from model.checkpoint.quantize import AS_STORED, WeightFormat, pack_matrix
from model.checkpoint.safetensors_file import read_safetensors
from model.checkpoint.stored_tensor import CheckpointError, StoredTensor, aligned_empty, read_tensor, same_numbers
from model.checkpoint.torch_file import read_torch
from model.checkpoint.weight_names import canonical_name, is_buffer, is_quantised, separate_qkv_names
from model.config.mpt_config import MptConfig
from model.params.head_layout import deal_heads
from model.params.packed_matrix import PackedMatrix
from model.params.sharding import leaf_paths
from model.params.weights import Weights, WeightSpec, assemble_weights, weight_specs

__all__ = ["WEIGHT_FILES", "CheckpointError", "find_tensors", "load_weights"]

WEIGHT_FILES = (  # in order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LISTED = 10  # differences of one kind that a message lists


def load_weights(
    folder: str | Path,
    config: MptConfig,
    dtype: DTypeLike | None = None,
    shardings: Weights | Sharding | None = None,
    progress: bool | None = None,
    format: WeightFormat = AS_STORED,
) -> Weights:
    """Reads the weights of the checkpoint in `folder`.

    dtype: bfloat16, float16 or float32 for every parameter; None keeps each as it is stored (float64 as float32, and
        so float16 where `format` is packed: no kernel reads it).
    shardings: where parameters go: one Sharding for all, a `Weights` of them (`sharding.weight_shardings`, whose
        `Attention.shards` also says how heads are dealt), or None for JAX's default device.
    progress: a bar on stderr; None shows it on a terminal only.
    format: how matrices are kept; packed and quantised ones go to a single device.

    Raises CheckpointError where files are missing or damaged, or names, shapes or dtypes do not fit `config`.
    """
    target = _target_dtype(dtype)
    sources = _match(Path(folder), find_tensors(folder), config)
    shards = shardings.blocks[0].attn.shards if isinstance(shardings, Weights) else 1
    placements = leaf_paths(shardings) if isinstance(shardings, Weights) else {}
    # The largest first: a tensor that is packed is in memory twice meanwhile, and then little else is. Beyond that,
    # each file forwards.
    sources.sort(key=lambda source: (-source.nbytes, source.parts[0].path.name, source.parts[0].offset))
    leaves = {}
    with progress_bar(sum(source.nbytes for source in sources), progress) as bar:
        for source in sources:
            leaf = _in_format(_read(source, target, config, shards, format), source, config, format)
            leaves[source.spec.path] = place(leaf, placements.get(source.spec.path, shardings))
            del leaf
            bar.update(source.nbytes)
    return assemble_weights(config, leaves, shards)


def find_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Every tensor of the checkpoint in `folder`, by llm-foundry's name; reads headers only.

    Raises CheckpointError where no weights lie there, a shard is missing, or two tensors claim one name.
    """
    folder = Path(folder)
    chosen = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if chosen is None:
        found = sorted(entry.name for entry in folder.iterdir())[:_LISTED] if folder.is_dir() else "no such folder"
        raise CheckpointError(f"{folder}: no weights: one of {', '.join(WEIGHT_FILES)} is needed; found: {found}")
    read = read_safetensors if ".safetensors" in chosen else read_torch
    if not chosen.endswith(".index.json"):
        return _by_canonical_name(read(folder / chosen))
    return _by_canonical_name(_read_shards(folder / chosen, read))


def _read_shards(index: Path, read: Callable[[Path], dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of the {len(shards)} shards that {index.name} names are missing: "
            f"{_listed(missing)}; download them again"
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in read(index.parent / shard).items():
            if name in tensors:
                raise CheckpointError(f"{name!r} lies in both {tensors[name].path} and {tensor.path}; keep one of them")
            tensors[name] = tensor
    lost = [name for name, shard in weight_map.items() if name not in tensors or tensors[name].path.name != shard]
    if lost:
        raise CheckpointError(f"{index}: {len(lost)} tensors are not in the shard it names: {_listed(lost)}")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        entries = dict(weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{index}: not an index: a JSON object with a 'weight_map' of names is needed") from None
    for name, shard in entries.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{index}: {name[:200]!r} is said to be in {str(shard)[:200]!r}, not a file beside it"
            )
    return entries


def _by_canonical_name(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        canonical = canonical_name(name)
        if canonical in renamed:
            raise CheckpointError(
                f"{tensor.path.parent}: {renamed[canonical].name!r} and {name!r} are the same parameter; keep one"
            )
        renamed[canonical] = tensor
    return renamed


@dataclass(frozen=True)
class _Source:
    """A parameter and the stored tensors whose rows, one after the other, make it up."""

    spec: WeightSpec
    parts: tuple[StoredTensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def _match(folder: Path, tensors: Mapping[str, StoredTensor], config: MptConfig) -> list[_Source]:
    """Pairs every parameter with its stored tensors. Raises CheckpointError listing all that does not fit."""
    left = dict(tensors)
    sources, missing, misshaped = [], [], []
    for spec in weight_specs(config):
        parts = []
        for name, shape in _stored_shapes(spec, left, config).items():
            part = left.pop(name, None)
            if part is None:
                missing.append(name)
            elif part.shape != shape:
                misshaped.append(f"{part.name} {list(part.shape)}, the config says {list(shape)}")
            else:
                parts.append(part)
        sources.append(_Source(spec, tuple(parts)))
    _drop_tied_head(left, tensors, config)
    unexpected = [tensor.name for name, tensor in left.items() if not is_buffer(name)]
    not_float = [f"{p.name} ({p.dtype})" for source in sources for p in source.parts if not p.is_float]
    problems = {"missing": missing, "not known": unexpected, "of another shape": misshaped, "not floats": not_float}
    lines = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if not lines:
        return sources
    quantised = any(map(is_quantised, unexpected))
    advice = (
        "a quantised checkpoint (AWQ, GPTQ or alike); load the original one" if quantised else "is config.json its own?"
    )
    raise CheckpointError(f"{folder}: the tensors do not fit the config ({advice})\n  " + "\n  ".join(lines))


def _stored_shapes(
    spec: WeightSpec, tensors: Mapping[str, StoredTensor], config: MptConfig
) -> dict[str, tuple[int, ...]]:
    """Under which names, in which shapes, a parameter is stored: Wqkv comes fused, or as its three parts."""
    separate = separate_qkv_names(spec.name)
    if separate is None or spec.name in tensors:
        return {spec.name: spec.shape}
    if config.fused_qkv and not any(name in tensors for name in separate):
        return {spec.name: spec.shape}  # missing, under the name that the config says
    kv_size = config.kv_n_heads * config.head_dim
    rows = (spec.shape[0] - 2 * kv_size, kv_size, kv_size)
    return {name: (n, *spec.shape[1:]) for name, n in zip(separate, rows, strict=True)}


def _drop_tied_head(left: dict[str, StoredTensor], tensors: Mapping[str, StoredTensor], config: MptConfig) -> None:
    """A tied head that was saved a second time is dropped if it is indeed the embedding."""
    if not config.tied_head or "lm_head.weight" not in left or "transformer.wte.weight" not in tensors:
        return
    head = left.pop("lm_head.weight")
    embedding = tensors["transformer.wte.weight"]
    if not same_numbers(head, embedding):
        raise CheckpointError(
            f"{head.path}: 'lm_head.weight' {list(head.shape)} differs from {embedding.name!r} "
            f"{list(embedding.shape)}, but the config ties them; set tie_word_embeddings to false if the head is meant"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(name[:200] for name in names[:_LISTED]) + more


def _target_dtype(dtype: DTypeLike | None) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    target = jnp.dtype(dtype)
    if target not in (jnp.bfloat16, jnp.float16, jnp.float32):
        raise CheckpointError(f"dtype {target} is not one of bfloat16, float16, float32")
    return target


def _read(
    source: _Source, target: np.dtype[Any] | None, config: MptConfig, shards: int, format: WeightFormat
) -> NDArray[Any]:
    """The parameter on the host, in its final dtype and order."""
    stored = source.parts[0].dtype
    dtype = target or format.kept_dtype(stored)
    host = aligned_empty(source.spec.shape, dtype)
    row = 0
    for part in source.parts:
        read_tensor(part, host[row : row + part.shape[0]])
        row += part.shape[0]
    return deal_heads(source.spec.path, host, config, shards)


def _in_format(
    host: NDArray[Any], source: _Source, config: MptConfig, format: WeightFormat
) -> NDArray[Any] | PackedMatrix:
    packed = format.of(source.spec.path, host.dtype, config.tied_head)
    if packed is None:
        return host
    try:
        return pack_matrix(host, packed, format.group)
    except ValueError as error:
        raise CheckpointError(f"{source.parts[0].path}: {source.spec.name!r} {error}") from None


def place(host: NDArray[Any] | PackedMatrix, sharding: Any) -> jax.Array | PackedMatrix:
    """Moves a parameter to its devices. On the CPU the array adopts `host`, which nobody writes to any more."""
    if isinstance(host, PackedMatrix) or sharding is None or len(sharding.device_set) == 1:
        array = jax.device_put(host, sharding)
    else:  # every process hands out only its own devices' slices
        array = jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
    return jax.block_until_ready(array)  # so that the host's copies do not pile up


def progress_bar(total: int, progress: bool | None) -> tqdm[Any]:
    disable = None if progress is None else not progress  # tqdm's None: only on a terminal
    return tqdm(
        total=total, unit="B", unit_scale=True, desc="Loading weights", file=sys.stderr, disable=disable, leave=False
    )
