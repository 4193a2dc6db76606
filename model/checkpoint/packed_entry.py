"""Writes an entry of the packed-weights cache: parameters one by one, as they are made, into one safetensors file.

The header comes first in the file and is complete last, so its place is kept free. Arrays begin at multiples of 64
bytes, as a map of the file needs them; those whose size would break that come at the end.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.aligned_writer import AlignedWriter
from model.checkpoint.mapped_file import ALIGNMENT
from model.checkpoint.safetensors_file import DTYPES
from model.params.packed_matrix import PackedMatrix

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PARAMETER_BYTES = 3 * 256  # of the header: three arrays, each at least what the longest name and numbers take
_PAGE = 4096


class EntryWriter:
    """Writes the file. about: the file's metadata. parameters: how many there are. Raises OSError."""

    def __init__(self, file: BinaryIO, about: Mapping[str, str], parameters: int) -> None:
        self._file = file
        self._header: dict[str, Any] = {"__metadata__": dict(about)}
        header_bytes = len(json.dumps(self._header)) + _PARAMETER_BYTES * parameters
        self._start = -(-(8 + header_bytes) // _PAGE) * _PAGE
        self._end = 0
        self._rest: list[tuple[str, NDArray[Any]]] = []
        self._numbers = AlignedWriter(file, self._start)

    def add(self, path: str, leaf: NDArray[Any] | PackedMatrix) -> None:
        """Write a parameter, of which nothing is kept in memory."""
        for name, array in named_arrays(path, leaf):
            if array.nbytes % ALIGNMENT:
                self._rest.append((name, array))
            else:
                self._write(name, array)

    def finish(self) -> None:
        """Write what is left and the header, and have it on the disk: else a crash could leave an empty file."""
        for name, array in self._rest:
            self._write(name, array)
        self._numbers.flush()
        raw = json.dumps(self._header).encode()
        space = self._start - 8
        self._file.seek(0)
        self._file.write(space.to_bytes(8, "little") + raw.ljust(space))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, name: str, array: NDArray[Any]) -> None:
        begin, self._end = self._end, self._end + array.nbytes
        offsets = [begin, self._end]
        self._header[name] = {"dtype": _DTYPE_NAMES[array.dtype], "shape": array.shape, "data_offsets": offsets}
        self._numbers.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def named_arrays(path: str, leaf: Any) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a parameter with their names in an entry."""
    if isinstance(leaf, PackedMatrix):
        fields = {"data": leaf.data, "row_scale": leaf.row_scale, "group_scale": leaf.group_scale}
        yield from ((f"{path}.{name}", array) for name, array in fields.items() if array is not None)
    else:
        yield path, leaf
