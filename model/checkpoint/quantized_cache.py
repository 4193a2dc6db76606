"""The packed-weights cache: the first load of a checkpoint writes its packed weights to disk, later loads map them.

An entry is one safetensors file, named by a digest of everything that its numbers depend on, so that it is never out of
date: a changed checkpoint, another format or another layout is another entry. Entries are written atomically and never
changed; processes that write the same entry at once write the same bytes. The writer of an entry removes those of the
folder's earlier contents, unless they were used recently and may still be read. A first load keeps no more than one
parameter in memory: it writes the entry, then maps it as later loads do.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from model.checkpoint.atomic_write import atomic_write
from model.checkpoint.digest import MEMO_SUFFIX, content_digest, fingerprint
from model.checkpoint.folder import checkpoint_files, find_tensors
from model.checkpoint.load import load_weights, place, read_parameters
from model.checkpoint.load_progress import LoadProgress
from model.checkpoint.mapped_file import TensorReader
from model.checkpoint.packed_entry import EntryWriter
from model.checkpoint.safetensors_file import read_safetensors
from model.checkpoint.stored_tensor import CheckpointError, StoredTensor
from model.checkpoint.weight_names import is_buffer
from model.config.mpt_config import MptConfig
from model.params.packed_matrix import PackedMatrix, packed_arrays
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, WeightSpec, assemble_weights, weight_specs

logger = logging.getLogger(__name__)

LAYOUT = 4  # version of an entry, of `PackedMatrix` and of the quantisation: raised when one of them changes
_ABANDONED_S = 3600.0  # after which an entry counts as unused, and a half-written file as left by a dead process


def load_through_cache(
    cache_dir: str | Path,
    folder: str | Path,
    config: MptConfig,
    dtype: DTypeLike | None,
    sharding: Sharding | None,
    progress: bool | None,
    format: WeightFormat,
) -> Weights:
    """Load as `load_weights` with a `format` that packs, from `cache_dir` (created where missing) if it has the entry.

    A damaged entry is replaced, and a failure to write one is ignored; both log a warning.
    Raises CheckpointError as `load_weights` does.
    """
    cache_dir, folder = Path(cache_dir).expanduser(), Path(folder)
    tensors = find_tensors(folder)
    files = checkpoint_files(folder, tensors)
    mark = fingerprint(files)
    about = {
        "checkpoint": str(folder.resolve()),
        "content": content_digest(files, mark, cache_dir, progress),
        "quantization": format.quantization,
        "layout": str(LAYOUT),
    }
    path = cache_dir / f"{_key(about, config, _dtypes(tensors, dtype, format), format)}.safetensors"
    if path.is_file():
        try:
            return _read(path, config, format, sharding, progress)
        except (CheckpointError, OSError) as error:
            logger.warning("The packed-weights cache has a damaged entry, which will be replaced: %s", error)
    try:
        with _entry(path, about, config) as entry:
            for name, leaf in read_parameters(folder, config, dtype, 1, progress, format):
                entry.add(name, leaf)
            logger.info("packed weights: waiting for the disk")
            if fingerprint(checkpoint_files(folder)) != mark:
                raise _ChangedError
        _remove_outdated(cache_dir, about)
        return _read(path, config, format, sharding, False)
    except _ChangedError:
        logger.warning("%s changed while it was read: its packed weights are not cached", folder)
    except OSError as error:
        logger.warning("Packed weights cannot be cached in %s, every start will pack again: %s", cache_dir, error)
    return load_weights(folder, config, dtype, sharding, progress, format)


class _ChangedError(Exception):
    """The checkpoint is not the one that an entry was to be made of."""


def _dtypes(tensors: Mapping[str, StoredTensor], dtype: DTypeLike | None, format: WeightFormat) -> list[str]:
    """Return the dtypes that parameters are loaded in: the same whether `dtype` is named or is that of the file."""
    if dtype is not None:
        return [jnp.dtype(dtype).name]
    return sorted({format.kept_dtype(tensor.dtype).name for name, tensor in tensors.items() if not is_buffer(name)})


def _key(about: Mapping[str, str], config: MptConfig, dtypes: list[str], format: WeightFormat) -> str:
    """Return hex digits that identify a checkpoint and the format it is loaded in."""
    identity = {
        "layout": about["layout"],
        "quantization": format.quantization,
        "group": format.group,
        "packed": format.packed,
        "dtypes": dtypes,
        "config": repr(config),
        "content": about["content"],
    }
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _read(
    path: Path, config: MptConfig, format: WeightFormat, sharding: Sharding | None, progress: bool | None
) -> Weights:
    with contextlib.suppress(OSError):  # a read-only folder
        os.utime(path)  # marks it as used
    tensors = read_safetensors(path)
    specs = weight_specs(config)
    formats = {spec.path: _format_of(spec, tensors, config, format) for spec in specs}
    expected = {spec.path: _arrays(spec, formats[spec.path], format.group) for spec in specs}
    _check(path, tensors, {name: kind for arrays in expected.values() for name, kind in arrays.items()})
    reader = TensorReader(path)
    leaves: dict[str, Any] = {}
    with LoadProgress(sum(tensor.nbytes for tensor in tensors.values()), progress) as bar:
        present = reader.make_present(bar.update)
        for spec in specs:
            arrays = {name: reader.read(tensors[name]) for name in expected[spec.path]}
            leaves[spec.path] = place(_leaf(spec, formats[spec.path], arrays, format.group), sharding)
            if not present:
                bar.update(sum(array.nbytes for array in arrays.values()))
    return assemble_weights(config, leaves)


def _format_of(
    spec: WeightSpec, tensors: Mapping[str, StoredTensor], config: MptConfig, format: WeightFormat
) -> str | None:
    """Return the packed format of a parameter in an entry; None: it is plain."""
    if format.quantization != "none":
        return format.of(spec.path, np.float32, config.tied_head)
    data = tensors.get(f"{spec.path}.data")  # as the checkpoint has it, where it is not quantised
    return None if data is None else format.of(spec.path, data.dtype, config.tied_head)


def _arrays(
    spec: WeightSpec, packed: str | None, group: int
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any] | None]]:
    """Return shape and dtype of a parameter's arrays by their names in an entry; a plain one may have any float's."""
    if packed is None:
        return {spec.path: (spec.shape, None)}
    return {f"{spec.path}.{name}": kind for name, kind in packed_arrays(spec.shape, packed, group).items()}


def _leaf(
    spec: WeightSpec, packed: str | None, arrays: Mapping[str, NDArray[Any]], group: int
) -> NDArray[Any] | PackedMatrix:
    if packed is None:
        return arrays[spec.path]
    fields = {name.rpartition(".")[2]: array for name, array in arrays.items()}
    shape = (spec.shape[0], spec.shape[1])
    return PackedMatrix(**fields, shape=shape, format=packed, group=group if packed == "int4" else 0)  # type: ignore[arg-type]


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


@contextlib.contextmanager
def _entry(path: Path, about: Mapping[str, str], config: MptConfig) -> Iterator[EntryWriter]:
    """Write an entry, which is there only if nothing was raised. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for partial in path.parent.glob(f".{path.stem}.*.partial"):
        _remove_abandoned(partial)
    with atomic_write(path, mode=0o644) as temporary, temporary.open("wb") as file:
        writer = EntryWriter(file, about, len(weight_specs(config)))
        yield writer
        writer.finish()


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
