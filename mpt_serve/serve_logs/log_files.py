"""The files of Serve's logs, read on from where they ended."""

import os
from collections.abc import Iterator
from pathlib import Path

from mpt_serve.serve_logs.log_records import LogRecord, parse_records

__all__ = ["LogFiles"]


class LogFiles:
    """The log files in a folder, read on from where the last reading ended. Raises FileNotFoundError."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder '{folder}'")
        self._folder = folder
        self._ends: dict[int, int] = {}  # by inode, as files are renamed when they are full

    def read(self) -> list[LogRecord]:
        """Return the records that were written since the last call, in the order of time."""
        records = [record for file in sorted(self._folder.glob("*.log*")) for record in parse_records(self._new(file))]
        return sorted(records, key=lambda record: record.time)

    def _new(self, path: Path) -> Iterator[str]:
        """Yield the complete lines that are new in a file."""
        try:
            with path.open("rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                file.seek(self._ends.get(inode, 0))
                data = file.read()
        except OSError:  # it was renamed meanwhile
            return
        complete, newline, _ = data.rpartition(b"\n")
        self._ends[inode] = self._ends.get(inode, 0) + len(complete) + len(newline)
        yield from complete.decode("utf-8", "replace").split("\n") if complete else ()
