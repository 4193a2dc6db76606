"""Writes files atomically: readers find a complete file, or none."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path, shared: bool = False) -> Iterator[Path]:
    """Yield a name beside `path` to write to, which replaces `path` at the end; on an error nothing changes.

    shared: other processes may write the same file at this moment, so the name is unique; and all users may read it.
    """
    unique = f".{secrets.token_hex(8)}" if shared else ""
    temporary = path.with_name(f".{path.name}{unique}.partial")
    try:
        yield temporary
        if shared:
            temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
