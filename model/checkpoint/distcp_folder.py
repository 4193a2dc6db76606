"""torch.distributed.checkpoint's folders, which Composer saves with FSDP: `.metadata`, and `.distcp` files of ranks.

`.metadata` is a pickle that says for each name which chunks its tensor was cut into, and where each one is. A chunk is
what torch.save writes, in the middle of a file. The pickle is interpreted as data (`torch_pickle`); of a checkpoint of
training the model alone is read. No torch is needed, and not as many ranks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.stored_tensor import CheckpointError, Computed, StoredTensor, read_whole
from model.checkpoint.torch_file import CONSOLIDATE, read_torch_part
from model.checkpoint.torch_pickle import Record, read_pickle

FILE = ".metadata"
SUFFIX = ".distcp"
_MODEL = ("state.model.", "state_dict.", "model_state_dict.", "model.", "")  # before the names of the model's tensors
_OTHERS = ("optim", "rng", "callbacks", "lr_scheduler")  # of a state dict alone, what is no parameter


def find_distcp(folder: Path) -> Path | None:
    """Return the folder's `.metadata` where it has `.distcp` files too."""
    file = folder / FILE
    return file if file.is_file() and any(folder.glob(f"*{SUFFIX}")) else None


def read_distcp(path: Path) -> dict[str, StoredTensor]:
    """Return the model's tensors that a `.metadata` names; reads descriptions only.

    Raises CheckpointError for a damaged file, a missing one, and tensors that are not cut into runs of rows.
    """
    with path.open("rb") as file:
        metadata = read_pickle(file, str(path), training=True, records=True)
    described = _field(path, metadata, "state_dict_metadata", dict)
    tensors = {
        name: value
        for name, value in described.items()
        if isinstance(name, str) and _kind(value) == "TensorStorageMetadata"
    }
    prefix = next(p for p in _MODEL if not p or any(name.startswith(p) for name in tensors))
    places: dict[tuple[str, tuple[int, ...]], Record] = {}
    for key, place in _field(path, metadata, "storage_data", dict).items():
        if _kind(key) == "MetadataIndex" and _kind(place) == "_StorageInfo" and key.state.get("offset") is not None:
            places[_field(path, key, "fqn", str), _sizes(path, key, "offset")] = place
    return {
        name.removeprefix(prefix): _tensor(path, name, value, places)
        for name, value in tensors.items()
        if name.startswith(prefix) and not (not prefix and name.startswith(_OTHERS))
    }


def _tensor(
    path: Path, name: str, described: Record, places: Mapping[tuple[str, tuple[int, ...]], Record]
) -> StoredTensor:
    shape = _sizes(path, described, "size")
    chunks = [
        (_sizes(path, chunk, "offsets"), _sizes(path, chunk, "sizes"))
        for chunk in _field(path, described, "chunks", list)
    ]
    chunks = sorted(chunk for chunk in chunks if 0 not in chunk[1] or chunk[1] == shape)
    _check_rows(path, name, shape, chunks)
    parts = tuple(_part(path, name, sizes, places.get((name, offsets))) for offsets, sizes in chunks)
    if len({part.dtype for part in parts}) != 1:
        raise CheckpointError(f"{path}: the chunks of {name[:200]!r} are of several dtypes; it is damaged")
    if len(parts) == 1:
        return parts[0]

    def numbers() -> NDArray[np.float32]:
        whole = np.empty(shape, np.float32)
        for (offsets, sizes), part in zip(chunks, parts, strict=True):
            whole[offsets[0] : offsets[0] + sizes[0]] = read_whole(part)
        return whole

    return StoredTensor(parts[0].path, name, 0, parts[0].dtype, shape, computed=Computed(parts, numbers, (path,)))


def _check_rows(
    path: Path, name: str, shape: tuple[int, ...], chunks: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    """Raise CheckpointError unless the chunks are all rows, one run of them after the other."""
    row = 0
    for offsets, sizes in chunks:
        whole_rows = sizes[1:] == shape[1:] and not any(offsets[1:]) and len(offsets) == len(sizes) == len(shape)
        if not whole_rows or offsets[:1] not in ((), (row,)):
            break
        row += sizes[0] if sizes else 0
    else:
        if chunks and row == (shape[0] if shape else 0):
            return
    raise CheckpointError(f"{path}: {name[:200]!r} {list(shape)} is not stored as runs of its rows; {CONSOLIDATE}")


def _part(path: Path, name: str, shape: tuple[int, ...], place: Record | None) -> StoredTensor:
    if place is None:
        raise CheckpointError(f"{path}: names no place of a chunk of {name[:200]!r}; the file is damaged")
    file = _field(path, place, "relative_path", str)
    start, nbytes = (_field(path, place, field, int) for field in ("offset", "length"))
    if place.state.get("transform_descriptors"):
        raise CheckpointError(f"{path}: the chunks of {name[:200]!r} are compressed or encrypted; {CONSOLIDATE}")
    if Path(file).name != file or min(start, nbytes) < 0:
        raise CheckpointError(f"{path}: {name[:200]!r} is in {file[:200]!r}, which must be a file in the same folder")
    if not (path.parent / file).is_file():
        raise CheckpointError(f"{path.parent}: {file[:200]} is missing, a file of one of the ranks; copy all of them")
    part = read_torch_part(path.parent / file, name, start, nbytes)
    if part.shape != shape:
        raise CheckpointError(f"{part.path}: {name[:200]!r} is {list(part.shape)}, and {list(shape)} in {FILE}")
    return part


def _kind(value: Any) -> str:
    return value.name.rpartition(".")[2] if isinstance(value, Record) and isinstance(value.state, dict) else ""


def _field(path: Path, record: Any, field: str, kind: type) -> Any:
    value = record.state.get(field) if _kind(record) else None
    if type(value) is not kind:
        raise CheckpointError(
            f"{path}: is no metadata of torch.distributed.checkpoint: {field!r} is a {type(value).__name__}, not a"
            f" {kind.__name__}"
        )
    return value


def _sizes(path: Path, record: Record, field: str) -> tuple[int, ...]:
    sizes: tuple[int, ...] = _field(path, record, field, tuple)
    if not all(type(size) is int and 0 <= size < 2**63 for size in sizes) or len(sizes) > 16:
        raise CheckpointError(f"{path}: {field!r} holds no sizes; the file is damaged")
    return sizes
