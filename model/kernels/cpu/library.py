"""The shared library of CPU kernels: finding it, registering it with XLA, reporting once that it is missing."""

import ctypes
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

import model.kernels.cpu

logger = logging.getLogger(__name__)

FILE_NAME = "libmpt_kernels.so"
VARIABLE = "MPT_SERVE_CPU_KERNELS"  # an instruction set, or 'none'
TARGETS = (
    "mpt_linear",
    "mpt_norm",
    "mpt_rope",
    "mpt_attention",
    "mpt_step",
    "mpt_open_session",
    "mpt_sample",
    "mpt_log_probabilities",
    "mpt_zeros",
)


class KeyCounts(NamedTuple):
    """Keys of a head that were visible, once for each tile of queries, and those that attention read."""

    visible: int
    read: int


class QuantiseArgs(ctypes.Structure):
    """A matrix to quantise, as `quantize.h` declares it; arrays by their addresses."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),  # 0: float32, 1: bfloat16
        ("N", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("data", ctypes.c_void_p),
        ("row_scale", ctypes.c_void_p),
        ("group_scale", ctypes.c_void_p),
    )


class KernelLibrary:
    """The loaded library.

    instruction_sets: those that this machine can run, best first.
    row_tile: rows of inputs that the products handle together in registers; steps of that many rows fill it.
    start_step, finish_step, abandon_step, close_session: the functions of a session (`kernels.cpu.session`).
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.mpt_supported_kernels.restype = ctypes.POINTER(ctypes.c_char_p)
        self._library.mpt_kernels_in_use.restype = ctypes.c_char_p
        self._library.mpt_use_kernels.restype = ctypes.c_bool
        word, size = ctypes.c_uint32, ctypes.c_int64
        self._library.mpt_pack_panels.argtypes = [ctypes.c_void_p, size, size, word, size, size, ctypes.c_void_p]
        self._library.mpt_pack_panels.restype = None
        self._library.mpt_quantise_panels.argtypes = [ctypes.POINTER(QuantiseArgs), size, size]
        self._library.mpt_quantise_panels.restype = ctypes.c_bool
        self._library.mpt_key_counts.restype = None
        self._library.mpt_row_tile.restype = ctypes.c_int
        self._library.mpt_limit_threads.restype = None
        self.row_tile: int = self._library.mpt_row_tile()
        self.start_step = self._library.mpt_start_step
        self.finish_step = self._library.mpt_finish_step
        self.abandon_step = self._library.mpt_abandon_step
        self.close_session = self._library.mpt_close_session
        for function in (self.start_step, self.abandon_step, self.close_session):
            function.restype = None
        self.finish_step.restype = ctypes.c_bool
        count = ctypes.c_int()
        names = self._library.mpt_supported_kernels(ctypes.byref(count))
        self.instruction_sets = tuple(names[i].decode() for i in range(count.value))
        for target in TARGETS:
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(self._library, target)), platform="cpu")

    @property
    def instruction_set(self) -> str:
        """The instruction set whose kernels are in use."""
        return str(self._library.mpt_kernels_in_use().decode())

    def use(self, instruction_set: str) -> None:
        """Use the kernels of another instruction set from now on. Raises ValueError where this machine lacks it."""
        if not self._library.mpt_use_kernels(instruction_set.encode()):
            known = ", ".join(self.instruction_sets)
            raise ValueError(f"this machine has no CPU kernels for {instruction_set!r}; it has {known}")

    def limit_threads(self, threads: int | None) -> None:
        """Use at most that many threads from now on, in the whole process; None for one on each core."""
        self._library.mpt_limit_threads(ctypes.c_int(threads or 0))

    def key_counts(self) -> KeyCounts:
        """Return the counts of this process so far."""
        visible, skipped = ctypes.c_int64(), ctypes.c_int64()
        self._library.mpt_key_counts(ctypes.byref(visible), ctypes.byref(skipped))
        return KeyCounts(visible.value, visible.value - skipped.value)

    def pack_panels(self, words: int, rows: int, steps: int, padding: int, first: int, last: int, out: int) -> None:
        """Pack panels `first` to `last` of words [rows, steps] uint32 into out [panels, steps, 32]; by address."""
        self._library.mpt_pack_panels(words, rows, steps, padding, first, last, out)

    def quantise_panels(self, args: QuantiseArgs, first: int, last: int) -> bool:
        """Quantise panels `first` to `last` of a matrix; return False where a number of theirs is not finite."""
        return bool(self._library.mpt_quantise_panels(ctypes.byref(args), first, last))


@functools.cache
def kernel_library() -> KernelLibrary | None:
    """Return the library, or None (and log one warning) where it was not built or does not load, or is switched off."""
    requested = os.environ.get(VARIABLE, "")
    if requested == "none":
        return None
    path = next((p for folder in model.kernels.cpu.__path__ if (p := Path(folder, FILE_NAME)).is_file()), None)
    if path is None:
        _warn("they were not built; install mpt-serve again with a C++17 compiler")
        return None
    try:
        library = KernelLibrary(path)
    except Exception as error:  # the loader's or XLA's: another libstdc++, another jaxlib
        _warn(f"{path.name} does not load ({error}); install mpt-serve again")
        return None
    if requested:
        library.use(requested)
    logger.info("CPU kernels: %s", library.instruction_set)
    return library


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets whose kernels this machine can run, best first; none without the library."""
    library = kernel_library()
    return () if library is None else library.instruction_sets


def kernels_available() -> bool:
    """Return whether the kernels can run; called on the host, before a program is traced."""
    return kernel_library() is not None


def kernel_call(target: str, result: Any, input_output_aliases: dict[int, int] | None = None) -> Callable[..., Any]:
    """Return `jax.ffi.ffi_call` of a kernel, which is registered once the library is loaded."""
    assert kernels_available(), f"{target} without the native kernels"
    return jax.ffi.ffi_call(target, result, input_output_aliases=input_output_aliases)


def _warn(reason: str) -> None:
    logger.warning("Without its native CPU kernels mpt_serve computes through XLA, several times slower: %s", reason)
