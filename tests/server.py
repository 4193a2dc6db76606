"""The real program, started as users start it: `serve run` of a configuration file, spoken to over HTTP."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import yaml
from compilation import as_users_do
from waiting import PATIENCE_S, wait_for

from mpt_serve.one_loop import LOOPBACK, PROXY_GUARD, new_link_key

ROOT = Path(__file__).parents[1]
_PORTS = itertools.count(os.getpid() * 61)


def free_port() -> int:
    """Return a TCP port that nobody listens on now, another one at each call.

    From a range below that of outgoing connections and above that of Ray's workers: a port that the kernel chose could
    be given to a connection before the server listens on it.
    """
    for number in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", 20_000 + number % 12_000))
            return int(probe.getsockname()[1])
    raise AssertionError


def environment(folder: Path, *, guarded: bool = True) -> dict[str, str]:
    """Return the environment of a Ray program that keeps to `folder` and to this machine.

    guarded: with our middleware in Serve's proxy, as `mpt-serve run` sets it and the files in cluster/ do.
    """
    own = {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "disabled",  # otherwise Ray writes a token into the user's home
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    return {"JAX_PLATFORMS": "cpu", **as_users_do(), **own, **(PROXY_GUARD | new_link_key() if guarded else {})}


def serve_config(
    args: Mapping[str, Any], port: int, deployments: Sequence[Mapping[str, Any]] = (), **top: Any
) -> dict[str, Any]:
    """Return a configuration of one application on a port of this machine; `top` replaces top-level keys."""
    names = {deployment["name"] for deployment in deployments}
    rest = [{"name": name} for name in ("Ingress", "Tokenizer", "Generator") if name not in names]
    application = {
        "name": "mpt",
        "route_prefix": "/",
        "import_path": "mpt_serve.app:build",
        "args": dict(args),
        "deployments": [*deployments, *rest],
    }
    base = {"proxy_location": "HeadOnly", "http_options": {"host": "127.0.0.1", "port": port}}
    base["logging_config"] = {"enable_access_log": False}  # as in serve_config.yaml
    return {**base, "applications": [application], **top}


_JOIN = """
import ray
ray.init(namespace="serve", log_to_driver=False, configure_logging=False)  # RAY_ADDRESS says where
"""

# Gives configurations to a running Serve as `serve deploy` does, which needs the dashboard for that; waits until the
# application has the given status after each.
_DEPLOY = """
import json, sys, time
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
client = _get_global_client()
for config, status in json.load(sys.stdin):
    try:
        client.deploy_apps(ServeDeploySchema.model_validate(config), _blocking=False)
    except Exception as error:
        print(type(error).__name__, error)
    deadline = time.monotonic() + 120
    while status is not None:
        application = client.get_serve_details()["applications"]["mpt"]
        if application["status"] == status or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    time.sleep(1 if status is None else 0)
    application = client.get_serve_details()["applications"]["mpt"]
    print(application["status"], application["message"], flush=True)
"""


class ServerProcess:
    """One `serve run`; a context manager that leaves no process behind.

    file: the configuration. command: `serve`, or `mpt-serve`. Ray's own files go to a new folder with a short name, as
    its sockets need. variables: of the environment, beside the usual ones.
    """

    def __init__(
        self,
        file: Path,
        port: int,
        *,
        command: str = "serve",
        guarded: bool = True,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._folder = Path(tempfile.mkdtemp(prefix="mpt-", dir="/tmp"))
        self._log = self._folder / "serve.log"
        program = str(Path(sys.executable).with_name(command))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "run", file.name],
                cwd=file.parent,
                env={**environment(self._folder, guarded=guarded), **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @classmethod
    def of(
        cls,
        config: Mapping[str, Any],
        folder: Path,
        *,
        command: str = "serve",
        guarded: bool = True,
        variables: Mapping[str, str] | None = None,
    ) -> "ServerProcess":
        """Write the configuration into `folder` and start it."""
        file = folder / "serve_config.yaml"
        file.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        return cls(file, config["http_options"]["port"], command=command, guarded=guarded, variables=variables)

    def output(self) -> str:
        """Return what the program has written so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_output(self, text: str) -> None:
        """Wait until the program has written a text. What other processes log comes here a moment later."""
        wait_for(lambda: text in self.output(), lambda: f"{text!r} is not in:\n{self.output()}")

    def log_files(self) -> list[Path]:
        """Return the log files of Serve and of Ray's processes."""
        files = self._folder.glob("ray/session_2*/logs/**/*")
        return [file for file in files if file.is_file()]

    def deploy(self, *configs: tuple[Mapping[str, Any], str | None]) -> str:
        """Deploy configurations over the running one, one after the other, and return what became of them.

        configs: each with the status to wait for (`RUNNING`, `DEPLOY_FAILED`), None for a second's wait.
        """
        return self.run_script(_DEPLOY, json.dumps(configs))

    def run_script(self, script: str, text: str = "") -> str:
        """Run a Python script that has joined the server's Ray, and return what it prints. text: its input."""
        command = [sys.executable, "-W", "ignore", "-c", _JOIN + script]
        # Ray's own search (`address="auto"`) may find another server of this machine.
        address = self._ray_address()
        own = LOOPBACK if address.startswith("127.") else {}  # or Ray would look for it at the machine's other address
        env = {**environment(self._folder), **own, "RAY_ADDRESS": address}
        done = subprocess.run(command, env=env, cwd=ROOT, input=text, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{done.stderr}\n{self.output()[-20_000:]}"
        return done.stdout

    def _ray_address(self) -> str:
        """Return the address of the server's own Ray, which is in the command line of its raylet."""
        option = b"--gcs-address="
        for _, command in self._processes():
            for argument in command.split(b"\0"):
                if argument.startswith(option):
                    return argument.removeprefix(option).decode()
        raise AssertionError(f"no Ray runs:\n{self.output()}")

    def replica_pid(self, deployment: str) -> int:
        """Return the process id of the deployment's one replica."""
        return self.replica_pids(deployment)[0]

    def replica_pids(self, deployment: str) -> list[int]:
        """Return the process ids of the deployment's replicas. Raises AssertionError if there are none."""
        title = f"ray::ServeReplica:mpt:{deployment}".encode()
        pids = [pid for pid, command in self._processes() if command.startswith(title)]
        assert pids, f"no replica of {deployment} runs"
        return pids

    def listens_on(self) -> set[str]:
        """Return the addresses that the program's processes listen on with TCP, as hexadecimal digits, with ports."""
        own = set[str]()
        for pid, _ in self._processes():
            for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
                with suppress(OSError):
                    own.add(os.readlink(descriptor))
        tables = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
        rows = map(str.split, tables.splitlines())
        return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}

    def _processes(self) -> Iterator[tuple[int, bytes]]:
        """Yield the process ids and command lines of the program's session, whose processes are all of Ray's too."""
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it ended meanwhile
                state, _, _, session, *_ = (process / "stat").read_text().rpartition(")")[2].split()
                if int(session) == self.process.pid and state != "Z":
                    yield int(process.name), (process / "cmdline").read_bytes()

    def wait_ready(self, timeout_s: float = PATIENCE_S) -> "ServerProcess":
        """Wait until /ready says 200. Raises AssertionError with the output when it does not, or the program ends."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"serve run ended with {self.process.returncode}:\n{self.output()}"
            if ready(self.url):
                return self
            time.sleep(0.3)
        raise AssertionError(f"not ready after {timeout_s} s:\n{self.output()}")

    def wait_end(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait until the program ends by itself and return its exit status."""
        return self.process.wait(timeout_s)

    def stop(self) -> None:
        """End the program and every process it started, at once: to shut down takes seconds, and has its own tests."""
        while pids := [pid for pid, _ in self._processes()]:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
        self.process.kill()  # where there is no /proc
        self.process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def stats_of(url: str) -> dict[str, Any]:
    """Return the counters of the one Generator replica. One that does not reply for a moment is not among them."""
    found: list[dict[str, Any]] = []

    def asked() -> bool:
        found[:] = httpx.get(f"{url}/stats", timeout=60).json()["replicas"]
        return len(found) == 1

    wait_for(asked, lambda: f"not one Generator: {found}")
    return found[0]


def wait_idle(url: str) -> dict[str, Any]:
    """Wait until the engine holds no request, and return its counters."""
    found: list[dict[str, Any]] = []

    def idle() -> bool:
        found[:] = [stats_of(url)]
        return bool(found[0]["running"] == found[0]["waiting"] == 0)

    wait_for(idle, lambda: f"still busy: {found}")
    return found[0]


def ready(url: str) -> bool:
    """Say whether the server at `url` takes requests."""
    try:
        return httpx.get(f"{url}/ready", timeout=30).status_code == 200
    except httpx.TransportError:
        return False
