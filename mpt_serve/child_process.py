"""A child process that replies to each line of JSON with another, for work that may have to be killed.

A thread cannot be stopped; a process can. The child limits its own memory and arms the kernel's timer before each
request, so that work that takes too long ends the child, whatever it is doing; the next request starts another. The
child inherits nothing of the parent's environment beyond what Python needs to start, and no file but its two pipes.

The script reads a setup line and replies to it, with anything, once it is ready; then it replies to each further line.
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


# Signals that the child never sends itself: they come from the out-of-memory killer or from a shutdown.
_EXTERNAL_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class ChildEndedError(RuntimeError):
    """The child ended without a reply. timed_out: it exceeded its time limit. killed: an external signal ended it."""

    def __init__(self, returncode: int) -> None:
        super().__init__(returncode)  # pickling passes these arguments to __init__
        self.timed_out = returncode == -signal.SIGPROF
        self.killed = -returncode in _EXTERNAL_SIGNALS

    def __str__(self) -> str:
        return f"its process ended ({self.args[0]})"


class ChildStartError(RuntimeError):
    """The child could not be started, or ended before it was ready."""


class ChildProcess:
    """Runs a script that replies to lines. Thread-safe."""

    def __init__(self, script: Path, setup: Any) -> None:
        self._script = script
        self._setup = _line(setup)
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Return the id of the current or last process; None before the first."""
        return None if self._child is None else self._child.pid

    def ask(self, request: Any) -> dict[str, Any]:
        """Return the child's reply, starting the child if necessary. Raises ChildEndedError, ChildStartError.

        A child that ends before its time limit is replaced once, since the request may not have been the cause. Any
        other exception, KeyboardInterrupt included, ends the child: its pending reply would be taken for the next
        request's.
        """
        line = _line(request)
        with self._lock:
            try:
                reply = self._exchange_retrying(line)
            except BaseException:
                self._kill()
                raise
        parsed: dict[str, Any] = json.loads(reply)
        return parsed

    def close(self) -> None:
        """End the child, if one is running."""
        with self._lock:
            self._end()

    def _exchange_retrying(self, line: bytes) -> bytes:
        try:
            return self._exchange(line)
        except ChildEndedError as error:
            if error.timed_out:
                raise
            return self._exchange(line)

    def _exchange(self, line: bytes) -> bytes:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._start()
        return self._send(line)

    def _start(self) -> None:
        try:
            self._child = _popen(self._script)
            self._stop = weakref.finalize(self, _close, self._child)
            self._send(self._setup)
        except (OSError, ChildEndedError) as error:
            raise ChildStartError(f"{self._script.name} cannot be started: {error}") from error

    def _send(self, line: bytes) -> bytes:
        assert self._child is not None
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # the child has ended: reading its reply finds out why
            self._child.stdin.write(line)
            self._child.stdin.flush()
        reply = self._child.stdout.readline()
        if not reply.endswith(b"\n"):
            raise ChildEndedError(self._end())
        return reply

    def _end(self) -> int:
        """End the child and return its exit status; 0 if none was running."""
        if self._child is None:
            return 0
        self._stop()
        code, self._child = self._child.returncode, None
        return code

    def _kill(self) -> None:
        child, self._child = self._child, None  # first, in case of another interruption
        if child is not None:
            child.kill()
            self._stop()


def _popen(script: Path) -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # -P: the script's folder must not come before the standard library.
    command = [sys.executable, "-P", str(script)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )


def _close(child: subprocess.Popen[bytes]) -> None:
    """Close the child's input, which ends it, and wait: at most the time limit of one request."""
    child.communicate()


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
