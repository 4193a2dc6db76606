"""Files that others find whole, or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file"]


@contextmanager
def whole_file(path: Path, shared: bool = False) -> Iterator[Path]:
    """A name beside `path` to write to, moved to `path` at the end, so that a file of its name is always whole.

    shared: others may write the same file at this moment, so the name is nobody else's; and all users may read it.
    """
    own = f".{secrets.token_hex(8)}" if shared else ""
    temporary = path.with_name(f".{path.name}{own}.partial")
    try:
        yield temporary
        if shared:
            temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
