"""Finds values in a MessagePack file without reading the large ones (github.com/msgpack/msgpack, spec.md).

Numbers, texts, lists and objects are values of Python. What may be large, bytes and extensions, is where it is.
"""

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

from model.checkpoint.stored_tensor import CheckpointError

_MAX_DEPTH = 32
_MAX_TEXT = 2**16
_MAX_VALUES = 2**20  # of a file; the largest MPT has fewer than 1,000 parameters, each of a dozen values
_FIXED = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q",
    0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q",
}  # fmt: skip
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_LENGTHS = {1: ">B", 2: ">H", 4: ">I"}


@dataclass(frozen=True)
class Extent:
    """Bytes in the file. kind: of an extension; None for plain bytes."""

    offset: int
    nbytes: int
    kind: int | None = None


class Scanner:
    """Reads values one after the other, from `start` to `end`, or the file's end. where: of messages."""

    def __init__(self, file: BinaryIO, where: str, start: int = 0, end: int | None = None) -> None:
        self._file, self._where = file, where
        self._end = file.seek(0, 2) if end is None else end
        self._values = 0
        file.seek(start)

    @property
    def at_end(self) -> bool:
        """Whether no value is left."""
        return self._file.tell() >= self._end

    def value(self, depth: int = 0) -> Any:
        """Return the next value. Raises CheckpointError for one that is damaged, truncated or nested too deeply."""
        self._values += 1
        if depth > _MAX_DEPTH or self._values > _MAX_VALUES:
            raise CheckpointError(f"{self._where}: holds more values than the parameters of a model")
        tag = self._bytes(1)[0]
        if tag < 0x80:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        if tag in _FIXED:
            return self._number(_FIXED[tag])
        return self._sized(tag, depth)

    def _sized(self, tag: int, depth: int) -> Any:
        if tag < 0x90 or tag in (0xDE, 0xDF):
            count = tag - 0x80 if tag < 0x90 else self._number(_LENGTHS[2 * (tag - 0xDD)])
            return dict(self._pair(depth) for _ in range(count))
        if tag < 0xA0 or tag in (0xDC, 0xDD):
            count = tag - 0x90 if tag < 0xA0 else self._number(_LENGTHS[2 * (tag - 0xDB)])
            return [self.value(depth + 1) for _ in range(count)]
        if tag < 0xC0 or tag in (0xD9, 0xDA, 0xDB):
            return self._text(tag - 0xA0 if tag < 0xC0 else self._number(_LENGTHS[1 << (tag - 0xD9)]))
        if tag in (0xC4, 0xC5, 0xC6):
            return self._extent(self._number(_LENGTHS[1 << (tag - 0xC4)]), None)
        if tag in (0xC7, 0xC8, 0xC9):
            nbytes = self._number(_LENGTHS[1 << (tag - 0xC7)])
            return self._extent(nbytes, self._number(">b"))
        if 0xD4 <= tag <= 0xD8:
            return self._extent(1 << (tag - 0xD4), self._number(">b"))
        raise CheckpointError(f"{self._where}: byte {self._file.tell() - 1} begins no MessagePack value")

    def _pair(self, depth: int) -> tuple[Any, Any]:
        key = self.value(depth + 1)
        if not isinstance(key, (str, int)):
            raise CheckpointError(f"{self._where}: an object has a key that is a {type(key).__name__}, not a name")
        return key, self.value(depth + 1)

    def _extent(self, nbytes: int, kind: int | None) -> Extent:
        extent = Extent(self._file.tell(), nbytes, kind)
        if extent.offset + nbytes > self._end:
            raise CheckpointError(
                f"{self._where}: {nbytes} bytes from byte {extent.offset} reach beyond byte {self._end}: the file is"
                " truncated; download it again"
            )
        self._file.seek(nbytes, 1)
        return extent

    def _text(self, nbytes: int) -> str:
        if nbytes > _MAX_TEXT:
            raise CheckpointError(f"{self._where}: holds a text of {nbytes} bytes; only parameters are read")
        return self._bytes(nbytes).decode("utf-8", "replace")

    def _number(self, form: str) -> Any:
        (value,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
        return value

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count) if self._file.tell() + count <= self._end else b""
        if len(data) < count:
            raise CheckpointError(f"{self._where}: the file ends inside a value: it is truncated; download it again")
        return data
