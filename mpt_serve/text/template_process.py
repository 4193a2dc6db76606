"""A process that renders one chat template under limits.

A template is a program: nested loops, doubling strings or recursion keep any in-process sandbox busy for ever, and a
thread cannot be stopped. A process can. The child limits its own memory and arms the kernel's timer before each
render, so a template that runs too long ends there, whatever it is doing; the next render starts a new child. The child
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["TIME_LIMIT_S", "TemplateProcess", "TemplateRenderError"]

TIME_LIMIT_S = 2.0  # of processor time
MEMORY_LIMIT_BYTES = 512 * 1024 * 1024
MAX_OUTPUT_CHARS = 8 * 1024 * 1024

_CHILD = Path(__file__).with_name("template_child.py")
_ENVIRONMENT = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")


class TemplateRenderError(ValueError):
    """The template refused, failed or broke a limit."""


class TemplateProcess:
    """Renders one template with fixed variables, one conversation at a time. Threads may share it."""

    def __init__(self, source: str, variables: Mapping[str, Any]) -> None:
        self._setup = _line({"source": source, "variables": dict(variables), "limits": _limits()})
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def render(self, context: Mapping[str, Any]) -> str:
        """Return the rendered template. Raises TemplateRenderError."""
        with self._lock:
            reply = self._ask(_line(dict(context)))
        if "error" in reply:
            raise TemplateRenderError(reply["error"])
        return str(reply["text"])

    def close(self) -> None:
        """End the child, if there is one."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> dict[str, Any]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = _start()
            self._stop = weakref.finalize(self, _stop, self._child)
            self._send(self._setup)
        self._send(request)
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line.endswith(b"\n"):
            return {"error": self._end()}
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _send(self, line: bytes) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the child is gone: reading its answer says why
            self._child.stdin.write(line)
            self._child.stdin.flush()

    def _end(self) -> str:
        """End the child and return why it had ended by itself, if it had."""
        if self._child is None:
            return ""
        self._stop()
        code, self._child = self._child.returncode, None
        return f"it took longer than {TIME_LIMIT_S} s" if code == -signal.SIGPROF else f"its process ended ({code})"


def _start() -> subprocess.Popen[bytes]:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # -P: the child's own folder must not come before the standard library.
    command = [sys.executable, "-P", str(_CHILD)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Close the child's input, which ends it, and wait: at most for the time limit of a render."""
    child.communicate()


def _limits() -> dict[str, float]:
    return {"seconds": TIME_LIMIT_S, "memory": MEMORY_LIMIT_BYTES, "chars": MAX_OUTPUT_CHARS}


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
