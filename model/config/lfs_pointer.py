"""Git LFS pointers: the small text files that a clone without Git LFS has in place of large ones."""

import re
from pathlib import Path

_MARK = b"version https://git-lfs.github.com/spec/"
_MAX_BYTES = 1024  # the format's own limit
_SIZE = re.compile(rb"^size (\d{1,20})$", re.MULTILINE)


def lfs_pointer_problem(path: Path) -> str | None:
    """Return what to do about a file that is a Git LFS pointer; None for all others. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(_MAX_BYTES)
    if not start.startswith(_MARK):
        return None
    size = _SIZE.search(start)
    meant = f"the {int(size[1]):,} bytes" if size else "those"
    return (
        f"{path} is a Git LFS pointer, a text file that stands for {meant} of the real one: run 'git lfs pull' in its"
        " folder, or download the file again"
    )
