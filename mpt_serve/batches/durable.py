"""Files that are complete whenever a process or a machine ends: they are on disk before they have their names."""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["read_json", "sync_folder", "write_bytes", "write_json"]


def write_bytes(path: Path, content: bytes) -> None:
    """Write or replace a file. When this returns, it is on disk. Raises OSError, which leaves what was there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write or replace a file with a JSON object; see `write_bytes`."""
    write_bytes(path, json.dumps(content).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file that `write_json` wrote, None if there is no file. Raises OSError."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content


def sync_folder(folder: Path) -> None:
    """Have the names of new files on disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
