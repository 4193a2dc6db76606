"""Finds the tensors of a checkpoint folder by name, in one file or several, reading headers only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from model.checkpoint.dequantize import dequantized
from model.checkpoint.distcp_folder import FILE as DISTCP_FILE
from model.checkpoint.distcp_folder import SUFFIX as DISTCP_SUFFIX
from model.checkpoint.distcp_folder import find_distcp, read_distcp
from model.checkpoint.flax_file import read_flax
from model.checkpoint.flax_tree import flax_tensors, is_flax
from model.checkpoint.ft_folder import read_fastertransformer
from model.checkpoint.gguf_file import read_gguf
from model.checkpoint.lora import ADAPTER_FILES, merge_adapter
from model.checkpoint.orbax_folder import find_orbax, read_orbax
from model.checkpoint.safetensors_file import read_safetensors
from model.checkpoint.stored_tensor import CheckpointError, StoredTensor
from model.checkpoint.torch_file import read_torch, read_training_checkpoint
from model.checkpoint.weight_names import canonical_name
from model.config.adapter import FILE as ADAPTER_CONFIG
from model.config.adapter import read_adapter_config
from model.config.ft_config import FILE as FT_CONFIG
from model.config.ft_config import is_fastertransformer
from model.config.lfs_pointer import lfs_pointer_problem
from model.config.strict_reader import ConfigError
from model.gguf.header import find_gguf, is_gguf

WEIGHT_FILES = (  # in order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
FLAX_FILES = (  # of EasyDeL, and of transformers' Flax models
    "easydel-model.parameters",
    "easydel-model.parameters.safetensors.index.json",
    "flax_model.msgpack",
)
_OF_TRAINER = ("optimizer", "scheduler", "rng_state")  # what transformers' Trainer saves beside the weights
_LISTED = 10  # names that a message lists


def find_weights(folder: Path) -> Path | None:
    """Return the file that a checkpoint folder's weights are read from, or that names their files; None without one.

    An adapter's are its own.

    `folder` may be a GGUF file itself. Beside the files of `WEIGHT_FILES` and `FLAX_FILES` it is FasterTransformer's
    config.ini, the folder of the only Orbax tree, the only GGUF file, torch.distributed.checkpoint's .metadata, or the
    only checkpoint of training (.pt).
    """
    if is_gguf(folder):
        return folder
    named = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if named is not None or not folder.is_dir():
        return named
    adapter = next((folder / name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if adapter is not None:
        return adapter
    flax = next((folder / name for name in FLAX_FILES if (folder / name).is_file()), None)
    if flax is not None or is_fastertransformer(folder):
        return flax or folder / FT_CONFIG
    orbax = find_orbax(folder)
    if orbax is not None:
        return orbax
    sharded = find_distcp(folder)
    if sharded is not None:
        return sharded
    training = [file for file in folder.glob("*.pt") if not file.name.startswith(_OF_TRAINER) and file.is_file()]
    return find_gguf(folder) or (training[0] if len(training) == 1 else None)


def find_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Return every tensor of the checkpoint in `folder`, or in a GGUF file, by llm-foundry's name.

    Raises CheckpointError where the folder has no weights, a shard is missing, or two tensors have one name.
    """
    folder = Path(folder)
    try:
        adapter = read_adapter_config(folder)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if adapter is not None:
        return merge_adapter(folder, adapter, find_tensors(adapter.base))
    chosen = find_weights(folder)
    if chosen is None:
        found = sorted(entry.name for entry in folder.iterdir())[:_LISTED] if folder.is_dir() else "no such folder"
        raise CheckpointError(
            f"{folder}: no weights: one of {', '.join(WEIGHT_FILES)} is needed, or one GGUF or .pt file; found: {found}"
            f"{sharded_advice(folder)}"
        )
    read = _reader(chosen)
    tensors = _read_shards(chosen, read) if chosen.name.endswith(".index.json") else read(chosen)
    if is_flax(tensors):
        tensors = flax_tensors({tuple(name.split(".")): tensor for name, tensor in tensors.items()})
    return dequantized(folder, _by_canonical_name(tensors))


def sharded_advice(folder: Path) -> str:
    """Return what is missing in a folder of torch.distributed.checkpoint, as a part of a sentence; else nothing."""
    if not folder.is_dir() or not any(folder.glob(f"*{DISTCP_SUFFIX}")) or (folder / DISTCP_FILE).is_file():
        return ""
    return "; .metadata is missing, which says what is in the .distcp files: copy it too"


def checkpoint_files(folder: Path, found: Mapping[str, StoredTensor] | None = None) -> list[Path]:
    """Return the files that a checkpoint's numbers come from. Raises CheckpointError as `find_tensors`.

    found: what that returned, where it is known.
    """
    tensors = list((find_tensors(folder) if found is None else found).values())
    tensors += [part for tensor in tensors if tensor.computed is not None for part in tensor.computed.parts]
    tensors += [tensor.delta.left for tensor in tensors if tensor.delta is not None]
    files = {file for tensor in tensors if tensor.computed is not None for file in tensor.computed.files}
    # These say how numbers are made of others: an adapter's scale, and how integers are packed.
    described = {folder / name for name in (ADAPTER_CONFIG, "config.json") if (folder / name).is_file()}
    changed = any(tensor.delta is not None or tensor.computed is not None for tensor in tensors)
    return sorted({tensor.path for tensor in tensors} | files | (described if changed else set()))


def _reader(file: Path) -> Callable[[Path], dict[str, StoredTensor]]:
    by_suffix = {
        ".gguf": read_gguf,
        ".pt": read_training_checkpoint,
        ".parameters": read_flax,
        ".msgpack": read_flax,
        ".ini": read_fastertransformer,
    }
    if file.name == DISTCP_FILE:
        return read_distcp
    reader = by_suffix.get(file.suffix, read_safetensors if ".safetensors" in file.name else read_torch)

    if file.is_dir():
        return read_orbax

    def read(path: Path) -> dict[str, StoredTensor]:
        _require_no_lfs_pointer(path)
        return reader(path)

    return read


def _require_no_lfs_pointer(path: Path) -> None:
    problem = lfs_pointer_problem(path)
    if problem is not None:
        raise CheckpointError(problem)


def _read_shards(index: Path, read: Callable[[Path], dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of the {len(shards)} shards that {index.name} names are missing: "
            f"{listed(missing)}; download them again"
        )
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, tensor in read(index.parent / shard).items():
            if name in tensors:
                raise CheckpointError(f"{name!r} is in both {tensors[name].path} and {tensor.path}; keep one of them")
            tensors[name] = tensor
    lost = [name for name, shard in weight_map.items() if name not in tensors or tensors[name].path.name != shard]
    if lost:
        raise CheckpointError(f"{index}: {len(lost)} tensors are not in the shard that it names: {listed(lost)}")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    _require_no_lfs_pointer(index)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        entries = dict(weight_map.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(
            f"{index}: an index must be a JSON object with a 'weight_map' from names to files"
        ) from None
    for name, shard in entries.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{index}: {name[:200]!r} is mapped to {str(shard)[:200]!r}, which must be a file in the same folder"
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


def listed(names: Iterable[str]) -> str:
    """Return names for a message: the first ten of them, each cut to a readable length."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(name[:200] for name in names[:_LISTED]) + more
