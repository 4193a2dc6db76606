"""The server of `chaos.py`: its processes, what they hold, and deploys over them."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from mpt_serve.one_loop import LOOPBACK

__all__ = ["ChaosServer"]

HERE = Path(__file__).resolve().parent
KINDS = ("Generator", "Ingress", "Tokenizer", "ProxyActor", "ServeController")

# Deploys a configuration as `serve deploy` does, which needs the dashboard for that, and waits for the outcome.
_DEPLOY = """
import json, sys, time, ray
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
ray.init(namespace="serve", log_to_driver=False, configure_logging=False)  # RAY_ADDRESS says where
client = _get_global_client()
try:
    client.deploy_apps(ServeDeploySchema.model_validate(json.load(sys.stdin)), _blocking=False)
except Exception as error:
    print(type(error).__name__, end=" ")
deadline = time.monotonic() + 150
status = ""
time.sleep(1)
while status not in ("RUNNING", "DEPLOY_FAILED") and time.monotonic() < deadline:
    time.sleep(0.5)
    status = str(client.get_serve_details()["applications"]["mpt"]["status"]).rpartition(".")[2]
print(status)
"""


class ChaosServer:
    """One `mpt-serve run` with its own Ray, on a port of this machine."""

    def __init__(self, port: int, model: str, generators: int, folder: Path) -> None:
        self.port = port
        self._model = model
        self._generators = generators
        self._ray = Path(tempfile.mkdtemp(prefix="mpt-", dir="/tmp"))  # Ray's sockets need a short name
        file = folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self.config()))
        own = {"RAY_TMPDIR": str(self._ray), "PYTHONPATH": str(HERE.parent)}
        self._environment = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", **os.environ, **own}
        self.log = folder / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mpt_serve.cli", "run", str(file)],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def config(self, import_path: str = "mpt_serve.app:build", **args: Any) -> dict[str, Any]:
        """Return the configuration of the server, with other args if any are given."""
        engine = {"max_num_seqs": 16, "num_blocks": 1024, "threads": 1}
        application = {
            "name": "mpt",
            "route_prefix": "/",
            "import_path": import_path,
            "args": {"model": self._model, "served_model_name": "model", "engine": engine, **args},
            "deployments": [
                {"name": "Ingress"},
                {"name": "Tokenizer"},
                {"name": "Generator", "num_replicas": self._generators, "ray_actor_options": {"num_cpus": 0}},
            ],
        }
        return {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port},
            "logging_config": {"enable_access_log": False},
            "applications": [application],
        }

    async def deploy(self, config: dict[str, Any]) -> str:
        """Deploy a configuration over the running one, and return the application's status when that is known."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-c", _DEPLOY),
            env={**self._environment, **LOOPBACK, "RAY_ADDRESS": self._address()},  # where `mpt-serve run` listens
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        output, _ = await process.communicate(json.dumps(config).encode())
        return output.decode().strip() or "the deploy itself failed"

    def pids(self, kind: str) -> list[int]:
        """Return the processes of a kind: the replicas of a deployment, ProxyActor, ServeController; or "other"."""
        return [pid for pid, own in self._processes() if own == kind]

    def usage(self) -> dict[str, dict[str, float]]:
        """Return what the processes of each kind hold together: processes, descriptors, threads, MiB of memory."""
        kinds: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for pid, kind in self._processes():
            if kind == "other":
                continue
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:  # it ended meanwhile
                continue
            own = kinds[kind]
            own["processes"] += 1
            own["descriptors"] += descriptors
            own["threads"] += _field(status, "Threads:")
            own["mib"] += _field(rollup, "Pss_Anon:") / 1024
        return {kind: dict(values) for kind, values in sorted(kinds.items())}

    def close(self) -> None:
        """End the server."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        for pid, _ in self._processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._ray, ignore_errors=True)

    def _address(self) -> str:
        """Return the address of the server's Ray: its own search may find another one of this machine."""
        option = b"--gcs-address="
        for pid, _ in self._processes():
            for argument in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                if argument.startswith(option):
                    return argument.removeprefix(option).decode()
        raise RuntimeError("no Ray runs")

    def _processes(self) -> list[tuple[int, str]]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if str(self._ray).encode() in (process / "environ").read_bytes():
                    command = (process / "cmdline").read_bytes().decode(errors="replace")
                    kind = next((kind for kind in KINDS if command.startswith("ray::") and kind in command), "other")
                    found.append((int(process.name), kind))
            except OSError:  # it ended meanwhile
                continue
        return found


def _field(text: str, name: str) -> float:
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name)))
