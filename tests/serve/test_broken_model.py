"""A started server whose model computes no numbers: errors that say so, and a replica that is replaced."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from server import ServerProcess, free_port, serve_config
from tiny_checkpoint import write_tiny_checkpoint
from waiting import wait_for

from mpt_serve.engine.request import NO_NUMBERS_MESSAGE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of a checkpoint with one number that is none."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("broken"))
    weights = load_file(folder / "model.safetensors")
    norm = weights["transformer.norm_f.weight"].copy()
    norm[0] = np.nan
    save_file({**weights, "transformer.norm_f.weight": norm}, folder / "model.safetensors")
    engine = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_blocks": 64, "pre_compile": False}
    config = serve_config({"model": str(folder), "engine": engine}, free_port())
    with ServerProcess.of(config, tmp_path_factory.mktemp("server")) as server:
        yield server.wait_ready()


def test_no_output_is_made_up_and_the_replica_is_replaced(server: ServerProcess) -> None:
    first = server.replica_pid("Generator")
    with httpx.Client(base_url=server.url, timeout=120) as http:
        response = http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 5, "logprobs": 1})
        assert response.status_code == 500
        assert NO_NUMBERS_MESSAGE[1:] in response.json()["error"]["message"]
        wait_for(lambda: choices_without_numbers(http) == [1])
        body = {"prompt": "Hello", "max_tokens": 5, "stream": True}
        stream = http.post("/v1/completions", json=body)
        assert stream.status_code == 500
        assert NO_NUMBERS_MESSAGE[1:] in stream.json()["error"]["message"]

        def is_replaced() -> bool:
            status = http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 5}).status_code
            assert status in (500, 503)
            return not Path(f"/proc/{first}").exists()

        wait_for(is_replaced, server.output)
    server.wait_output("no finite number")


def choices_without_numbers(http: httpx.Client) -> list[float]:
    """Return what each Generator counts that replies in time."""
    lines = http.get("/metrics").text.splitlines()
    return [float(line.split()[-1]) for line in lines if line.startswith("mpt_serve_choices_without_numbers_total{")]
