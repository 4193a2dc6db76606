"""Finds the tensors of a .safetensors file, after checking its header against the file.

The file: 8 bytes of little-endian header length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, then
the data. The safetensors library reads it too, but its errors name neither the tensor nor the sizes, and it returns
copies that JAX has to copy again. So the header is read here, and the library writes the files
(model/checkpoint/save.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from model.checkpoint.json_names import RepeatedNameError, unique_members
from model.checkpoint.stored_tensor import CheckpointError, StoredTensor

MAX_HEADER_BYTES = 100_000_000  # the format's own limit

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
        "C64": np.complex64,
    }.items()
}


def read_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a .safetensors file in the order of their data; reads the header only.

    Raises CheckpointError, naming the file, the tensor and both sizes, for a truncated file, a header that does
    not follow the format, an unknown dtype, and offsets that overlap, leave gaps, or do not fit shape, dtype or file.
    """
    header, data_start, data_bytes = _read_header(path)
    tensors = [_stored_tensor(path, name, entry, data_start, data_bytes) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            problem = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: {tensor.name!r} {problem}: its data starts at byte {tensor.offset - data_start}, "
                f"the data before it ends at {end - data_start}"
            )
        end = tensor.offset + tensor.nbytes
    if end != data_start + data_bytes:
        raise CheckpointError(
            f"{path}: the header describes {end - data_start} bytes of data, the file holds {data_bytes}"
        )
    return {tensor.name: tensor for tensor in tensors}


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header without its metadata, where the data starts, and how many bytes of data the file has."""
    with path.open("rb") as file:
        file_bytes = file.seek(0, 2)
        file.seek(0)
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, file_bytes - 8):
            raise CheckpointError(
                f"{path}: not a complete safetensors file: it has {file_bytes} bytes and declares a header of "
                f"{length} bytes; download it again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw, object_pairs_hook=unique_members)
    except RepeatedNameError as error:
        raise CheckpointError(f"{path}: the safetensors header names {error.name[:200]!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is a {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    return header, 8 + length, file_bytes - 8 - length


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int, data_bytes: int) -> StoredTensor:
    if not isinstance(entry, dict):
        raise CheckpointError(f"{path}: the header's entry for {name!r} is a {type(entry).__name__}, not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{path}: {name!r} has dtype {str(dtype)[:50]!r}; known are {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > 16:
        raise CheckpointError(f"{path}: {name!r} has shape {str(shape)[:100]}, not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: {name!r} has data_offsets {str(offsets)[:100]}, not [begin, end]")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != needed:
        raise CheckpointError(
            f"{path}: {name!r} with shape {shape} and dtype {dtype} takes {needed} bytes, "
            f"its data_offsets {offsets} hold {end - begin}"
        )
    if end > data_bytes:
        raise CheckpointError(
            f"{path}: {name!r} ends at byte {end} of the data, but the file holds {data_bytes}: "
            f"the file is truncated; download it again"
        )
    return StoredTensor(path, name, data_start + begin, DTYPES[dtype], tuple(shape))


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)
