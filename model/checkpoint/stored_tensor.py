"""A tensor's location in a checkpoint file, and the one way to read its numbers.

The safetensors and torch readers only locate tensors: each returns `StoredTensor` records. Numbers are read here, with
plain reads into the caller's buffer. Reads rather than a memory map: a map counts the file's pages as memory of the
process while it is copied, and turns a file truncated by another process into a fatal SIGBUS instead of an error.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

CHUNK_BYTES = 8 * 2**20  # memory of a conversion between dtypes beside its source and its target

FLOAT_DTYPES = tuple(np.dtype(d) for d in (ml_dtypes.bfloat16, np.float16, np.float32, np.float64))


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or does not fit the model. The message names the file, the tensor and the fix."""


@dataclass(frozen=True)
class Blocks:
    """Numbers that a file keeps in blocks of `elements` numbers and `nbytes` bytes; `decode` makes float32 of them."""

    elements: int
    nbytes: int
    decode: Callable[[NDArray[np.uint8]], NDArray[np.float32]]


@dataclass(frozen=True)
class StoredInt4:
    """A matrix [N, K] as codes [N, K] from -8 to 7 times scales [N, G] float16, each of `group` inputs."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float16]
    group: int


@dataclass(frozen=True)
class Computed:
    """Numbers that are computed, as float32 and in the tensor's shape, from other stored tensors, or from files."""

    parts: tuple[StoredTensor, ...]
    numbers: Callable[[], NDArray[np.float32]]
    files: tuple[Path, ...] = ()
    int4: Callable[[], StoredInt4 | str] | None = None  # the integers that they come from, or why those cannot stay


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a matrix [N, K]: `scale` times the product of `left` [N, r] and `right` [r, K]."""

    left: StoredTensor
    right: StoredTensor
    scale: float


@dataclass(frozen=True)
class StoredTensor:
    """The location of one tensor. `strides` (in elements) is None for the usual dense row-major layout.

    blocks: how the numbers are packed, where they are not stored as `dtype`, which is float32 then.
    delta: what is added to the numbers, in float32, while they are read.
    computed: where the numbers come from, if the file does not have them; `dtype` is what they are rounded to.
    """

    path: Path
    name: str
    offset: int  # bytes from the file's start to the first element
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    blocks: Blocks | None = None
    delta: LowRank | None = None
    computed: Computed | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements, gaps between strided rows not counted."""
        if self.blocks is not None:
            return self.size // self.blocks.elements * self.blocks.nbytes
        return self.size * self.dtype.itemsize

    @property
    def is_float(self) -> bool:
        """True for the dtypes that weights may have: bfloat16, float16, float32 and float64."""
        return self.dtype in FLOAT_DTYPES


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an uninitialised dense array, 64-byte aligned so that JAX on the CPU adopts it without a copy.

    Raises MemoryError as numpy does.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    buffer = np.empty(nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + nbytes].view(dtype).reshape(shape)


def read_tensor(tensor: StoredTensor, out: NDArray[Any]) -> None:
    """Fill `out` (dense, same number of elements, any float dtype) with the tensor's numbers, converted where needed.

    Needs at most CHUNK_BYTES beside `out`; a tensor stored with strides needs its own size once more.
    Raises CheckpointError where the file is shorter than its header said, or a number does not fit `out`'s dtype.
    """
    flat = out.reshape(-1)
    if not np.shares_memory(flat, out) and out.size:
        raise ValueError("read_tensor needs a dense buffer")
    changed = (tensor.strides, tensor.blocks, tensor.delta, tensor.computed)
    if changed == (None,) * 4 and tensor.dtype == out.dtype:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            _read_exactly(tensor, file, flat)
        return
    start = 0
    for chunk in read_chunks(tensor):
        _convert(tensor, chunk, flat[start : start + chunk.size])
        start += chunk.size


def read_chunks(tensor: StoredTensor) -> Iterator[NDArray[Any]]:
    """Yield the tensor's elements in row-major order, in pieces of at most CHUNK_BYTES, in the file's dtype.

    A piece is valid until the next one is requested. A strided tensor and a computed one come whole. The latter, and
    one with a delta, are float32.
    """
    if tensor.delta is not None:
        yield from _adapted_chunks(replace(tensor, delta=None), tensor.delta)
        return
    if tensor.computed is not None:
        yield tensor.computed.numbers().reshape(-1)
        return
    if tensor.blocks is not None:
        yield from _decoded_chunks(tensor, tensor.blocks)
        return
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        if tensor.strides is not None:
            yield _read_strided(tensor, file, tensor.strides)
            return
        step = CHUNK_BYTES // tensor.dtype.itemsize
        buffer = np.empty(min(step, tensor.size), tensor.dtype)
        for start in range(0, tensor.size, step):
            chunk = buffer[: min(step, tensor.size - start)]
            _read_exactly(tensor, file, chunk)
            yield chunk


def _adapted_chunks(tensor: StoredTensor, delta: LowRank) -> Iterator[NDArray[np.float32]]:
    left, right = (_whole(part).astype(np.float32).reshape(part.shape) for part in (delta.left, delta.right))
    width, start = tensor.shape[1], 0
    for chunk in read_chunks(tensor):
        first, end = start // width, -(-(start + chunk.size) // width)  # the rows that it has a part of
        added = (left[first:end] @ right).reshape(-1)[start - first * width :][: chunk.size]
        yield chunk.astype(np.float32) + np.float32(delta.scale) * added
        start += chunk.size


def _decoded_chunks(tensor: StoredTensor, blocks: Blocks) -> Iterator[NDArray[np.float32]]:
    count = tensor.size // blocks.elements
    step = max(CHUNK_BYTES // (4 * blocks.elements), 1)
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.offset)
        for start in range(0, count, step):
            data = np.empty(min(step, count - start) * blocks.nbytes, np.uint8)
            _read_exactly(tensor, file, data)
            yield blocks.decode(data)


def same_numbers(left: StoredTensor, right: StoredTensor) -> bool:
    """Return whether both tensors have the same shape, dtype and bytes."""
    if (left.shape, left.dtype) != (right.shape, right.dtype):
        return False
    if (left.strides is None) == (right.strides is None):
        pairs = zip(read_chunks(left), read_chunks(right), strict=True)
    else:
        pairs = zip([_whole(left)], [_whole(right)], strict=True)
    return all(np.array_equal(a.view(np.uint8), b.view(np.uint8)) for a, b in pairs)


def read_whole(tensor: StoredTensor) -> NDArray[Any]:
    """Return a tensor's numbers in its own dtype and shape. Raises CheckpointError as `read_tensor` does."""
    out = np.empty(tensor.shape, tensor.dtype)
    read_tensor(tensor, out)
    return out


def _whole(tensor: StoredTensor) -> NDArray[Any]:
    return read_whole(tensor).reshape(-1)


def _read_exactly(tensor: StoredTensor, file: io.FileIO, out: NDArray[Any]) -> None:
    view = out.view(np.uint8).data
    done = 0
    while done < len(view):  # a raw read may return less than requested, and at most 2 GiB
        count = file.readinto(view[done:])
        if not count:
            raise CheckpointError(
                f"{tensor.path}: the file ends inside {tensor.name!r}: {len(view)} bytes expected at "
                f"byte {tensor.offset}, {done} found; was it replaced while it was read?"
            )
        done += count


def _read_strided(tensor: StoredTensor, file: io.FileIO, strides: tuple[int, ...]) -> NDArray[Any]:
    if not tensor.size:
        return np.empty(0, tensor.dtype)
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    flat = np.empty(span, tensor.dtype)
    _read_exactly(tensor, file, flat)
    steps = tuple(stride * tensor.dtype.itemsize for stride in strides)
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, tensor.shape, steps)).reshape(-1)


def _convert(tensor: StoredTensor, chunk: NDArray[Any], out: NDArray[Any]) -> None:
    with np.errstate(over="ignore"):
        np.copyto(out, chunk, casting="unsafe")
    # Other targets have the range of the source, but for the last few float32 numbers, which no weight reaches.
    if (out.dtype == np.float16 and chunk.dtype != np.float16) or chunk.dtype == np.float64:
        overflow = np.isinf(out) & ~np.isinf(chunk)
        if overflow.any():
            worst = float(np.abs(chunk[overflow]).max())
            raise CheckpointError(
                f"{tensor.path}: {tensor.name!r} holds {worst:g}, beyond {out.dtype}'s largest number "
                f"{float(ml_dtypes.finfo(out.dtype).max):g}; use a dtype with a wider range (bfloat16, float32)"
            )
