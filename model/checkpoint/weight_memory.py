"""Memory for weights that stay, in pages of 2 MiB.

A product reads every weight once, and in pages of 4 KiB the processor spends up to half of that time on finding the
pages. Most matrices are smaller than a large page or no multiple of it, so they share chunks of several.
"""

import contextlib
import math
import mmap
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.stored_tensor import aligned_empty

LARGE_PAGE = 2**21
_CHUNK = 16 * LARGE_PAGE
_SMALL = 2**16  # bytes below which an array is not worth a place here
_ALIGNMENT = 64

_lock = threading.Lock()
_rest = np.empty(0, np.uint8)  # of the chunk in use


def weight_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an uninitialised dense array as `aligned_empty` does, in large pages where the system has them.

    A chunk of memory is free again when all of its arrays are: for arrays that are kept together.
    """
    global _rest
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _SMALL or sys.platform != "linux":
        return aligned_empty(shape, dtype)
    places = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
    if places > _CHUNK // 2:
        buffer = _large_pages(places)
    else:
        with _lock:
            if len(_rest) < places:
                _rest = _large_pages(_CHUNK)
            buffer, _rest = _rest[:places], _rest[places:]
    return buffer[:nbytes].view(dtype).reshape(shape)


def _large_pages(size: int) -> NDArray[np.uint8]:
    """Return bytes that begin with a large page and take memory as they are used."""
    mapped = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    whole = np.frombuffer(mapped, np.uint8)
    start = -whole.ctypes.data % LARGE_PAGE
    with contextlib.suppress(OSError):  # a system without large pages
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return whole[start : start + size]
