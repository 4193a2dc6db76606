"""Deploys over a running application: bad ones harm nothing, good ones lose no request."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file, save_file
from server import ServerProcess, free_port, serve_config
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ENGINE = {"max_num_seqs": 16, "max_num_batched_tokens": 64, "num_blocks": 256, "pre_compile": False}
RUNNING, FAILED = "RUNNING", "DEPLOY_FAILED"


@contextmanager
def load(url: str, clients: int = 4) -> Iterator[Counter[str]]:
    """Send completions from some clients while entered, and count what comes back."""
    stop = threading.Event()
    counts: Counter[str] = Counter()

    def client() -> None:
        body = {"prompt": "Hello", "max_tokens": 20, "ignore_eos": True}
        with httpx.Client(base_url=url, timeout=200) as http:
            while not stop.wait(0.02):
                try:
                    response = http.post("/v1/completions", json=body)
                    good = response.status_code == 200 and response.json()["usage"]["completion_tokens"] == 20
                    counts["complete" if good else response.text] += 1
                except httpx.HTTPError as error:
                    counts[repr(error)] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class Deploys:
    """Configurations of one application, as changes of the first."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.port = free_port()

    def config(self, generator: dict[str, Any] | None = None, **args: Any) -> dict[str, Any]:
        """Return the first configuration with other args."""
        args = {"model": str(self.model), "served_model_name": "tiny", "engine": ENGINE, **args}
        return serve_config(args, self.port, [{"name": "Generator", **(generator or {})}])

    def application(self, **changes: Any) -> dict[str, Any]:
        """Return the first configuration with other keys of Serve's."""
        config = self.config()
        config["applications"][0].update(changes)
        return config


def beyond_float16(folder: Path) -> Path:
    """Write a checkpoint whose numbers float16 cannot hold, which shows only when they are read."""
    folder.mkdir()
    write_tiny_checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.norm_f.weight"] = weights["transformer.norm_f.weight"] * 1e6
    save_file(weights, folder / "model.safetensors")
    return folder


def truncated(folder: Path) -> Path:
    """Write a checkpoint whose weights end too early."""
    folder.mkdir()
    write_tiny_checkpoint(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return folder


@pytest.mark.exhaustive
def test_bad_deploys_harm_nothing_and_a_good_one_loses_no_request(tiny_checkpoint: Path, tmp_path: Path) -> None:
    deploys = Deploys(tiny_checkpoint)
    config = deploys.config
    bad_weights = beyond_float16(tmp_path / "beyond")
    bad = [
        (config(modle=1), FAILED),
        (deploys.application(import_path="mpt_serve.ap:build"), FAILED),
        (deploys.application(runtime_env={"env_vars": {"A": 1}}), None),  # Serve's controller raises a TypeError
        (config(model="/no/such/folder"), FAILED),
        (config(chat_template="chatml"), FAILED),
        (config(model=str(truncated(tmp_path / "truncated"))), FAILED),
        (config({"ray_actor_options": {"num_gpus": 1}}), None),  # no node has one: it may still come
        (config({"ray_actor_options": {"num_gpus": 1}}, limits={"max_prompts": 6}), None),
        (config(model=str(bad_weights), dtype="float16"), FAILED),  # only the Generator's constructor finds that
    ]
    with ServerProcess.of(config(), tmp_path) as server:
        server.wait_ready()
        with load(server.url) as counts:
            outcome = server.deploy(*bad)
            after_bad = counts.total()
            good = server.deploy((config(limits={"max_prompts": 7}), RUNNING))
        assert set(counts) == {"complete"}, counts
        assert counts.total() > after_bad > 0
        assert httpx.post(f"{server.url}/v1/completions", json={"prompt": ["x"] * 8}).status_code == 400
    for message in (
        "did you mean 'model'?",
        "there is no folder",
        "the chat template writes <|im_start|>",
        "['Generator']",
    ):
        assert message in outcome
    assert good.startswith("ApplicationStatus.RUNNING")


def test_a_start_that_fails_ends_with_one_message(tmp_path: Path) -> None:
    deploys = Deploys(beyond_float16(tmp_path / "beyond"))
    once = {"RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1"}  # Serve tries three times by default
    with ServerProcess.of(deploys.config(dtype="float16"), tmp_path, command="mpt-serve", variables=once) as server:
        assert server.wait_end(600) == 1
        output = server.output()
    (message,) = [line for line in output.splitlines() if line.startswith("mpt-serve: ")]
    assert message.startswith("mpt-serve: the application 'mpt' cannot start: Generator: ")
    assert "float16's largest number" in message


@pytest.mark.exhaustive
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("surge", [None, 0])
def test_no_redeploy_loses_a_request(tiny_checkpoint: Path, tmp_path: Path, replicas: int, surge: int | None) -> None:
    """Without surge, requests wait for the new Generator."""
    deploys = Deploys(tiny_checkpoint)
    generator: dict[str, Any] = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": 0.1}}
    if surge is not None:
        generator["max_surge_percent"] = surge
    with ServerProcess.of(deploys.config(generator), tmp_path) as server:
        server.wait_ready()
        with load(server.url) as counts:
            for number in range(5):
                server.deploy((deploys.config(generator, limits={"max_prompts": 7 + number}), RUNNING))
        assert set(counts) == {"complete"}, counts


@pytest.mark.exhaustive
def test_a_change_of_the_model_mixes_no_outputs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Each response is one model's alone; the few that the old Ingress no longer serves may be sent again at once."""
    (tmp_path / "other").mkdir()
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    deploys = Deploys(tiny_checkpoint)
    prompt = {"prompt": "Hello", "max_tokens": 60, "ignore_eos": True, "temperature": 0}
    stop = threading.Event()
    answers: list[str] = []
    refusals: Counter[str] = Counter()

    def client(url: str) -> None:
        with httpx.Client(base_url=url, timeout=200) as http:
            while not stop.wait(0.02):
                response = http.post("/v1/completions", json=prompt)
                if response.status_code == 200:
                    answers.append(response.json()["choices"][0]["text"])
                else:
                    refusals[f"{response.status_code} {response.text} {response.headers.get('retry-after')}"] += 1

    with ServerProcess.of(deploys.config(), tmp_path) as server:
        server.wait_ready()

        def alone() -> str:
            return str(
                httpx.post(f"{server.url}/v1/completions", json=prompt, timeout=200).json()["choices"][0]["text"]
            )

        old = alone()
        threads = [threading.Thread(target=client, args=[server.url]) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            outcome = server.deploy((deploys.config(model=str(other)), RUNNING))
            new = alone()
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert outcome.startswith("ApplicationStatus.RUNNING")
    assert old != new
    assert set(answers) == {old, new}
    assert all(refusal.startswith("503") and refusal.endswith(" 1") for refusal in refusals), refusals
