"""Finds the tensors of a PyTorch .bin file, in the current zip format or the older one, without unpickling objects.

Zip: `<top>/data.pkl` describes the tensors, `<top>/data/<key>` holds each storage uncompressed, `<top>/byteorder` the
byte order. Older (before PyTorch 1.6): a magic number, a protocol number, properties of the machine, the description
and the list of storage keys, each a pickle, then every storage as its number of elements (int64) and its elements.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from model.checkpoint.stored_tensor import CheckpointError, StoredTensor
from model.checkpoint.torch_pickle import Opaque, Storage, TensorView, read_pickle

CONSOLIDATE = (
    "a checkpoint that is sharded over ranks must be consolidated first: save it again with fsdp_config"
    " state_dict_type 'full', or use torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_LOCAL_HEADER_BYTES = 30
_MAX_ZIP_ENTRIES = 100_000


@dataclass(frozen=True)
class _Extent:
    """The location of a storage's bytes in the file."""

    offset: int
    nbytes: int


def read_training_checkpoint(path: Path) -> dict[str, StoredTensor]:
    """Return the model's tensors in a Composer checkpoint (.pt), or in a .pt file of a state dict alone.

    The optimizer's state is neither read nor described. Raises CheckpointError as `read_torch` does, but ignores what
    else the file holds beside the model.
    """
    return read_torch(path, training=True)


def read_torch(path: Path, training: bool = False) -> dict[str, StoredTensor]:
    """Return the tensors of a .bin file's state dict, in its order; reads descriptions only.

    Raises CheckpointError for a file that is truncated, big-endian or compressed, that contains anything but tensors
    (named in the message), or whose tensors reach beyond their storages.
    """
    with path.open("rb") as file:
        start = file.read(4)
        file.seek(0)
        zipped = start == b"PK\x03\x04"
        views, extents = _read_zip(path, file, training) if zipped else _read_legacy(path, file)
    return {name: _stored_tensor(path, name, view, extents) for name, view in views.items()}


def read_torch_part(path: Path, name: str, start: int, nbytes: int) -> StoredTensor:
    """Return the tensor that torch.save has written alone, as bytes `start` to `start + nbytes` of a file.

    Raises CheckpointError as `read_torch`.
    """
    with path.open("rb") as file:
        part = cast(BinaryIO, io.BufferedReader(_Part(file, start, nbytes)))
        view, extents = _zip_state(path, part, training=False)
    if not isinstance(view, TensorView):
        raise CheckpointError(f"{path}: contains a {type(view).__name__} in place of the tensor {name[:200]!r}")
    stored = _stored_tensor(path, name, view, _storages(extents))
    return replace(stored, offset=start + stored.offset)


class _Part(io.RawIOBase):
    """A run of bytes of a file, read like a whole file."""

    def __init__(self, file: BinaryIO, start: int, nbytes: int) -> None:
        self._file, self._start, self._nbytes, self._at = file, start, nbytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(offset + (0, self._at, self._nbytes)[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._at)
        data = self._file.read(max(min(len(buffer), self._nbytes - self._at), 0))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_training_state(path: Path) -> Any:
    """Return everything in a checkpoint of training as plain data, with views for tensors and `Opaque` for objects.

    Nothing is called. Raises CheckpointError as `read_torch`, and for the format before PyTorch 1.6.
    """
    with path.open("rb") as file:
        return _zip_state(path, file, training=True)[0]


def _read_zip(path: Path, file: BinaryIO, training: bool) -> tuple[dict[str, TensorView], Mapping[str, _Extent]]:
    state, extents = _zip_state(path, file, training)
    views = _views(path, _model_state(path, state) if training else state)
    return views, _storages(extents)


def _storages(extents: Mapping[str, _Extent]) -> dict[str, _Extent]:
    return {name.removeprefix("data/"): extent for name, extent in extents.items() if name.startswith("data/")}


def _zip_state(path: Path, file: BinaryIO, training: bool) -> tuple[Any, Mapping[str, _Extent]]:
    """Return what the pickle describes, and where each entry is."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, NotImplementedError, ValueError, OSError, EOFError) as error:
        raise CheckpointError(
            f"{path}: not a complete zip file ({error}): the file is truncated; download it again"
        ) from None
    if len(entries) > _MAX_ZIP_ENTRIES:
        raise CheckpointError(f"{path}: holds {len(entries)} zip entries, more than any checkpoint")
    top = next((entry.filename[: -len("data.pkl")] for entry in entries if entry.filename.endswith("/data.pkl")), None)
    if top is None:
        raise CheckpointError(
            f"{path}: a zip file without data.pkl, so not a PyTorch checkpoint (a TorchScript archive?)"
        )
    extents = {entry.filename.removeprefix(top): _zip_extent(path, file, entry) for entry in entries}
    if "byteorder" in extents:
        file.seek(extents["byteorder"].offset)
        order = file.read(min(extents["byteorder"].nbytes, 16))
        if order.strip() != b"little":
            raise CheckpointError(f"{path}: stored with byte order {order!r}; only little-endian files are read")
    file.seek(extents["data.pkl"].offset)
    state = read_pickle(file, str(path), training)
    if file.tell() > extents["data.pkl"].offset + extents["data.pkl"].nbytes:
        raise CheckpointError(f"{path}: the pickle runs beyond data.pkl")
    return state, extents


def _zip_extent(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> _Extent:
    """Return where a stored entry's bytes lie, from its local header: torch pads only that one, to align data."""
    name = entry.filename[:200]
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise CheckpointError(f"{path}: {name!r} is compressed or encrypted; torch.save stores tensors uncompressed")
    if entry.header_offset < 0:
        raise CheckpointError(f"{path}: {name!r} starts before the file does: the zip directory is damaged")
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"{path}: no zip entry where {name!r} should start (byte {entry.header_offset})")
    name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
    offset = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    file_bytes = file.seek(0, 2)
    if offset + entry.file_size > file_bytes:
        raise CheckpointError(
            f"{path}: {name!r} ends at byte {offset + entry.file_size}, the file at {file_bytes}: the file is truncated"
        )
    return _Extent(offset, entry.file_size)


def _read_legacy(path: Path, file: BinaryIO) -> tuple[dict[str, TensorView], Mapping[str, _Extent]]:
    where = str(path)
    try:
        magic = read_pickle(file, where)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, neither zip nor legacy ({error})") from None
    if magic != _LEGACY_MAGIC or read_pickle(file, where) != _LEGACY_PROTOCOL:
        raise CheckpointError(f"{path}: not a PyTorch checkpoint: a pickle without torch.save's magic number")
    machine = read_pickle(file, where)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise CheckpointError(f"{path}: stored with big-endian byte order; only little-endian files are read")
    views = _views(path, read_pickle(file, where))
    keys = read_pickle(file, where)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"{path}: the list of storages is damaged")
    return views, _legacy_extents(path, file, keys, {view.storage.key: view.storage for view in views.values()})


def _legacy_extents(path: Path, file: BinaryIO, keys: list[str], storages: Mapping[str, Storage]) -> dict[str, _Extent]:
    """Return where the storages lie: one after the other, in the order of `keys`."""
    offset = file.tell()
    file_bytes = file.seek(0, 2)
    extents: dict[str, _Extent] = {}
    for key in keys:
        file.seek(offset)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if key not in storages:
            raise CheckpointError(f"{path}: storage {key[:100]!r} belongs to no tensor, so its dtype is unknown")
        nbytes = count * storages[key].dtype.itemsize
        if count < 0 or offset + 8 + nbytes > file_bytes:
            raise CheckpointError(
                f"{path}: storage {key[:100]!r} takes {nbytes} bytes from byte {offset + 8}, "
                f"the file ends at {file_bytes}: the file is truncated"
            )
        extents[key] = _Extent(offset + 8, nbytes)
        offset += 8 + nbytes
    return extents


def _model_state(path: Path, checkpoint: Any) -> Any:
    """Return the state dict of the model in what a training run saved."""
    state = checkpoint
    for key in ("state", "state_dict", "model"):  # Composer's are in ["state"]["model"]
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not any(isinstance(value, TensorView) for value in state.values()):
        raise CheckpointError(
            f"{path}: holds no weights of a model, which Composer saves in ['state']['model']; {CONSOLIDATE}"
        )
    sharded = next((name for name, value in state.items() if _is_sharded(name, value)), None)
    if sharded is not None:
        raise CheckpointError(f"{path}: {sharded[:200]!r} is a part of a parameter; {CONSOLIDATE}")
    return {name: value for name, value in state.items() if not name.endswith("_extra_state")}


def _is_sharded(name: str, value: Any) -> bool:
    """Return whether a value belongs to one rank of several: FSDP's flattened parameters, ShardedTensor, DTensor."""
    kind = value.name if isinstance(value, Opaque) else ""
    return "_flat_param" in name or any(word in kind for word in ("ShardedTensor", "sharded_tensor", "DTensor"))


def _views(path: Path, state: Any) -> dict[str, TensorView]:
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: contains a {type(state).__name__}, not a state dict of tensors")
    for name, value in state.items():
        if not isinstance(value, TensorView):
            raise CheckpointError(
                f"{path}: {name[:200]!r} is a {type(value).__name__}, not a tensor; save the model's state dict alone"
            )
    return state


def _stored_tensor(path: Path, name: str, view: TensorView, extents: Mapping[str, _Extent]) -> StoredTensor:
    storage, dtype = view.storage, view.storage.dtype
    extent = extents.get(storage.key)
    if extent is None:
        raise CheckpointError(f"{path}: the storage {storage.key[:100]!r} of {name[:200]!r} is missing")
    if extent.nbytes != storage.size * dtype.itemsize:
        raise CheckpointError(
            f"{path}: the storage of {name[:200]!r} should have {storage.size * dtype.itemsize} bytes, "
            f"the file holds {extent.nbytes}"
        )
    size = math.prod(view.shape)
    last = view.offset + sum((n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True))
    # A view with more elements than its storage repeats some (torch.expand); no weight is stored that way.
    if (size and (last >= storage.size or size > storage.size)) or view.offset > storage.size:
        raise CheckpointError(
            f"{path}: {name[:200]!r} with shape {view.shape}, strides {view.strides} and offset {view.offset} "
            f"reaches beyond its storage of {storage.size} elements"
        )
    strides = None if _is_dense(view) else view.strides
    return StoredTensor(path, name, extent.offset + view.offset * dtype.itemsize, dtype, view.shape, strides)


def _is_dense(view: TensorView) -> bool:
    expected = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
