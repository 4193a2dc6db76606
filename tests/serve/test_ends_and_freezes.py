"""Generators that freeze or are scaled away, and the ends of a server: no request is lost, and none ends in silence."""

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server import ServerProcess, free_port, serve_config, stats_of, wait_idle
from waiting import attempts, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG = {"max_tokens": 3000, "temperature": 0, "ignore_eos": True, "stream": True}


def config_of(model: Path, port: int, generators: int, ingress_end_s: float = 60) -> dict[str, Any]:
    """Return a configuration whose requests may run for `ingress_end_s` when an Ingress ends."""
    engine = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "num_blocks": 2048, "pre_compile": False}
    args = {"model": str(model), "max_model_len": 4096, "engine": {**engine, "reply_timeout_s": 5}}
    deployments = [
        {"name": "Generator", "num_replicas": generators, "ray_actor_options": {"num_cpus": 0}},
        {"name": "Ingress", "graceful_shutdown_timeout_s": ingress_end_s},
    ]
    return serve_config(args, port, deployments)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[ServerProcess]:
    """A server with two Generators."""
    config = config_of(tiny_checkpoint, free_port(), 2)
    with ServerProcess.of(config, tmp_path_factory.mktemp("server"), command="mpt-serve") as server:
        server.wait_ready()
        wait_generators(server, 2)
        yield server


def wait_generators(server: ServerProcess, count: int) -> None:
    """Wait until that many Generators run, and no process of another one does."""

    def reached() -> bool:
        found = httpx.get(f"{server.url}/stats", timeout=60).json()["replicas"]
        return len(found) == count and len(server.replica_pids("Generator")) == count

    wait_for(reached, server.output)


async def stream(
    http: httpx.AsyncClient, number: int, begun: asyncio.Event, **more: Any
) -> tuple[str, list[dict[str, Any]]]:
    """Return a stream's text, and its events without text."""
    text, others = "", []
    async with http.stream("POST", "/v1/completions", json={"prompt": f"Number {number}", **LONG, **more}) as response:
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
    """Return that many streams. begun: set when each of them has its first text."""
    texts = [asyncio.Event() for _ in range(count)]

    async def all_begun() -> None:
        for text in texts:
            await text.wait()
        begun.set()

    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        waiting = asyncio.create_task(all_begun())
        received = await asyncio.gather(*(stream(http, number, text) for number, text in enumerate(texts)))
        await waiting
    return received


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
        await asyncio.to_thread(wait_for, lambda: frozen not in server.replica_pids("Generator"), server.output)
        print(f"the frozen process ended {time.monotonic() - since:.1f} s after the freeze")
        return undisturbed, moved

    undisturbed, moved = asyncio.run(scenario())
    assert moved == undisturbed
    server.wait_output("has stopped working")


def scale_to_one(server: ServerProcess, model: Path) -> str:
    """Deploy one Generator, if more run, and return what became of that."""
    if len(server.replica_pids("Generator")) == 1:
        return ""
    config = config_of(model, int(server.url.rpartition(":")[2]), 1)
    outcome = server.deploy((config, "RUNNING"))
    wait_generators(server, 1)
    return outcome


def test_a_generator_that_is_scaled_away_takes_no_token_with_it(server: ServerProcess, tiny_checkpoint: Path) -> None:
    wait_generators(server, 2)

    async def scenario() -> tuple[Any, Any, str]:
        undisturbed = await streams(server.url, 6, asyncio.Event())
        begun = asyncio.Event()
        task = asyncio.create_task(streams(server.url, 6, begun))
        await begun.wait()
        outcome = await asyncio.to_thread(scale_to_one, server, tiny_checkpoint)
        return undisturbed, await task, outcome

    undisturbed, disturbed, outcome = asyncio.run(scenario())
    assert outcome.startswith("ApplicationStatus.RUNNING")
    assert disturbed == undisturbed


def test_ready_tells_of_the_only_generator_that_it_is_frozen(server: ServerProcess, tiny_checkpoint: Path) -> None:
    scale_to_one(server, tiny_checkpoint)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in attempts("it was replaced before /ready reported it", 3):
            frozen = server.replica_pid("Generator")
            os.kill(frozen, signal.SIGSTOP)
            while (response := http.get("/ready")).status_code == 200 and Path(f"/proc/{frozen}").exists():
                time.sleep(0.05)
            with contextlib.suppress(ProcessLookupError):
                os.kill(frozen, signal.SIGCONT)
            server.wait_ready()
            if response.status_code != 200 and response.json()["error"]["message"] == "No Generator replies.":
                break
            wait_generators(server, 1)
        assert http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 2}).status_code == 200


@pytest.mark.exhaustive
def test_a_frozen_tokenizer_costs_a_pause(server: ServerProcess) -> None:
    frozen = server.replica_pid("Tokenizer")
    while not any("Signs of life go to" in path.read_text(errors="replace") for path in server.log_files()):
        time.sleep(0.2)
    time.sleep(3)  # the Ingress learns of the link by the next report
    os.kill(frozen, signal.SIGSTOP)
    with httpx.Client(base_url=server.url, timeout=120) as http:
        while (response := http.get("/ready")).status_code == 200:
            assert Path(f"/proc/{frozen}").exists(), "it was replaced before /ready reported it"
            time.sleep(0.05)
        assert response.json()["error"]["message"] == "No Tokenizer replies."
        assert http.post("/v1/completions", json={"prompt": "Hello", "max_tokens": 2}).status_code == 200
    deadline = time.monotonic() + 60
    while Path(f"/proc/{frozen}").exists():
        assert time.monotonic() < deadline, "the frozen process is not ended"
        time.sleep(0.1)
    server.wait_ready()


@pytest.mark.exhaustive
def test_a_generator_that_hardly_ever_runs_keeps_its_requests(server: ServerProcess, tiny_checkpoint: Path) -> None:
    """It runs for a fiftieth of the time, as on a machine with far too much to do."""
    scale_to_one(server, tiny_checkpoint)
    slow = server.replica_pid("Generator")

    async def scenario() -> list[tuple[str, list[dict[str, Any]]]]:
        begun = asyncio.Event()
        task = asyncio.create_task(streams(server.url, 4, begun))
        await begun.wait()
        for _ in range(20):  # several times `reply_timeout_s`
            os.kill(slow, signal.SIGSTOP)
            await asyncio.sleep(0.98)
            os.kill(slow, signal.SIGCONT)
            await asyncio.sleep(0.02)
        return await task

    before = server.output().count("has stopped working")
    assert [others for _, others in asyncio.run(scenario())] == [[{"done": True}]] * 4
    assert server.replica_pid("Generator") == slow
    assert server.output().count("has stopped working") == before


def test_requests_of_an_ingress_that_dies_end_with_an_error(server: ServerProcess, tiny_checkpoint: Path) -> None:
    scale_to_one(server, tiny_checkpoint)

    async def scenario() -> tuple[Any, httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            for _ in attempts("the streams had ended before the Ingress was killed"):
                ingress = server.replica_pid("Ingress")
                begun = asyncio.Event()
                task = asyncio.create_task(streams(server.url, 4, begun))
                whole = asyncio.create_task(http.post("/v1/completions", json={"prompt": "x", **LONG, "stream": False}))
                while not task.done() and not whole.done():
                    await asyncio.sleep(0.01)
                    if begun.is_set() and await asyncio.to_thread(running_choices, server) == 5:
                        os.kill(ingress, signal.SIGKILL)
                        break
                broken_off, response = await asyncio.gather(task, whole)
                await asyncio.to_thread(server.wait_ready)
                if response.status_code != 200 and any("error" in others[0] for _, others in broken_off):
                    break
        return broken_off, response

    broken_off, whole = asyncio.run(scenario())
    for _, others in broken_off:
        assert others == [{"done": True}] or [*others[0], *others[1:]] == ["error", {"done": True}]
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "loading")
    wait_idle(server.url)


def running_choices(server: ServerProcess) -> int:
    """Return how many choices the one Generator works on."""
    stats = stats_of(server.url)
    return int(stats["running"] + stats["waiting"])


def test_ctrl_c_lets_running_requests_finish_and_refuses_new_ones(
    server: ServerProcess, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    async def scenario(server: ServerProcess) -> tuple[Any, httpx.Response]:
        begun = asyncio.Event()
        task = asyncio.create_task(streams(server.url, 4, begun))
        await begun.wait()
        server.process.send_signal(signal.SIGINT)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            while (await http.get("/ready")).status_code == 200:
                await asyncio.sleep(0.01)
            refused = await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
        return await task, refused

    with contextlib.ExitStack() as servers:
        for number in attempts("the streams had ended before new requests were refused", 3):
            if number > 0:
                config = config_of(tiny_checkpoint, free_port(), 1)
                server = servers.enter_context(ServerProcess.of(config, tmp_path, command="mpt-serve")).wait_ready()
            with contextlib.suppress(httpx.TransportError):  # it has nothing more to wait for, and ends
                finished, refused = asyncio.run(scenario(server))
                break
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert int(refused.headers["retry-after"]) > 0
        assert [others for _, others in finished] == [[{"done": True}]] * 4
        assert all(len(text) > 1000 for text, _ in finished)
        server.wait_end()
        assert_quiet(server)


def assert_quiet(server: ServerProcess) -> None:
    """Check that the program itself has written no stack trace. Ray's processes write theirs under their names."""
    own = [line for line in server.output().splitlines() if not re.match(r"\S*\(.+ pid=\d+", line)]
    assert not any("Traceback" in line or "SIGTERM received" in line for line in own), own


@pytest.mark.exhaustive
def test_what_has_not_finished_in_time_ends_with_an_error_event(tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = config_of(tiny_checkpoint, free_port(), 1, ingress_end_s=0.5)
    with ServerProcess.of(config, tmp_path, command="mpt-serve") as server:
        server.wait_ready()

        async def scenario() -> list[tuple[str, list[dict[str, Any]]]]:
            begun = asyncio.Event()
            task = asyncio.create_task(streams(server.url, 8, begun))
            await begun.wait()
            server.process.send_signal(signal.SIGTERM)
            return await task

        ended = asyncio.run(scenario())
        server.wait_end()
        assert_quiet(server)
    errors = [others[0]["error"] for _, others in ended if others != [{"done": True}]]
    assert errors, "all streams have finished: they are too short"
    assert {error["code"] for error in errors} == {"shutting_down"}
    assert all(others[-1] == {"done": True} for _, others in ended)


@pytest.mark.exhaustive
def test_a_second_ctrl_c_ends_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The streams take so long that they are cut, and not waited for."""
    with ServerProcess.of(config_of(tiny_checkpoint, free_port(), 1, 600), tmp_path, command="mpt-serve") as server:
        server.wait_ready()
        replica = server.replica_pid("Generator")

        async def scenario() -> tuple[int, list[Any]]:
            async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
                begun = [asyncio.Event() for _ in range(4)]
                running = [asyncio.create_task(stream(http, i, event, n=8)) for i, event in enumerate(begun)]
                for event in begun:
                    await event.wait()
                server.process.send_signal(signal.SIGINT)
                while "Ctrl-C again ends at once" not in server.output():
                    await asyncio.sleep(0.05)
                server.process.send_signal(signal.SIGINT)
                status = await asyncio.to_thread(server.wait_end)
                return status, await asyncio.gather(*running, return_exceptions=True)

        status, ends = asyncio.run(scenario())
        assert status == 128 + signal.SIGINT
        unfinished = [end for end in ends if isinstance(end, BaseException) or end[1] != [{"done": True}]]
        assert unfinished, "all streams have finished: they are too short"
        for end in unfinished:  # the proxy may outlive the Ingress for a moment
            assert isinstance(end, httpx.TransportError) or "error" in end[1][0]
        deadline = time.monotonic() + 60
        while Path(f"/proc/{replica}").exists():
            assert time.monotonic() < deadline, "a replica outlives its cluster"
            time.sleep(0.1)
        assert_quiet(server)


async def endless_stream(http: httpx.AsyncClient, begun: asyncio.Event) -> None:
    """Read streams, one after the other."""
    while True:
        await stream(http, 1, begun)


_SHUTDOWN = """
from ray import serve
serve.shutdown()
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", ["serve shutdown", "Ctrl-C of serve run"])
def test_serves_own_ends_cut_what_runs(tiny_checkpoint: Path, tmp_path: Path, how: str) -> None:
    """As docs/architecture.md says. `serve shutdown` does through the dashboard what the script does."""
    with ServerProcess.of(config_of(tiny_checkpoint, free_port(), 1), tmp_path) as server:
        server.wait_ready()

        async def scenario() -> list[Any]:
            begun = asyncio.Event()
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
                running = [asyncio.create_task(endless_stream(http, begun)) for _ in range(4)]
                await begun.wait()
                if how == "serve shutdown":
                    await asyncio.to_thread(server.run_script, _SHUTDOWN)
                else:
                    server.process.send_signal(signal.SIGINT)
                return await asyncio.gather(*running, return_exceptions=True)

        assert all(isinstance(error, httpx.TransportError) for error in asyncio.run(scenario()))
