"""A process that answers one line of JSON with another, for work that must be possible to end.

A thread cannot be stopped; a process can. The child limits its own memory and arms the kernel's timer before each piece
of work, so that what takes too long ends there, whatever it is doing; the next request starts a new child. The child
sees none of the parent's environment beyond what Python needs to start, and holds no file but its two pipes.

The script reads a setup line and answers it, with anything, once it is ready; then it answers each further line.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

__all__ = ["ChildEndedError", "ChildProcess", "ChildStartError"]

_ENVIRONMENT = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")


# What nothing in the child sends: the machine that runs out of memory, or whoever ends the service, does.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class ChildEndedError(RuntimeError):
    """The child ended instead of answering. timed_out: its time was over. killed: something outside ended it."""

    def __init__(self, returncode: int) -> None:
        super().__init__(returncode)  # all that a copy in another process is made of
        self.timed_out = returncode == -signal.SIGPROF
        self.killed = -returncode in _FROM_OUTSIDE

    def __str__(self) -> str:
        return f"its process ended ({self.args[0]})"


class ChildStartError(RuntimeError):
    """The child could not be started, or ended before it was ready for any request."""


class ChildProcess:
    """Runs a script that answers lines. Threads may share one."""

    def __init__(self, script: Path, setup: Any) -> None:
        self._script = script
        self._setup = _line(setup)
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs, or ran last; None where there is none."""
        return None if self._child is None else self._child.pid

    def ask(self, request: Any) -> dict[str, Any]:
        """Return the answer, starting the child where there is none. Raises ChildEndedError, ChildStartError.

        A child that ends before its time is replaced once: it may have been no fault of the request's. Any other
        exception on the way, KeyboardInterrupt too, ends the child: the answer that it still owes would be taken for
        the next request's.
        """
        line = _line(request)
        with self._lock:
            try:
                answer = self._answer(line)
            except BaseException:
                self._kill()
                raise
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def _answer(self, line: bytes) -> bytes:
        try:
            return self._exchange(line)
        except ChildEndedError as error:
            if error.timed_out:
                raise
            return self._exchange(line)

    def _exchange(self, line: bytes) -> bytes:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._begin()
        return self._say(line)

    def _begin(self) -> None:
        try:
            self._child = _start(self._script)
            self._stop = weakref.finalize(self, _stop, self._child)
            self._say(self._setup)
        except (OSError, ChildEndedError) as error:
            raise ChildStartError(f"{self._script.name} cannot be started: {error}") from error

    def _say(self, line: bytes) -> bytes:
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the child is gone: reading its answer says why
            self._child.stdin.write(line)
            self._child.stdin.flush()
        answer = self._child.stdout.readline()
        if not answer.endswith(b"\n"):
            raise ChildEndedError(self._end())
        return answer

    def _end(self) -> int:
        """End the child and return its exit status; 0 where there was none."""
        if self._child is None:
            return 0
        self._stop()
        code, self._child = self._child.returncode, None
        return code

    def _kill(self) -> None:
        child, self._child = self._child, None  # first: another interruption must find it forgotten
        if child is not None:
            child.kill()
            self._stop()


def _start(script: Path) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # -P: the child's own folder must not come before the standard library.
    command = [sys.executable, "-P", str(script)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Close the child's input, which ends it, and wait: at most for the time limit of one piece of work."""
    child.communicate()


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
