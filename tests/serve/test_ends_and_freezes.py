"""A Generator that freezes, and the end of `mpt-serve run`: no request is lost, and none is cut."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server import ServerProcess, free_port, serve_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG = {"max_tokens": 3000, "temperature": 0, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[ServerProcess]:
    """A server with two Generators."""
    args = {
        "model": str(tiny_checkpoint),
        "max_model_len": 4096,
        "engine": {
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "num_blocks": 2048,
            "pre_compile": False,
            "reply_timeout_s": 5,
        },
    }
    deployments = [{"name": "Generator", "num_replicas": 2, "ray_actor_options": {"num_cpus": 0}}]
    config = serve_config(args, free_port(), deployments)
    with ServerProcess.of(config, tmp_path_factory.mktemp("server"), command="mpt-serve") as server:
        server.wait_ready()
        deadline = time.monotonic() + 120
        while len(httpx.get(f"{server.url}/stats", timeout=30).json()["replicas"]) < 2:
            assert time.monotonic() < deadline, server.output()
            time.sleep(0.3)
        yield server


async def stream(http: httpx.AsyncClient, number: int, begun: asyncio.Event) -> tuple[str, list[dict[str, Any]]]:
    """Return a stream's text, and its events without text."""
    text, others = "", []
    async with http.stream("POST", "/v1/completions", json={"prompt": f"Number {number}", **LONG}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if "choices" in event:
                    text += event["choices"][0]["text"]
                    begun.set()
                else:
                    others.append(event)
            elif line.startswith("data:"):
                assert line == "data: [DONE]"
                others.append({"done": True})
    return text, others


async def streams(url: str, count: int, begun: asyncio.Event) -> list[tuple[str, list[dict[str, Any]]]]:
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        return await asyncio.gather(*(stream(http, number, begun) for number in range(count)))


def test_a_frozen_generator_costs_a_pause_and_not_a_token(server: ServerProcess) -> None:
    async def scenario() -> tuple[Any, Any]:
        undisturbed = await streams(server.url, 6, asyncio.Event())
        begun = asyncio.Event()
        task = asyncio.create_task(streams(server.url, 6, begun))
        await begun.wait()
        frozen = server.replica_pids("Generator")[0]
        os.kill(frozen, signal.SIGSTOP)
        since = time.monotonic()
        moved = await task
        print(f"all streams ended {time.monotonic() - since:.1f} s after the freeze")
        while frozen in server.replica_pids("Generator"):
            assert time.monotonic() < since + 120, server.output()
            await asyncio.sleep(0.2)
        print(f"the frozen process ended {time.monotonic() - since:.1f} s after the freeze")
        return undisturbed, moved

    undisturbed, moved = asyncio.run(scenario())
    assert moved == undisturbed
    assert "has stopped working" in server.output()


def test_ctrl_c_lets_running_requests_finish_and_refuses_new_ones(server: ServerProcess) -> None:
    async def scenario() -> tuple[Any, httpx.Response]:
        begun = asyncio.Event()
        task = asyncio.create_task(streams(server.url, 4, begun))
        await begun.wait()
        server.process.send_signal(signal.SIGINT)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            while (await http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
            refused = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        return await task, refused

    finished, refused = asyncio.run(scenario())
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "shutting_down"
    assert int(refused.headers["retry-after"]) > 0
    assert [others for _, others in finished] == [[{"done": True}]] * 4
    assert all(len(text) > 1000 for text, _ in finished)
    server.wait_end()
    output = server.output()
    assert "SIGTERM received" not in output
    assert "Traceback" not in output
