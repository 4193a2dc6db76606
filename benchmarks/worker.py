"""An engine's script as a long-lived process that loads once and is stopped between its runs."""

import contextlib
import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class WorkerError(RuntimeError):
    """The process ended, or sent no result in time; it no longer runs."""


class Worker:
    """Starts `command` with --worker and waits until it has loaded; see harness.py for the dialogue.

    Outside of `ask` its whole process group is stopped by signal: neither spinning threads nor background work of one
    engine take cores or memory bandwidth from the others. Raises WorkerError where it does not get ready in
    `load_seconds`. What it writes to its standard error goes to `log`.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, load_seconds: float) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [*map(str, command), "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                start_new_session=True,
            )
        self._rest = b""
        try:
            self.ready = self._answer(load_seconds)
        except BaseException:
            self.close()
            raise

    def ask(self, shape: object, repetition: int, seconds: float) -> dict[str, Any]:
        """Run one repetition of a shape while nothing else runs."""
        task = json.dumps({"shape": str(shape), "repetition": repetition}) + "\n"
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the missing result will show
            self._process.stdin.write(task.encode())
        return self._answer(seconds)

    def close(self) -> None:
        """End the process and its children. Idempotent."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            pipe.close()

    def _answer(self, seconds: float) -> dict[str, Any]:
        """Read one line, then stop the process."""
        output = self._process.stdout
        assert output is not None
        while b"\n" not in self._rest:
            readable, _, _ = select.select([output], [], [], seconds)
            chunk = os.read(output.fileno(), 1 << 16) if readable else b""
            if not chunk:
                if readable:  # its output has ended, and so will it
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(timeout=10)
                self.close()
                how = f"ended with status {self._process.returncode}" if readable else f"sent no result in {seconds} s"
                raise WorkerError(f"it {how}; {self._log} has what it wrote")
            self._rest += chunk
        self._signal(signal.SIGSTOP)
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
