"""Writes PyTorch .bin files byte by byte, honest and hostile ones, so that the tests need no torch."""

import io
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

STORAGE_TAGS = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.bool_): "BoolStorage",
}


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Reduce:
    function: Any
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Raw:
    """Instructions of the pickle as they are."""

    data: bytes


@dataclass(frozen=True)
class PersistentId:
    value: Any


@dataclass(frozen=True)
class View:
    """A tensor of the state dict: a strided view (in elements) of the storage named `key`."""

    key: str
    dtype: Any
    numel: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def pickled(self) -> Reduce:
        storage = ("storage", Global("torch", STORAGE_TAGS[np.dtype(self.dtype)]), self.key, "cpu", self.numel)
        hooks = Reduce(Global("collections", "OrderedDict"), ())
        arguments = (PersistentId(storage), self.offset, self.shape, self.strides, False, hooks)
        return Reduce(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def pickle_bytes(value: Any) -> bytes:
    """Return `value` as one protocol 2 pickle."""
    return b"\x80\x02" + _emit(value) + b"."


def _emit(value: Any) -> bytes:
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int() if -(2**31) <= value < 2**31:
            return b"J" + struct.pack("<i", value)
        case int():
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(_emit, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_emit, value)) + b"e"
        case dict():
            return b"}(" + b"".join(_emit(key) + _emit(item) for key, item in value.items()) + b"u"
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Reduce():
            return _emit(value.function) + _emit(value.arguments) + b"R"
        case PersistentId():
            return _emit(value.value) + b"Q"
        case View():
            return _emit(value.pickled())
        case Raw():
            return value.data
    raise TypeError(type(value))


def dense_view(key: str, array: np.ndarray) -> View:
    strides = tuple(stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides)
    return View(key, array.dtype, array.size, 0, array.shape, strides)


def write_zip(path: Path, state: Any, storages: dict[str, bytes], byteorder: bytes = b"little", **options: Any) -> None:
    """Write the zip format; `options` go to zipfile (compression)."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", state if isinstance(state, bytes) else pickle_bytes(state))
        archive.writestr("archive/byteorder", byteorder)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", b"3\n")


def write_legacy(path: Path, state: Any, storages: dict[str, tuple[int, bytes]], little_endian: bool = True) -> None:
    """Write the format before PyTorch 1.6; `storages` gives the number of elements beside the bytes."""
    out = io.BytesIO()
    out.write(pickle_bytes(0x1950A86A20F9469CFC6C))
    out.write(pickle_bytes(1001))
    out.write(pickle_bytes({"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {"int": 4}}))
    out.write(state if isinstance(state, bytes) else pickle_bytes(state))
    out.write(pickle_bytes(list(storages)))
    for numel, data in storages.values():
        out.write(struct.pack("<q", numel) + data)
    path.write_bytes(out.getvalue())


def write_arrays(path: Path, arrays: dict[str, np.ndarray], legacy: bool = False) -> None:
    """Return a state dict of dense tensors, each with its own storage."""
    keys = {name: str(index) for index, name in enumerate(arrays)}
    state = {name: dense_view(keys[name], array) for name, array in arrays.items()}
    if legacy:
        write_legacy(path, state, {keys[n]: (a.size, a.tobytes()) for n, a in arrays.items()})
    else:
        write_zip(path, state, {keys[n]: a.tobytes() for n, a in arrays.items()})


@dataclass(frozen=True)
class FakeTensor:
    """What Python's own pickler writes as torch's tensors are written, between any other objects."""

    key: str
    shape: tuple[int, ...]

    def __reduce_ex__(self, protocol: int) -> Any:
        strides = tuple(int(np.prod(self.shape[i + 1 :])) for i in range(len(self.shape)))
        return _rebuild_tensor_v2, (_FakeStorage(self.key, self.shape), 0, self.shape, strides, False, OrderedDict())


@dataclass(frozen=True)
class _FakeStorage:
    key: str
    shape: tuple[int, ...]


def _rebuild_tensor_v2(*_: Any) -> None:
    raise AssertionError("called")


class FloatStorage:
    """The tag of float32 storages."""


class _TorchPickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _FakeStorage):
            return ("storage", FloatStorage, value.key, "cpu", int(np.prod(value.shape)))
        return None


def pickled_with_python(value: Any, protocol: int = 2) -> bytes:
    """Return a pickle of any objects, with each `FakeTensor` (float32) as torch.save writes tensors."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for module, thing in ((torch, FloatStorage), (utils, _rebuild_tensor_v2)):
        setattr(module, thing.__name__, thing)
        thing.__module__ = module.__name__
    out = io.BytesIO()
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        _TorchPickler(out, protocol).dump(value)
    return out.getvalue()


def write_sparse_zip(path: Path, data_pkl: bytes, sizes: dict[str, int]) -> None:
    """Write the zip format with storages of zeros that take no disk; `sizes` in bytes by key, below 4 GiB together."""
    entries: list[tuple[bytes, int, int]] = []
    with path.open("wb") as file:
        for name, size in {"data.pkl": len(data_pkl), **{f"data/{key}": size for key, size in sizes.items()}}.items():
            raw = f"archive/{name}".encode()
            entries.append((raw, size, file.tell()))
            file.write(b"PK\3\4" + struct.pack("<5H3I2H", 20, 0, 0, 0, 0, 0, size, size, len(raw), 0) + raw)
            if name == "data.pkl":
                file.write(data_pkl)
            else:
                file.seek(size, 1)
        start = file.tell()
        for raw, size, offset in entries:
            fields = struct.pack("<6H3I5H2I", 20, 20, 0, 0, 0, 0, 0, size, size, len(raw), 0, 0, 0, 0, 0, offset)
            file.write(b"PK\1\2" + fields + raw)
        count, length = len(entries), file.tell() - start
        file.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, count, count, length, start, 0))
