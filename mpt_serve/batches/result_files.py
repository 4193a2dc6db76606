"""The results of a batch on disk: appended one by one, so that whatever ends the process loses none."""

import contextlib
import fcntl
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from model.checkpoint.atomic_write import sync
from mpt_serve.batches.results import RECORD_START, Result
from mpt_serve.errors import MptServeError

__all__ = ["ResultFiles", "ResultFilesError"]

_READ = 1024 * 1024


class ResultFilesError(MptServeError):
    """Files that results cannot be appended to: others' files, or those of a run that goes on."""


@dataclass
class ResultFiles:
    """The outputs and errors of one batch, locked while the context is entered, so that two runs cannot mix.

    Entering reads what earlier runs have left: a line without its end, which was being written when one was killed, is
    removed. The lock ends with the process, however that ends.

    finished: the custom_ids that have a result. bad_lines: the numbers of lines that were reported as no requests.
    completed, failed: results in the outputs, and in the errors.
    Entering raises ResultFilesError and OSError.
    """

    outputs: Path
    errors: Path
    finished: set[str] = field(default_factory=set)
    bad_lines: set[int] = field(default_factory=set)
    completed: int = 0
    failed: int = 0
    _descriptors: tuple[int, int] = (-1, -1)

    def __enter__(self) -> "ResultFiles":
        opened = contextlib.ExitStack()
        with opened:
            outputs, errors = (self._open(file, opened) for file in (self.outputs, self.errors))
            self.completed = self._read(self.outputs, outputs)
            self.failed = self._read(self.errors, errors)
            for folder in {self.outputs.parent, self.errors.parent}:
                sync(folder)
            self._descriptors = (outputs, errors)
            opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors:
            if descriptor >= 0:  # else it was not entered
                os.close(descriptor)
        self._descriptors = (-1, -1)

    def append(self, result: Result) -> None:
        """Add a result; when this returns, it is on disk. Raises OSError."""
        line = result.as_line()
        descriptor = self._descriptors[not result.succeeded]
        size = os.fstat(descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fdatasync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):  # else the next run removes what was written of the line
                os.ftruncate(descriptor, size)
            raise
        self._count(result.custom_id, result.line)
        self.completed += result.succeeded
        self.failed += not result.succeeded

    def _open(self, file: Path, opened: contextlib.ExitStack) -> int:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        opened.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResultFilesError(f"{file} is being written by another run") from None
        return descriptor

    def _read(self, file: Path, descriptor: int) -> int:
        """Take note of a file's results and return how many there are. Removes what is left of an incomplete one."""
        count = end = 0
        rest = b""
        os.lseek(descriptor, 0, os.SEEK_SET)
        while part := os.read(descriptor, _READ):
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                self._note(file, line)
                count += 1
                end += len(line) + 1
        if rest:
            begun = rest.rstrip(b"\0")  # which a machine without power may leave
            if begun[: len(RECORD_START)] != RECORD_START[: len(begun)]:
                raise ResultFilesError(f"{file} holds something else than results of a batch; name another file")
            os.ftruncate(descriptor, end)
        return count

    def _note(self, file: Path, line: bytes) -> None:
        try:
            record = json.loads(line)
            custom_id, error = record["custom_id"], record["error"] or {}
            self._count(custom_id, error.get("line"))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ResultFilesError(f"{file} holds something else than results of a batch; name another file") from None

    def _count(self, custom_id: str | None, line: int | None) -> None:
        if line is not None:
            self.bad_lines.add(line)
        elif custom_id is not None:
            self.finished.add(custom_id)
