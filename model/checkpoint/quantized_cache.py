"""The quantised-weights cache: the first load of a checkpoint writes them to disk, later loads read them as they are.

An entry is one safetensors file, named by a digest of everything that its numbers depend on, so that it is never out of
date: a changed checkpoint, another format or another layout is another entry. Entries are written atomically; processes
that write the same entry at once write the same bytes. The writer of an entry removes those of the folder's earlier
contents, unless they were used recently and may still be read.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Sharding
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from model.checkpoint.atomic_write import atomic_write
from model.checkpoint.digest import MEMO_SUFFIX, content_digest, fingerprint
from model.checkpoint.folder import checkpoint_files
from model.checkpoint.load import load_weights, place
from model.checkpoint.load_progress import LoadProgress
from model.checkpoint.safetensors_file import DTYPES, read_safetensors
from model.checkpoint.stored_tensor import CheckpointError, StoredTensor, aligned_empty, read_tensor
from model.config.mpt_config import MptConfig
from model.params.packed_matrix import PackedMatrix, packed_arrays
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, WeightSpec, assemble_weights, leaf_paths, weight_specs

logger = logging.getLogger(__name__)

LAYOUT = 2  # version of an entry, of `PackedMatrix` and of the quantisation: raised when one of them changes
_ABANDONED_S = 3600.0  # after which an entry counts as unused, and a half-written file as left by a dead process
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def load_through_cache(
    cache_dir: str | Path,
    folder: str | Path,
    config: MptConfig,
    dtype: DTypeLike | None,
    sharding: Sharding | None,
    progress: bool | None,
    format: WeightFormat,
) -> Weights:
    """Load as `load_weights` with a quantised `format`, from `cache_dir` (created where missing) if it has the entry.

    A damaged entry is replaced, and a failure to write one is ignored; both log a warning.
    Raises CheckpointError as `load_weights` does.
    """
    cache_dir, folder = Path(cache_dir).expanduser(), Path(folder)
    files = checkpoint_files(folder)
    mark = fingerprint(files)
    about = {
        "checkpoint": str(folder.resolve()),
        "content": content_digest(files, mark, cache_dir),
        "quantization": format.quantization,
        "layout": str(LAYOUT),
    }
    path = cache_dir / f"{_key(about, config, dtype, format)}.safetensors"
    if path.is_file():
        try:
            return _read(path, config, format, sharding, progress)
        except (CheckpointError, OSError) as error:
            logger.warning("The quantised-weights cache has a damaged entry, which will be replaced: %s", error)
    weights = load_weights(folder, config, dtype, sharding, progress, format)
    if fingerprint(checkpoint_files(folder)) != mark:
        logger.warning("%s changed while it was read: its quantised weights are not cached", folder)
        return weights
    try:
        _write(path, weights, about)
        _remove_outdated(cache_dir, about)
    except OSError as error:
        logger.warning(
            "Quantised weights cannot be cached in %s, every start will quantise again: %s", cache_dir, error
        )
    return weights


def _key(about: Mapping[str, str], config: MptConfig, dtype: DTypeLike | None, format: WeightFormat) -> str:
    """Return hex digits that identify a checkpoint and the format it is loaded in."""
    identity = {
        "layout": about["layout"],
        "quantization": format.quantization,
        "group": format.group,
        "packed": format.packed,  # decides what float16 becomes
        "dtype": None if dtype is None else jnp.dtype(dtype).name,
        "config": repr(config),
        "content": about["content"],
    }
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


@dataclass(frozen=True)
class _Parameter:
    """A parameter in an entry: its format (None: plain), and shape and dtype of each array by name.

    The dtype of a plain one is None: any float.
    """

    spec: WeightSpec
    format: str | None
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any] | None]]


def _parameters(config: MptConfig, format: WeightFormat) -> Iterator[_Parameter]:
    for spec in weight_specs(config):
        packed = format.of(spec.path, np.float32, config.tied_head) if format.quantization != "none" else None
        if packed is None:
            yield _Parameter(spec, None, {spec.path: (spec.shape, None)})
        else:
            arrays = packed_arrays(spec.shape, packed, format.group)
            yield _Parameter(spec, packed, {f"{spec.path}.{name}": kind for name, kind in arrays.items()})


def _read(
    path: Path, config: MptConfig, format: WeightFormat, sharding: Sharding | None, progress: bool | None
) -> Weights:
    with contextlib.suppress(OSError):  # a read-only folder
        os.utime(path)  # marks it as used
    tensors = read_safetensors(path)
    parameters = list(_parameters(config, format))
    _check(path, tensors, {name: kind for p in parameters for name, kind in p.arrays.items()})
    leaves: dict[str, Any] = {}
    with LoadProgress(sum(tensor.nbytes for tensor in tensors.values()), progress) as bar:
        for parameter in parameters:
            arrays = [_read_array(tensors[name]) for name in parameter.arrays]
            leaf: Any = arrays[0]
            if parameter.format is not None:
                group = format.group if parameter.format == "int4" else 0
                fields = {name.rpartition(".")[2]: array for name, array in zip(parameter.arrays, arrays, strict=True)}
                leaf = PackedMatrix(**fields, shape=parameter.spec.shape, format=parameter.format, group=group)  # type: ignore[arg-type]
            leaves[parameter.spec.path] = place(leaf, sharding)
            bar.update(sum(array.nbytes for array in arrays))
    return assemble_weights(config, leaves)


def _check(
    path: Path,
    tensors: Mapping[str, StoredTensor],
    expected: Mapping[str, tuple[tuple[int, ...], np.dtype[Any] | None]],
) -> None:
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in expected or name not in tensors:
            raise CheckpointError(f"{path}: {name!r} is {'missing' if name in expected else 'unknown'}")
        (shape, dtype), tensor = expected[name], tensors[name]
        fits = tensor.is_float if dtype is None else tensor.dtype == dtype
        if not fits or tensor.shape != shape:
            raise CheckpointError(f"{path}: {name!r} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {list(shape)}")


def _read_array(tensor: StoredTensor) -> NDArray[Any]:
    array = aligned_empty(tensor.shape, tensor.dtype)
    read_tensor(tensor, array)
    return array


def _write(path: Path, weights: Weights, about: Mapping[str, str]) -> None:
    """Write an entry atomically. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for partial in path.parent.glob(f".{path.stem}.*.partial"):
        _remove_abandoned(partial)
    with atomic_write(path, shared=True) as temporary, temporary.open("wb") as file:
        _write_safetensors(file, dict(_named_arrays(weights)), about)
        file.flush()
        os.fsync(file.fileno())  # otherwise a crash of the machine could leave an empty file of that name


def _remove_abandoned(path: Path) -> bool:
    """Remove a file that was not used recently; return whether it was removed."""
    with contextlib.suppress(OSError):  # another process was faster
        if time.time() - path.stat().st_mtime > _ABANDONED_S:
            path.unlink()
            return True
    return False


def _remove_outdated(cache_dir: Path, about: Mapping[str, str]) -> None:
    """Remove entries made of the checkpoint's folder when it held other weights, or in another layout."""
    outdated = set()
    for path in cache_dir.glob("*.safetensors"):
        other = _about(path)
        same = all(other.get(name) == about[name] for name in ("content", "layout"))
        if other.get("checkpoint") == about["checkpoint"] and not same and _remove_abandoned(path):
            outdated.add(other.get("content"))
    for memo in cache_dir.glob(f"*{MEMO_SUFFIX}"):
        with contextlib.suppress(OSError):
            if memo.read_text("ascii", "replace") in outdated - {about["content"]}:
                memo.unlink()


def _about(path: Path) -> dict[str, str]:
    """Return the metadata of an entry; nothing where it is damaged or gone."""
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def _named_arrays(weights: Weights) -> Iterator[tuple[str, Array]]:
    for path, leaf in leaf_paths(weights, is_leaf=lambda node: isinstance(node, PackedMatrix)).items():
        if isinstance(leaf, PackedMatrix):
            arrays = {"data": leaf.data, "row_scale": leaf.row_scale, "group_scale": leaf.group_scale}
            yield from ((f"{path}.{name}", array) for name, array in arrays.items() if array is not None)
        else:
            yield path, leaf


def _write_safetensors(file: BinaryIO, arrays: Mapping[str, Array], about: Mapping[str, str]) -> None:
    """Write the arrays one at a time, on the CPU without a copy; the safetensors library would copy everything."""
    header: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _DTYPE_NAMES[array.dtype], "shape": array.shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    for array in arrays.values():
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
