"""An audit log: who sent which request when, and what became of it, never what it said.

Each line is a JSON object whose `previous` is the SHA-256 of the line before, so that a line that is changed, removed
or inserted later shows. The first line's is of a line without characters.
"""

import hashlib
import json
import logging
import queue
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpt_serve.errors import MptServeError

__all__ = ["AuditError", "AuditLog", "check_audit_file"]

logger = logging.getLogger(__name__)

_MAX_PENDING = 65_536  # records that wait for a slow disk


class AuditError(MptServeError, ValueError):
    """A file that is no unbroken audit log. The message names the first line that does not follow its predecessor."""


class AuditLog:
    """Appends records to a new file, on its own thread: no request waits for the disk.

    Records that cannot be written are counted, and the next one that can be says how many are `lost`.
    Raises OSError if the file cannot be made.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file.open("xb", buffering=0)
        self._previous = _digest(b"")
        self._lost = 0
        self._records: queue.Queue[Mapping[str, Any] | None] = queue.Queue(_MAX_PENDING)
        self._thread = threading.Thread(target=self._run, name="audit log", daemon=True)
        self._thread.start()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record soon. Any thread."""
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._lost += 1

    def close(self) -> None:
        """Write what waits, and end."""
        self._records.put(None)
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            lost = self._lost
            extra = {"lost": lost} if lost else {}
            line = json.dumps({**record, **extra, "previous": self._previous}, separators=(",", ":")).encode()
            try:
                self._file.write(line + b"\n")
            except OSError as error:
                self._lost += 1
                if not lost:
                    logger.error("The audit log cannot be written: %s", error)
                continue
            self._lost -= lost
            self._previous = _digest(line)


def check_audit_file(file: Path) -> int:
    """Return how many records a file has. Raises AuditError and OSError.

    What was cut off at its end cannot be seen here.
    """
    previous, number = _digest(b""), 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            record = line.removesuffix(b"\n")
            try:
                stated = json.loads(record)["previous"]
            except (ValueError, TypeError, KeyError):
                raise AuditError(f"{file}, line {number}: not a record of an audit log") from None
            if stated != previous:
                raise AuditError(f"{file}, line {number}: does not follow the line before it")
            previous = _digest(record)
    return number


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
