"""Writes `Weights` as a checkpoint folder in the Hugging Face layout, which this package and others load."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors.numpy import save_file

from model.checkpoint.atomic_write import atomic_write
from model.checkpoint.folder import WEIGHT_FILES
from model.checkpoint.weight_names import separate_qkv_names
from model.config.mpt_config import MptConfig
from model.params.head_layout import restore_heads
from model.params.weights import Weights, WeightSpec, leaf_paths, weight_specs


def save_checkpoint(
    weights: Weights,
    config: Mapping[str, Any],
    folder: str | Path,
    dtype: DTypeLike | None = None,
    max_shard_bytes: int = 5 * 10**9,
    overwrite: bool = False,
) -> Path:
    """Write config.json and safetensors to `folder` (created where missing) and return it; holds one shard in memory.

    config: the object of a config.json that describes `weights`; written with `torch_dtype` set to the saved dtype.
    dtype: bfloat16, float16 or float32; None keeps each parameter's own.
    max_shard_bytes: larger weights go to several files and an index.

    Raises ConfigError for a config that the model cannot read, ValueError where `weights` do not fit it, and
    FileExistsError where `folder` already holds weights and `overwrite` is False.
    """
    folder = Path(folder)
    parsed = MptConfig.from_dict(config)
    specs = weight_specs(parsed)
    leaves = leaf_paths(weights)
    _check_fit(specs, leaves)
    old = {name for name in WEIGHT_FILES if (folder / name).exists()}
    if old and not overwrite:
        raise FileExistsError(f"{folder} already holds {min(old)}; choose another folder or set overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    target = None if dtype is None else jnp.dtype(dtype)
    nbytes = {s.path: math.prod(s.shape) * (target or leaves[s.path].dtype).itemsize for s in specs}
    groups = _group(specs, nbytes, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for name, group in zip(_file_names(len(groups)), groups, strict=True):
        tensors = dict(_named_arrays(group, leaves, target, parsed, weights.blocks[0].attn.shards))
        with atomic_write(folder / name) as path:
            save_file(tensors, path, metadata={"format": "pt"})
            path.chmod(0o644)  # the library makes files that only their owner can read
        weight_map |= dict.fromkeys(tensors, name)
    for name in old - set(weight_map.values()):
        (folder / name).unlink()  # a loader might prefer it to the new files
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(nbytes.values())}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)
    others = {key: value for key, value in config.items() if key != "dtype"}  # transformers 5's name for torch_dtype
    saved = target or leaves[specs[0].path].dtype
    _write_json(folder / "config.json", {"architectures": ["MPTForCausalLM"], **others, "torch_dtype": saved.name})
    return folder


def _check_fit(specs: tuple[WeightSpec, ...], leaves: Mapping[str, Any]) -> None:
    expected = {spec.path: spec.shape for spec in specs}
    actual = {path: leaf.shape for path, leaf in leaves.items()}
    if expected != actual:
        different = sorted(path for path in expected.keys() | actual.keys() if expected.get(path) != actual.get(path))
        first = different[0]
        raise ValueError(
            f"{len(different)} weights do not fit the config, the first is '{first}': "
            f"{actual.get(first, 'absent')} instead of {expected.get(first, 'absent')}"
        )


def _group(specs: tuple[WeightSpec, ...], nbytes: Mapping[str, int], limit: int) -> list[list[WeightSpec]]:
    """Cut the parameters into runs of at most `limit` bytes, or of one parameter."""
    groups: list[list[WeightSpec]] = [[]]
    filled = 0
    for spec in specs:
        if groups[-1] and filled + nbytes[spec.path] > limit:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += nbytes[spec.path]
    return groups


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [WEIGHT_FILES[0]]
    return [f"model-{index:05d}-of-{count:05d}.safetensors" for index in range(1, count + 1)]


def _named_arrays(
    specs: list[WeightSpec], leaves: Mapping[str, Any], target: Any, config: MptConfig, shards: int
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield checkpoint names and host arrays of `specs`, heads in the checkpoint's order, Wqkv as the config says."""
    for spec in specs:
        array = np.asarray(leaves[spec.path])
        if target is not None:
            array = array.astype(target, copy=False)
        array = restore_heads(spec.path, array, config, shards)
        separate = separate_qkv_names(spec.name)
        if separate is None or config.fused_qkv:
            yield spec.name, np.ascontiguousarray(array)
            continue
        q_size, kv_size = config.n_heads * config.head_dim, config.kv_n_heads * config.head_dim
        yield from zip(separate, np.split(array, (q_size, q_size + kv_size)), strict=True)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
