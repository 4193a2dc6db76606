"""Removing keys from a key file. The lines of others, comments too, stay as they are."""

import os
from collections.abc import Iterable
from pathlib import Path

from model.checkpoint.atomic_write import atomic_write
from mpt_serve.access.api_key import ApiKey, KeyLineError, parse_key_lines

__all__ = ["read_keys", "remove_keys"]


def read_keys(file: Path) -> list[ApiKey]:
    """Return the keys that a file states. Raises KeyLineError and OSError."""
    return list(parse_key_lines(_text(file), str(file)))


def remove_keys(file: Path, names: Iterable[str]) -> list[ApiKey]:
    """Remove the lines of keys, and return what they stated.

    names: ids of keys, or names of owners, all of whose keys go.
    The file is replaced at once: a server that reads it meanwhile sees the old one or the new one.
    Raises KeyLineError for names that no line has, which leaves the file as it is, and OSError.
    """
    wanted, removed, kept = set(names), [], []
    for number, line in enumerate(_text(file).splitlines(keepends=True), 1):
        # One line alone has its own number; the blank ones before it state nothing.
        key = next(parse_key_lines("\n" * (number - 1) + line, str(file)), None)
        if key is not None and wanted & {key.id, key.name}:
            removed.append(key)
        else:
            kept.append(line)
    missing = wanted - {name for key in removed for name in (key.id, key.name)}
    if missing:
        raise KeyLineError(f"{file}: no key has the id or the name {', '.join(sorted(missing))}")
    _replace(file, "".join(kept))
    return removed


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise KeyLineError(f"{file} is not UTF-8") from error


def _replace(file: Path, text: str) -> None:
    """Write a new file in the place of one, with its permissions and owner."""
    target = file.resolve()  # a link stays a link
    status = target.stat()
    with atomic_write(target, mode=status.st_mode & 0o777, on_disk=True) as new:
        new.write_bytes(text.encode())
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(new, status.st_uid, status.st_gid)
