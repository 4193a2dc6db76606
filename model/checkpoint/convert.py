"""Writes a checkpoint in another format, tensor by tensor: safetensors in llm-foundry's or transformers' form, GGUF."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from model.checkpoint.atomic_write import atomic_write
from model.checkpoint.digest import fingerprint
from model.checkpoint.folder import checkpoint_files, find_tensors
from model.checkpoint.load_progress import LoadProgress
from model.checkpoint.match import Source, match_tensors
from model.checkpoint.safetensors_file import DTYPES
from model.checkpoint.stored_tensor import CheckpointError, StoredTensor, aligned_empty, read_tensor
from model.checkpoint.weight_names import separate_qkv_names
from model.config.dialects import family_config, transformers_config
from model.config.mpt_config import MptConfig

_MAX_SHARD_BYTES = 5 * 10**9
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to convert: where it is, the object of its config.json, and where its numbers are."""

    path: Path
    data: Mapping[str, Any]
    config: MptConfig
    sources: tuple[Source, ...]

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Read headers. Raises CheckpointError and ConfigError as loading does."""
        data = family_config(path)
        config = MptConfig.from_dict(data)
        return cls(path, data, config, tuple(match_tensors(path, find_tensors(path), config)))

    def identity(self, *how: str | None) -> str:
        """Return hex digits of the files and the config that the numbers come from, and of `how` they are written."""
        parts = [fingerprint(checkpoint_files(self.path)), json.dumps(dict(self.data), sort_keys=True), *how]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def dtype_of(self, source: Source, wanted: str | None) -> np.dtype[Any]:
        """Return the dtype that a parameter is written in: `wanted`, or its own."""
        own = source.parts[0].dtype
        return jnp.dtype(wanted) if wanted is not None else np.dtype(np.float32) if own == np.float64 else own

    def read(self, source: Source, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a parameter's numbers in a dtype."""
        array = aligned_empty(source.spec.shape, dtype)
        row = 0
        for part in source.parts:
            read_tensor(part, array[row : row + part.shape[0]])
            row += part.shape[0]
        return array


def write_safetensors(
    checkpoint: Checkpoint, folder: Path, form: str, dtype: str | None = None, progress: bool | None = None
) -> None:
    """Write config.json and safetensors to a folder, created where missing; one tensor is in memory at a time.

    form: `llm-foundry`, or `transformers`, whose configuration cannot say everything.
    dtype: bfloat16, float16 or float32; None keeps each parameter's own, so that every number stays as it is.
    Shards that are complete already, from a conversion that was interrupted, stay.

    Raises ConfigError where `form` cannot represent the model, CheckpointError for a file that cannot be read.
    """
    data = dict(checkpoint.data)
    if form == "transformers":
        data = transformers_config(checkpoint.config)
        checkpoint = replace(checkpoint, config=replace(checkpoint.config, fused_qkv=True))
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [(source, checkpoint.dtype_of(source, dtype)) for source in checkpoint.sources]
    shards = _shards(tensors)
    weight_map: dict[str, str] = {}
    with LoadProgress(sum(_nbytes(*tensor) for tensor in tensors), progress, "Writing weights") as bar:
        for number, shard in enumerate(shards, 1):
            name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            written = _write_shard(checkpoint, folder / name, shard)
            for tensor_name, size in written:
                weight_map[tensor_name] = name
                bar.update(size)
    if len(shards) > 1:
        total = sum(_nbytes(*tensor) for tensor in tensors)
        _write_json(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    others = {key: value for key, value in data.items() if key not in ("dtype", "quantization_config")}
    _write_json(folder / "config.json", {**others, "torch_dtype": tensors[0][1].name})
    copy = Checkpoint.open(folder)
    if replace(copy.config, torch_dtype=checkpoint.config.torch_dtype) != checkpoint.config:
        raise CheckpointError(f"{folder}: its config describes another model than {checkpoint.path}; convert again")
    check_same_numbers(checkpoint, copy, progress)


def check_same_numbers(source: Checkpoint, copy: Checkpoint, progress: bool | None = None) -> None:
    """Compare a copy with its source, number by number, each rounded to the copy's dtype; quantised ones are left out.

    Raises CheckpointError where they differ.
    """
    with LoadProgress(sum(written.nbytes for written in copy.sources), progress, "Comparing weights") as bar:
        for original, written in zip(source.sources, copy.sources, strict=True):
            part = written.parts[0]
            if part.blocks is None and not np.array_equal(
                source.read(original, part.dtype).view(np.uint8), copy.read(written, part.dtype).view(np.uint8)
            ):
                name = original.spec.name
                raise CheckpointError(f"{copy.path}: {name!r} is not what it was converted from; convert again")
            bar.update(written.nbytes)


def keeps_every_number(source: Checkpoint, copy: Checkpoint) -> bool:
    """Return whether the types in a copy hold every number that those of the source hold."""
    return all(
        written.parts[0].blocks is None and _holds(written.parts[0].dtype, _exact_dtype(part))
        for original, written in zip(source.sources, copy.sources, strict=True)
        for part in original.parts
    )


def _exact_dtype(part: StoredTensor) -> np.dtype[Any]:
    """Return the dtype that a tensor's numbers have before they are rounded to its own."""
    return part.dtype if part.delta is None and part.computed is None else np.dtype(np.float32)


def _holds(wide: np.dtype[Any], narrow: np.dtype[Any]) -> bool:
    return wide == narrow or wide.itemsize > narrow.itemsize


def _nbytes(source: Source, dtype: np.dtype[Any]) -> int:
    return math.prod(source.spec.shape) * dtype.itemsize


def _shards(tensors: Sequence[tuple[Source, np.dtype[Any]]]) -> list[list[tuple[Source, np.dtype[Any]]]]:
    shards: list[list[tuple[Source, np.dtype[Any]]]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + _nbytes(*tensor) > _MAX_SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += _nbytes(*tensor)
    return shards


def _write_shard(
    checkpoint: Checkpoint, path: Path, tensors: Sequence[tuple[Source, np.dtype[Any]]]
) -> Iterator[tuple[str, int]]:
    """Write a shard, unless it is there; yield the name and size of each tensor."""
    entries = [entry for source, dtype in tensors for entry in _entries(checkpoint, source, dtype)]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape, dtype in entries:
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    start = len(raw).to_bytes(8, "little") + raw
    if _is_complete(path, start, end):
        yield from ((name, math.prod(shape) * dtype.itemsize) for name, shape, dtype in entries)
        return
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(start)
        for source, dtype in tensors:
            file.write(checkpoint.read(source, dtype).reshape(-1).view(np.uint8).data)
            yield from ((name, math.prod(s) * d.itemsize) for name, s, d in _entries(checkpoint, source, dtype))


def _is_complete(path: Path, start: bytes, data_bytes: int) -> bool:
    if not path.is_file() or path.stat().st_size != len(start) + data_bytes:
        return False
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _entries(
    checkpoint: Checkpoint, source: Source, dtype: np.dtype[Any]
) -> list[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    """Return the names and shapes of a parameter in the file; Wqkv is in three parts where the config says so."""
    config, spec = checkpoint.config, source.spec
    separate = separate_qkv_names(spec.name)
    if separate is None or config.fused_qkv:
        return [(spec.name, spec.shape, dtype)]
    kv_size = config.kv_n_heads * config.head_dim
    rows = (spec.shape[0] - 2 * kv_size, kv_size, kv_size)
    return [(name, (n, *spec.shape[1:]), dtype) for name, n in zip(separate, rows, strict=True)]


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
