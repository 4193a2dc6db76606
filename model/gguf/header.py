"""Reads what a GGUF file says before its tensors: metadata, and each tensor's name, type, shape and location.

The file: a magic number, a version, the numbers of tensors and of metadata, those one after the other, padding, data.
"""

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from model.gguf.types import TENSOR_TYPES, TensorType

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # unless the metadata has another
_MAX_TENSORS, _MAX_METADATA, _MAX_DIMS = 2**20, 2**16, 8
_INTEGERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 10: "<u8", 11: "<i8"}
_SCALARS = {**_INTEGERS, 6: "<f4", 7: "?", 12: "<f8"}
_STRING, _ARRAY = 8, 9


class GgufError(ValueError):
    """A GGUF file cannot be read; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class GgufTensor:
    """The location of a tensor. shape: row-major, as numpy's. offset: bytes from the file's start."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) // self.type.elements * self.type.nbytes


@dataclass(frozen=True)
class GgufHeader:
    """What a file says: metadata by key (numbers, texts, lists of them), and its tensors by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: Path) -> bool:
    """Return whether a path names a GGUF file, which stands for the folder of a checkpoint."""
    return path.suffix == ".gguf" and path.is_file()


def find_gguf(folder: Path) -> Path | None:
    """Return the GGUF file in a folder: the only one, or the first of the parts of the only one; None for others."""
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    firsts = [file for file in files if "-of-" not in file.stem or file.stem.rpartition("-of-")[0].endswith("-00001")]
    return firsts[0] if len(firsts) == 1 else None


def read_header(path: Path) -> GgufHeader:
    """Read a file's header. Raises GgufError, and OSError where the file cannot be read."""
    status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)  # config, tokenizer, template and weights are read one after the other
def _read(path: Path, changed: int, size: int) -> GgufHeader:
    with path.open("rb") as file:
        try:
            return _Reader(file, size).header(path)
        except GgufError as error:
            raise GgufError(f"{path}: {error}") from None
        except (UnicodeDecodeError, struct.error, MemoryError, OverflowError) as error:
            raise GgufError(f"{path}: the header is damaged ({error}); download the file again") from None


class _Reader:
    """Reads a header's parts in their order."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def header(self, path: Path) -> GgufHeader:
        if self._bytes(4) != _MAGIC:
            raise GgufError("it does not begin with 'GGUF', so it is no GGUF file; download it again")
        version = self._integer("<I")
        if version not in _VERSIONS:
            raise GgufError(
                f"version {version} is not read, only {' and '.join(map(str, _VERSIONS))} in little-endian order;"
                " convert the original checkpoint again"
            )
        count = self._count(_MAX_TENSORS, "tensors")
        keys = self._count(_MAX_METADATA, "entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text()
            if key in metadata:
                raise GgufError(f"the metadata names {key[:100]!r} twice")
            metadata[key] = self._value(self._integer("<I"), key)
        found = [self._tensor() for _ in range(count)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise GgufError(f"general.alignment is {str(alignment)[:50]}; it must be a power of two")
        start = -(-self._file.tell() // alignment) * alignment
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in found:
            tensor = GgufTensor(name, kind, shape, start + offset)
            if name in tensors:
                raise GgufError(f"it names the tensor {name[:100]!r} twice")
            if tensor.offset + tensor.nbytes > self._size:
                raise GgufError(
                    f"{name[:100]!r} ends at byte {tensor.offset + tensor.nbytes}, the file at {self._size}: it is"
                    " truncated; download it again"
                )
            tensors[name] = tensor
        return GgufHeader(path, metadata, tensors)

    def _tensor(self) -> tuple[str, TensorType, tuple[int, ...], int]:
        name = self._text()
        dims = self._integer("<I")
        if dims > _MAX_DIMS:
            raise GgufError(f"{name[:100]!r} has {dims} dimensions")
        shape = tuple(self._integer("<Q") for _ in range(dims))[::-1]
        number, offset = self._integer("<I"), self._integer("<Q")
        kind = TENSOR_TYPES.get(number)
        if kind is None:
            raise GgufError(f"{name[:100]!r} has the type {number}, which this version does not know")
        if math.prod(shape) >= 2**48 or offset >= 2**62 or (shape and shape[-1] % kind.elements):
            raise GgufError(f"{name[:100]!r} of type {kind.name} has the shape {list(shape)}")
        return name, kind, shape, offset

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            inner, count = self._integer("<I"), self._integer("<Q")
            if inner == _STRING:
                return [self._text() for _ in range(self._within(count, 8))]
            dtype = self._dtype(inner, key)
            return np.frombuffer(self._bytes(self._within(count, dtype.itemsize) * dtype.itemsize), dtype).tolist()
        dtype = self._dtype(kind, key)
        value = np.frombuffer(self._bytes(dtype.itemsize), dtype)[0]
        return float(str(value)) if dtype == np.float32 else value.item()  # 1e-5 rather than its nearest float32

    def _dtype(self, kind: int, key: str) -> np.dtype[Any]:
        if kind not in _SCALARS:
            raise GgufError(f"the metadata {key[:100]!r} has a value of type {kind}, which no version of GGUF has")
        return np.dtype(_SCALARS[kind])

    def _within(self, count: int, nbytes: int) -> int:
        """Return a number of things of at least some bytes, if the file is that long."""
        if count * nbytes > self._size:
            raise GgufError(f"the header names {count} values in a file of {self._size} bytes; download it again")
        return count

    def _count(self, most: int, what: str) -> int:
        count = self._integer("<Q")
        if count > most:
            raise GgufError(f"the header names {count} {what}; it is damaged, download the file again")
        return count

    def _text(self) -> str:
        return self._bytes(self._within(self._integer("<Q"), 1)).decode("utf-8")

    def _integer(self, form: str) -> int:
        (value,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
        return int(value)

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise GgufError("the file ends inside its header; download it again")
        return data
