"""Maps files of numbers into memory: nothing is copied, and processes that map the same file share its memory.

Only files that are never changed in place may be mapped, because a process that reads a page which is gone ends at once
(SIGBUS). Where another machine could remove the file under a mapping, as on network file systems, it is read instead.
"""

import contextlib
import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.stored_tensor import StoredTensor, read_tensor
from model.checkpoint.weight_memory import weight_empty

ALIGNMENT = 64  # of arrays that XLA's CPU device adopts without a copy
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
_POPULATE_READ = 22  # <linux/mman.h>, since Linux 5.14
_PART = 2**28  # bytes that are made present at a time


class TensorReader:
    """Returns the numbers of tensors in one file of safetensors, mapped where that is safe, else read.

    file_systems: the kinds that a map is safe on; none switches mapping off.
    """

    def __init__(self, path: Path, file_systems: set[str] = _LOCAL) -> None:
        self._map: NDArray[np.uint8] | None = None
        if sys.platform != "linux" or _file_system(path) not in file_systems:
            return
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with contextlib.suppress(OSError):  # a file system without huge pages
            self._mapped.madvise(mmap.MADV_HUGEPAGE)
        self._map = np.frombuffer(self._mapped, np.uint8)

    def make_present(self, progress: Callable[[int], None]) -> bool:
        """Have the system read the whole file, so that later uses wait for no disk; return whether it is mapped.

        progress: called with the number of bytes that have become present.
        """
        if self._map is None:
            return False
        for start in range(0, len(self._map), _PART):
            size = min(_PART, len(self._map) - start)
            try:
                self._mapped.madvise(_POPULATE_READ, start, size)
            except OSError:  # an older Linux: touch every page
                self._map[start : start + size : mmap.PAGESIZE].max()
            progress(size)
        return True

    def read(self, tensor: StoredTensor) -> NDArray[Any]:
        """Return a dense tensor's numbers, aligned as XLA needs them; read-only where they are mapped."""
        if self._map is not None and tensor.offset % ALIGNMENT == 0:
            return self._map[tensor.offset : tensor.offset + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
        array = weight_empty(tensor.shape, tensor.dtype)
        read_tensor(tensor, array)
        return array


def _file_system(path: Path) -> str | None:
    """Return the kind of the file system that holds a file, None where it is not known."""
    place, longest, found = path.resolve(), 0, None
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mounted, kind, *_ = line.split(" ")
            mounted = mounted.encode().decode("unicode_escape")  # a space is \040
            if place.is_relative_to(mounted) and len(mounted) >= longest:
                longest, found = len(mounted), kind
    return found
