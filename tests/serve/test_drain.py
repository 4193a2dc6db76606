"""How an Ingress ends: new requests are refused, those that run get their time, the rest ends with an error."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mpt_serve.deployments import drain as drain_module
from mpt_serve.deployments.drain import Drain, follow_replica_end, run_until_end
from mpt_serve.openai.errors import ShuttingDownError


async def run(drain: Drain, work: asyncio.Event) -> str:
    async with drain.request():
        await work.wait()
        return "finished"


def test_what_runs_may_finish_until_the_deadline() -> None:
    async def scenario() -> None:
        drain, work = Drain(), asyncio.Event()
        short, long = (asyncio.create_task(run(drain, event)) for event in (work, asyncio.Event()))
        await asyncio.sleep(0)
        drain.end_within(0.01)
        work.set()
        assert await short == "finished"
        with pytest.raises(ShuttingDownError) as caught:
            await long
        assert caught.value.code == "shutting_down"
        assert int(caught.value.headers["retry-after"]) > 0
        with pytest.raises(ShuttingDownError):  # a move to another replica comes too late
            await run(drain, asyncio.Event())

    asyncio.run(scenario())


def test_the_nearer_deadline_counts() -> None:
    async def scenario() -> None:
        drain = Drain()
        request = asyncio.create_task(run(drain, asyncio.Event()))
        await asyncio.sleep(0)
        drain.end_within(0.01)
        drain.end_within(600)
        with pytest.raises(ShuttingDownError):
            await request

    asyncio.run(scenario())


def test_new_requests_are_refused_with_a_reason() -> None:
    drain = Drain()
    assert drain.readiness is None
    drain.refuse()
    assert drain.readiness is not None
    assert (drain.readiness.ready, drain.readiness.code) == (False, "shutting_down")


def test_responses_count_until_their_last_byte() -> None:
    drain = Drain()
    counts: list[int] = []

    async def app(*_: Any) -> None:
        counts.append(drain.responses)
        raise ConnectionError

    async def scenario() -> None:
        following: Any = drain.following(app)
        for kind in ("http", "lifespan", "http"):
            with pytest.raises(ConnectionError):
                await following({"type": kind}, None, None)

    asyncio.run(scenario())
    assert counts == [1, 0, 1]
    assert drain.responses == 0


def test_serves_own_end_of_a_replica_sets_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    replica = SimpleNamespace(
        _shutting_down=False, _deployment_config=SimpleNamespace(graceful_shutdown_timeout_s=0.02)
    )
    monkeypatch.setattr(drain_module, "serve_replica", lambda: replica)
    monkeypatch.setattr(drain_module, "_LOOK_PERIOD_S", 0)

    async def scenario() -> None:
        drain = Drain()
        request = asyncio.create_task(run(drain, asyncio.Event()))
        following = asyncio.create_task(follow_replica_end(drain))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not following.done()
        replica._shutting_down = True
        await following
        assert drain.readiness is None  # Serve sends it no more
        with pytest.raises(ShuttingDownError):
            await request

    asyncio.run(scenario())


@pytest.mark.parametrize("end", ["refuse", "end_within"])
def test_work_of_the_replica_ends_when_that_begins_to_end(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setattr(drain_module, "_LOOK_PERIOD_S", 0.001)

    async def scenario() -> None:
        drain, began, ended = Drain(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        running = asyncio.create_task(run_until_end(work(), drain))
        await began.wait()
        assert not drain.ends
        getattr(drain, end)(*([60] if end == "end_within" else []))
        await running
        assert ended.is_set()

    asyncio.run(scenario())


def test_work_that_ends_by_itself_is_not_waited_for() -> None:
    asyncio.run(run_until_end(asyncio.sleep(0), Drain()))
