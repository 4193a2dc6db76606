"""A process that answers one line of JSON with another, for work that must be possible to end.

A thread cannot be stopped; a process can. The child limits its own memory and arms the kernel's timer before each piece
of work, so that what takes too long ends there, whatever it is doing; the next request starts a new child. The child
sees none of the parent's environment beyond what Python needs to start, and holds no file but its two pipes.
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

__all__ = ["ChildEndedError", "ChildProcess"]

_ENVIRONMENT = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")


class ChildEndedError(RuntimeError):
    """The child ended instead of answering. timed_out: its time was over."""

    def __init__(self, returncode: int) -> None:
        super().__init__(f"its process ended ({returncode})")
        self.timed_out = returncode == -signal.SIGPROF


class ChildProcess:
    """Runs a script that reads a setup line, then answers each further line. Threads may share one."""

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
        """Return the answer, starting the child where there is none. Raises ChildEndedError.

        Any other exception on the way, KeyboardInterrupt too, ends the child: the answer that it still owes would be
        taken for the next request's.
        """
        line = _line(request)
        with self._lock:
            try:
                answer = self._exchange(line)
            except BaseException:
                self._kill()
                raise
        reply: dict[str, Any] = json.loads(answer)
        return reply

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def _exchange(self, line: bytes) -> bytes:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = _start(self._script)
            self._stop = weakref.finalize(self, _stop, self._child)
            self._send(self._setup)
        self._send(line)
        assert self._child.stdout is not None
        answer = self._child.stdout.readline()
        if not answer.endswith(b"\n"):
            raise ChildEndedError(self._end())
        return answer

    def _send(self, line: bytes) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the child is gone: reading its answer says why
            self._child.stdin.write(line)
            self._child.stdin.flush()

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
