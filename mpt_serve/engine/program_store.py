"""Compiled programs on disk, so that an engine of the same model, shapes and code starts without tracing or compiling.

JAX's own cache is keyed by a program's text, and making that takes longer than loading the result: a start with 46
programs of 24 layers traces for several seconds. Here one file holds all programs of an engine, and its name is a
digest of everything that they are made from, the source of this package included. What is stored is native code, so
only files of this user's or root's are loaded. JAX's cache, which is in the same folder, makes no such difference.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import pickle
import platform
import stat
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

import model
from model.checkpoint.atomic_write import atomic_write
from model.kernels.cpu.library import FILE_NAME

logger = logging.getLogger(__name__)

_SUFFIX = ".programs"
_ABANDONED_S = 30 * 24 * 3600.0  # after which a file counts as unused
_DIGEST_BYTES = 32
_AFRESH = threading.Lock()
# Options of JAX's that say where and whether programs are kept.
_UNRELATED = ("jax_compilation_cache", "jax_persistent_cache", "jax_enable_compilation_cache")

Name = TypeVar("Name")


class ProgramStore(Generic[Name]):
    """The file of one engine's programs.

    identity: everything that the programs depend on, beside code, versions and processor; its parts by their `repr`.
    """

    def __init__(self, folder: Path, identity: Sequence[object]) -> None:
        parts = [repr(part) for part in (*_surroundings(), *identity)]
        self._path = folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}{_SUFFIX}"

    def load(self, names: Sequence[Name]) -> dict[Name, jax.stages.Compiled] | None:
        """Return the programs of these names; None where they are not stored.

        A damaged file logs a warning, and so does one that other users than this one and root may have written.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                raw = file.read()
        except OSError:
            return None
        try:
            if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise ValueError("another user may have written it")
            if hashlib.sha256(raw[_DIGEST_BYTES:]).digest() != raw[:_DIGEST_BYTES]:
                raise ValueError("its digest differs")
            stored = pickle.loads(raw[_DIGEST_BYTES:])
            with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="load-program") as executor:
                loaded = executor.map(lambda name: serialize_executable.deserialize_and_load(*stored[name]), names)
                programs = dict(zip(names, loaded, strict=True))
        except Exception as error:  # whatever pickle and XLA raise for what they cannot read
            logger.warning("%s cannot be read, its programs are compiled again: %s", self._path, error)
            return None
        with contextlib.suppress(OSError):  # a read-only folder
            os.utime(self._path)  # marks it as used
        return programs

    def save(self, programs: Mapping[Name, jax.stages.Compiled]) -> None:
        """Store programs, and remove files that nobody has used for a month; logs a warning where that fails."""
        try:
            stored = {name: serialize_executable.serialize(program) for name, program in programs.items()}
            raw = pickle.dumps(stored)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self._path, mode=0o644) as temporary:
                temporary.write_bytes(hashlib.sha256(raw).digest() + raw)
            _remove_unused(self._path.parent)
        except Exception as error:  # also XLA's, where a program cannot be serialised
            logger.warning("compiled programs cannot be stored in %s: %s", self._path.parent, error)


def _remove_unused(folder: Path) -> None:
    for path in folder.glob(f"*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()


def _surroundings() -> list[object]:
    """Return what programs depend on beside the model and its shapes."""
    options = {name: value for name, value in jax.config.values.items() if not name.startswith(_UNRELATED)}
    device = jax.local_devices(backend="cpu")[0]
    return [
        _source_digest(),
        importlib.metadata.version("jax"),
        importlib.metadata.version("jaxlib"),
        device.client.platform_version,
        platform.machine(),
        _processor_features(),
        os.cpu_count(),
        os.environ.get("XLA_FLAGS", ""),
        sorted(options.items(), key=lambda item: item[0]),
    ]


@functools.cache
def _source_digest() -> str:
    """Return a digest of the code that programs are made of: the model, the engine, and the native kernels."""
    digest = hashlib.sha256()
    for folder in (*map(Path, model.__path__), Path(__file__).parent):
        for path in sorted((*folder.rglob("*.py"), *folder.rglob(FILE_NAME))):
            digest.update(str(path.relative_to(folder)).encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _processor_features() -> str:
    """Return the features that compilers ask for, where the system lists them, else the processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


@contextlib.contextmanager
def compiled_afresh() -> Iterator[None]:
    """Have JAX compile what it may have in its persistent cache: what comes from there cannot be serialised again.

    It is for the whole process; threads that compile for a store take turns.
    """
    with _AFRESH:
        enabled = jax.config.values["jax_enable_compilation_cache"]
        _use_cache(False)
        try:
            yield
        finally:
            _use_cache(enabled)


def _use_cache(enabled: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", enabled)
    compilation_cache.reset_cache()  # which remembers whether it is enabled


def program_store(identity: Sequence[Any]) -> ProgramStore[Any] | None:
    """Return the store in the folder of JAX's persistent compilation cache; None where that is not in use."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    return None if not folder else ProgramStore(Path(folder) / "programs", identity)
