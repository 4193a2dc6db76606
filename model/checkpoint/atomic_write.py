"""Writes files atomically: readers find a complete file, or none."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, mode: int | None = None, on_disk: bool = False) -> Iterator[Path]:
    """Yield a name beside `path` to write to, which replaces `path` at the end; on an error nothing changes.

    mode: the permissions of the file, which only its owner can read until it is complete. The name is then unique, as
        other processes may write the same file at this moment; without, it is that of an earlier call that was
        interrupted, whose file is overwritten.
    on_disk: at the end the file and its name are on disk.
    """
    unique = "" if mode is None else f".{secrets.token_hex(8)}"
    temporary = path.with_name(f".{path.name}{unique}.partial")
    try:
        if mode is not None:
            temporary.touch(0o600, exist_ok=False)
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        if on_disk:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if on_disk:
        sync(path.parent)


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
