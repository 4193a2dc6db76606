"""The shared library of CPU kernels: found, registered with XLA, or reported missing once."""

import ctypes
import functools
import logging
import os
from pathlib import Path
from typing import NamedTuple

import jax

import model.kernels.cpu

logger = logging.getLogger(__name__)

FILE_NAME = "libmpt_kernels.so"
VARIABLE = "MPT_SERVE_CPU_KERNELS"  # an instruction set, or 'none'
TARGETS = ("mpt_linear", "mpt_norm", "mpt_attention", "mpt_sample", "mpt_log_probabilities")


class KeyCounts(NamedTuple):
    """Keys of a head that attention met, once for each tile of queries, and those that it read with their values."""

    met: int
    read: int


class KernelLibrary:
    """The loaded library. `instruction_sets` are those that this machine can run, best first."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.mpt_supported_kernels.restype = ctypes.POINTER(ctypes.c_char_p)
        self._library.mpt_kernels_in_use.restype = ctypes.c_char_p
        self._library.mpt_use_kernels.restype = ctypes.c_bool
        word, size = ctypes.c_uint32, ctypes.c_int64
        self._library.mpt_pack_panels.argtypes = [ctypes.c_void_p, size, size, word, size, size, ctypes.c_void_p]
        self._library.mpt_pack_panels.restype = None
        self._library.mpt_key_counts.restype = None
        count = ctypes.c_int()
        names = self._library.mpt_supported_kernels(ctypes.byref(count))
        self.instruction_sets = tuple(names[i].decode() for i in range(count.value))
        for target in TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(self._library, target)), platform="cpu")

    @property
    def instruction_set(self) -> str:
        """The one whose kernels are in use."""
        return str(self._library.mpt_kernels_in_use().decode())

    def use(self, instruction_set: str) -> None:
        """Take the kernels of another instruction set from now on. Raises ValueError where this machine lacks it."""
        if not self._library.mpt_use_kernels(instruction_set.encode()):
            known = ", ".join(self.instruction_sets)
            raise ValueError(f"this machine has no CPU kernels for {instruction_set!r}; it has {known}")

    def key_counts(self) -> KeyCounts:
        """Counts of this process so far."""
        met, left_out = ctypes.c_int64(), ctypes.c_int64()
        self._library.mpt_key_counts(ctypes.byref(met), ctypes.byref(left_out))
        return KeyCounts(met.value, met.value - left_out.value)

    def pack_panels(self, words: int, rows: int, steps: int, padding: int, first: int, last: int, out: int) -> None:
        """Panels `first` to `last` of words [rows, steps] uint32 -> out [panels, steps, 32]; arrays by address."""
        self._library.mpt_pack_panels(words, rows, steps, padding, first, last, out)


@functools.cache
def kernel_library() -> KernelLibrary | None:
    """The library, or None (and one warning) where it was not built, does not fit, or is switched off."""
    asked = os.environ.get(VARIABLE, "")
    if asked == "none":
        return None
    path = next((p for folder in model.kernels.cpu.__path__ if (p := Path(folder, FILE_NAME)).is_file()), None)
    if path is None:
        _warn("they were not built: a C++17 compiler is needed when mpt-serve is installed")
        return None
    try:
        library = KernelLibrary(path)
    except Exception as error:  # of the loader or of XLA: another libstdc++, another jaxlib
        _warn(f"{path.name} does not load ({error}); install mpt-serve again")
        return None
    if asked:
        library.use(asked)
    logger.info("CPU kernels: %s", library.instruction_set)
    return library


def instruction_sets() -> tuple[str, ...]:
    """Those whose kernels this machine can run, best first; none without the library."""
    library = kernel_library()
    return () if library is None else library.instruction_sets


def _warn(reason: str) -> None:
    logger.warning("Without its native CPU kernels mpt_serve computes through XLA, several times slower: %s", reason)
