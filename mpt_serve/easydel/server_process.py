"""The server as a child process of a notebook: `mpt-serve run`, which ends with it."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import httpx

from mpt_serve.easydel.server_config import JAXServerError

__all__ = ["ServerProcess"]

_POLL_S = 0.25
_DRAIN_S = 90.0  # longer than the Ingress lets requests run on
_LINES_KEPT = 40


class ServerProcess:
    """One `mpt-serve run` of a configuration file in a separate process group, so that Ctrl-C does not reach it.

    url: of the API. platform: JAX_PLATFORMS of its processes; None leaves it as it is here. verbose: print its output.
    """

    def __init__(self, file: Path, url: str, platform: str | None, verbose: bool) -> None:
        self.url = url
        self._verbose = verbose
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        variables = {} if platform is None else {"JAX_PLATFORMS": platform}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mpt_serve", "run", file.name],
            cwd=file.parent,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="mpt-serve-output", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                self._lines.append(text)
                if self._verbose:
                    print(text)

    @property
    def ready(self) -> bool:
        """Whether the server takes requests. Raises JAXServerError with its last output when it has ended."""
        if self._process.poll() is not None:
            self._reader.join(5)
            output = "\n".join(self._lines)
            raise JAXServerError(f"the server has ended with status {self._process.returncode}:\n{output}")
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self, timeout_s: float | None) -> None:
        """Wait until the server takes requests. Raises JAXServerError when it ends first, or the time does."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.ready:
            if deadline is not None and time.monotonic() > deadline:
                raise JAXServerError(f"the server is not ready after {timeout_s} s; it continues to start")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Let the requests that run finish, then end the server with all its processes."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_DRAIN_S)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._reader.join(5)
