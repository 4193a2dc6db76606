"""Finds the parameters in files of Flax's serialisation: EasyDeL's `easydel-model.parameters`, `flax_model.msgpack`.

Two layouts of MessagePack exist: one object that is the tree of parameters, and (EasyDeL, EasyLM) a list of pairs, a
path and the bytes of one parameter. An array is an extension of type 1: a list of shape, dtype and bytes. One above a
gigabyte is an object of several. EasyDeL's later releases write safetensors under the same file name.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.flax_tree import flax_tensors
from model.checkpoint.msgpack_scan import Extent, Scanner
from model.checkpoint.safetensors_file import read_safetensors
from model.checkpoint.stored_tensor import FLOAT_DTYPES, CheckpointError, Computed, StoredTensor, read_whole

_ARRAY = 1  # the extension's type
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = {dtype.name: dtype for dtype in FLOAT_DTYPES}

Leaves = dict[tuple[str, ...], StoredTensor]


def read_flax(path: Path) -> dict[str, StoredTensor]:
    """Return the parameters in a file by llm-foundry's names; reads descriptions only.

    Raises CheckpointError for a file that is damaged or holds something else.
    """
    with path.open("rb") as file:
        start = file.read(9)
        if start[8:] == b"{":
            return read_safetensors(path)
        scanner = Scanner(file, str(path))
        leaves: Leaves = {}
        while not scanner.at_end:
            value = scanner.value()
            position = file.tell()
            leaves.update(_found(path, file, value))
            file.seek(position)
    if not leaves:
        raise CheckpointError(f"{path}: holds no parameters as Flax writes them")
    return flax_tensors(leaves)


def _found(path: Path, file: BinaryIO, value: Any) -> Iterator[tuple[tuple[str, ...], StoredTensor]]:
    """Yield the parameters of a whole tree, or of one pair of a path and bytes."""
    if isinstance(value, dict):
        yield from _of_tree(path, file, value, ())
    elif isinstance(value, list) and len(value) == 2 and isinstance(value[1], Extent) and value[1].kind is None:
        names = value[0] if isinstance(value[0], list) else [value[0]]
        inner = Scanner(file, str(path), value[1].offset, value[1].offset + value[1].nbytes).value()
        yield from _of_tree(path, file, inner, tuple(map(str, names)))
    else:
        raise CheckpointError(
            f"{path}: begins with a {type(value).__name__}; Flax's parameters are an object, or pairs of path and bytes"
        )


def _of_tree(
    path: Path, file: BinaryIO, value: Any, names: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], StoredTensor]]:
    if isinstance(value, dict) and _CHUNKED in value:
        yield names, _chunked(path, file, value, names)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _of_tree(path, file, inner, (*names, str(key)))
    elif isinstance(value, Extent) and value.kind == _ARRAY:
        tensor = _array(path, file, value, names)
        if tensor is not None:
            yield names, tensor


def _array(path: Path, file: BinaryIO, extent: Extent, names: tuple[str, ...]) -> StoredTensor | None:
    """Return an array of floats; None for others, such as a count of steps."""
    name = ".".join(names)[:200]
    found = Scanner(file, str(path), extent.offset, extent.offset + extent.nbytes).value()
    if not isinstance(found, list) or len(found) != 3 or not isinstance(found[2], Extent):
        raise CheckpointError(f"{path}: {name!r} is no array of shape, dtype and bytes")
    shape, dtype_name, data = found
    if not _is_shape(shape):
        raise CheckpointError(f"{path}: {name!r} has the shape {str(shape)[:100]}, not a list of sizes")
    dtype = _DTYPES.get(str(dtype_name))
    if dtype is None:
        return None
    expected = math.prod(shape) * dtype.itemsize
    if expected != data.nbytes:
        raise CheckpointError(
            f"{path}: {name!r} with the shape {shape} and dtype {dtype} takes {expected} bytes, the file holds"
            f" {data.nbytes}"
        )
    return StoredTensor(path, name, data.offset, dtype, tuple(shape))


def _chunked(path: Path, file: BinaryIO, value: Mapping[Any, Any], names: tuple[str, ...]) -> StoredTensor:
    name = ".".join(names)[:200]
    shape, chunks = _listed(value.get("shape")), _listed(value.get("chunks"))
    parts = [_array(path, file, chunk, names) for chunk in chunks if isinstance(chunk, Extent)]
    arrays = [part for part in parts if part is not None]
    sizes = sum(part.size for part in arrays)
    if not arrays or not _is_shape(shape) or math.prod(shape) != sizes or len({part.dtype for part in arrays}) != 1:
        raise CheckpointError(f"{path}: the {len(chunks)} parts of {name!r} do not make an array {str(shape)[:100]}")

    def numbers() -> NDArray[np.float32]:
        whole = np.concatenate([read_whole(part).astype(np.float32).reshape(-1) for part in arrays])
        return whole.reshape(shape)

    return StoredTensor(path, name, 0, arrays[0].dtype, tuple(shape), computed=Computed(tuple(arrays), numbers))


def _listed(value: Any) -> list[Any]:
    """Return the list that Flax writes as an object with the keys "0", "1", ..."""
    items = value if isinstance(value, dict) else {}
    return [items.get(str(i), items.get(i)) for i in range(len(items))]


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 16 and all(type(n) is int and 0 <= n < 2**63 for n in value)
