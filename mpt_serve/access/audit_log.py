"""An audit log: who sent which request when, and what became of it, never what it said.

Each line is a JSON object whose `previous` is the SHA-256 of the line before, so that a line that is changed, removed
or inserted later shows. The first line's is of a line without characters.
"""

import hashlib
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpt_serve.errors import MptServeError

__all__ = ["AuditError", "AuditLog", "AuditedFile", "check_audit_file"]

logger = logging.getLogger(__name__)

_MAX_PENDING = 65_536  # records that wait for a slow disk


class AuditError(MptServeError, ValueError):
    """A file that is no unbroken audit log. The message names the first line that does not follow its predecessor."""


class AuditLog:
    """Appends records to a new file, on its own thread: no request waits for the disk.

    Records that cannot be written are counted, and the next one that can be says how many are `lost`. The file's owner
    and group may read it. Raises OSError if the file cannot be made.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._size = 0
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
        os.close(self._file)

    def _run(self) -> None:
        while (record := self._records.get()) is not None:
            lost = self._lost
            extra = {"lost": lost} if lost else {}
            line = json.dumps({**record, **extra, "previous": self._previous}, separators=(",", ":")).encode()
            try:
                self._append(line + b"\n")
            except OSError as error:
                self._lost += 1
                if not lost:
                    logger.error("The audit log cannot be written: %s", error)
                continue
            self._lost -= lost
            self._previous = _digest(line)

    def _append(self, line: bytes) -> None:
        """Write a whole line or nothing. Raises OSError."""
        written = os.pwrite(self._file, line, self._size)
        if written < len(line):  # the disk is full: the next record would be part of this line
            os.ftruncate(self._file, self._size)
            raise OSError(f"{written} of {len(line)} bytes were written")
        self._size += written


@dataclass(frozen=True)
class AuditedFile:
    """An unbroken log. digest: the SHA-256 of its last line, in hexadecimal digits, as the next `previous` has it."""

    records: int
    digest: str


def check_audit_file(file: Path) -> AuditedFile:
    """Return what an unbroken file has. Raises AuditError and OSError.

    What was cut off at its end, or changed in its last line, shows by the digest alone.
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
    return AuditedFile(number, previous)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
