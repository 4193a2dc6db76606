"""`serve deploy` to a cluster of several nodes on this machine: placement, growth with the load, and the way back.

The nodes' accelerators are names only: this proves scheduling and recovery, nothing about devices.
"""

import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from ray.cluster_utils import Cluster
from server import ROOT, environment, free_port, ready, serve_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::ResourceWarning")]

WAIT_S = 180.0


class Deployed:
    """A cluster with a head and no accelerators yet."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._dashboard_port = free_port()
        self._temp = Path(tempfile.mkdtemp(prefix="mpt-", dir="/tmp"))
        self._patch = pytest.MonkeyPatch()
        self._patch.delenv("XLA_FLAGS")  # see tests/compilation.py
        for name, value in environment(self._temp).items():
            self._patch.setenv(name, value)
        self._patch.setenv("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
        self._patch.setenv("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")
        head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": self._dashboard_port}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)

    def deploy(self, model: Path, folder: Path) -> None:
        """Hand the configuration to the cluster as a user does."""
        engine = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "num_blocks": 128, "pre_compile": False}
        generator = {
            "name": "Generator",
            "ray_actor_options": {"num_cpus": 0, "resources": {"accelerator": 1}},
            "autoscaling_config": {
                "min_replicas": 1,
                "max_replicas": 2,
                "target_ongoing_requests": 2,
                "upscale_delay_s": 1,
                "downscale_delay_s": 4,
                "look_back_period_s": 2,
            },
        }
        engine["compilation_cache_dir"] = str(folder / "compiled")  # type: ignore[assignment]
        config = serve_config({"model": str(model), "engine": engine}, self.port, [generator])
        file = folder / "serve_config.yaml"
        file.write_text(yaml.safe_dump(config))
        serve = str(Path(sys.executable).with_name("serve"))
        address = f"http://127.0.0.1:{self._dashboard_port}"
        subprocess.run([serve, "deploy", "-a", address, str(file)], check=True, cwd=ROOT, timeout=120)

    def generator_nodes(self) -> list[str]:
        """Return the node of each Generator replica that takes requests."""
        url = f"http://127.0.0.1:{self._dashboard_port}/api/serve/applications/"
        details = httpx.get(url, timeout=30).raise_for_status().json()
        replicas = details["applications"]["mpt"]["deployments"]["Generator"]["replicas"]
        return [replica["node_id"] for replica in replicas if replica["state"] == "RUNNING"]

    def ingress_log(self) -> str:
        """Return what the Ingress replica has logged."""
        return "".join(p.read_text() for p in self._temp.glob("ray/session_*/logs/serve/replica_mpt_Ingress_*.log"))

    def close(self) -> None:
        """End every process of the cluster."""
        self.cluster.shutdown()
        self._patch.undo()
        shutil.rmtree(self._temp, ignore_errors=True)


@pytest.fixture(scope="module")
def deployed(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    deployed = Deployed()
    try:
        deployed.deploy(tiny_checkpoint, tmp_path_factory.mktemp("deployed"))
        yield deployed
    finally:
        deployed.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S:g} s in vain for {what}"
        time.sleep(0.5)


def reason(url: str) -> str:
    """Return why the server takes no requests; empty before it says so."""
    try:
        answer = httpx.get(f"{url}/ready", timeout=5)
        return answer.json()["error"]["message"] if answer.status_code == 503 else ""
    except (httpx.TransportError, ValueError, KeyError):
        return ""


async def keep_asking(http: httpx.AsyncClient, until: asyncio.Event, answers: list[int]) -> None:
    """Send one request after the other and record the tokens of each; anything but a completion raises."""
    body = {"prompt": "Hello", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    while not until.is_set():
        answer = await http.post("/v1/completions", json=body)
        answer.raise_for_status()
        answers.append(answer.json()["usage"]["completion_tokens"])


def test_without_the_resource_ready_and_log_say_what_is_missing(deployed: Deployed) -> None:
    wait_for(lambda: "No node" in reason(deployed.url), "the reason")
    message = reason(deployed.url)
    assert "needs {accelerator: 1} on one node" in message
    assert "the nodes offer {accelerator: 0}" in message
    assert "ray_actor_options" in message
    assert message in deployed.ingress_log()
    answer = httpx.post(f"{deployed.url}/v1/completions", json={"prompt": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "loading")
    assert int(answer.headers["retry-after"]) >= 1


def test_replicas_follow_the_load_over_the_nodes_that_fit_and_no_request_fails(deployed: Deployed) -> None:
    fitting = {deployed.cluster.add_node(num_cpus=0, resources={"accelerator": 1}).node_id for _ in range(2)}
    wait_for(lambda: ready(deployed.url), "the first replica")
    (first,) = deployed.generator_nodes()
    assert first in fitting

    async def load(seconds_after: float) -> list[int]:
        answers: list[int] = []
        busy, done = asyncio.Event(), asyncio.Event()
        async with httpx.AsyncClient(base_url=deployed.url, timeout=300) as http, asyncio.TaskGroup() as clients:
            for number in range(16):  # one of them stays on while the replicas go back to one
                clients.create_task(keep_asking(http, done if number == 0 else busy, answers))
            await asyncio.to_thread(wait_for, lambda: len(deployed.generator_nodes()) == 2, "a second replica")
            assert set(await asyncio.to_thread(deployed.generator_nodes)) == fitting
            await asyncio.sleep(seconds_after)
            busy.set()
            await asyncio.to_thread(wait_for, lambda: len(deployed.generator_nodes()) == 1, "the way back to one")
            done.set()
        return answers

    answers = asyncio.run(load(seconds_after=5))
    assert set(answers) == {60}
    assert len(answers) > 16
