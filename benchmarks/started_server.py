"""A server started by a benchmark: `mpt-serve run` on a port of this machine, and the CPU time of its processes."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

__all__ = ["KINDS", "Server"]

TICK = os.sysconf("SC_CLK_TCK")
KINDS = ("Generator", "Ingress", "Tokenizer", "ProxyActor", "ServeController")


class Server:
    """One `mpt-serve run`, ready when the constructor returns; ready_s: how many seconds that took.

    args: of the application. log: a file for what it prints. Raises RuntimeError if it is not ready in load_seconds.
    """

    def __init__(self, args: Mapping[str, Any], port: int, log: Path, load_seconds: float) -> None:
        self.url = f"http://127.0.0.1:{port}"
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": port},
            "logging_config": {"enable_access_log": False},  # as in serve_config.yaml
            "applications": [
                {
                    "name": "mpt",
                    "route_prefix": "/",
                    "import_path": "mpt_serve.app:build",
                    "args": dict(args),
                    "deployments": [{"name": name} for name in ("Ingress", "Tokenizer", "Generator")],
                }
            ],
        }
        self._folder = Path(tempfile.mkdtemp(prefix="mpt-", dir="/tmp"))  # Ray's sockets need a short name
        file = self._folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "mpt_serve.cli", "run", str(file)]
        environment = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **os.environ}
        environment |= {"RAY_TMPDIR": str(self._folder), "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        started = time.perf_counter()
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._wait_ready(load_seconds)
        self.ready_s = time.perf_counter() - started

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time of the server's processes so far, by kind; "other" is the rest of Ray."""
        seconds: dict[str, float] = defaultdict(float)
        for kind, process in self._processes():
            try:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            seconds[kind] += (int(fields[11]) + int(fields[12])) / TICK
        return seconds

    def memory_mib(self, kind: str) -> float:
        """Return the resident memory of the processes of a kind."""
        pages = [int((process / "statm").read_text().split()[1]) for own, process in self._processes() if own == kind]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def memory(self, kind: str) -> dict[str, float]:
        """Return the memory of the processes of a kind in MiB: their own, mapped files, and the peak of both."""
        names = {"RssAnon": "own", "RssFile": "mapped", "VmHWM": "peak"}
        total = dict.fromkeys(names.values(), 0.0)
        for own, process in self._processes():
            for line in (process / "status").read_text().splitlines() if own == kind else ():
                field, _, value = line.partition(":")
                if field in names:
                    total[names[field]] += int(value.split()[0]) / 2**10
        return total

    def close(self) -> None:
        """End the server, and remove Ray's files."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _processes(self) -> list[tuple[str, Path]]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str(self._folder).encode() not in (process / "environ").read_bytes():
                    continue
                command = (process / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # it ended meanwhile
                continue
            found.append((next((kind for kind in KINDS if kind in command), "other"), process))
        return found

    def _wait_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/ready", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        status = self._process.poll()
        self.close()
        happened = "did not become ready" if status is None else f"ended with status {status}"
        raise RuntimeError(f"the server {happened} in {seconds:g} s; {self._log} says more")
