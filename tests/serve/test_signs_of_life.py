"""What is heard of the Generators on their links, counted in looks."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mpt_serve.deployments.delta_link import delta_links
from mpt_serve.deployments.delta_receiver import DeltaReceiver
from mpt_serve.deployments.heartbeat import start_heartbeat
from mpt_serve.deployments.signs_of_life import PERIOD_S, SignsOfLife

LOOKS = 3


class Links:
    """The receiving end: connections by their ids, with how often something came."""

    def __init__(self, **received: int) -> None:
        self.received = received

    def connection(self, link_id: str) -> Any:
        return SimpleNamespace(received=self.received[link_id]) if link_id in self.received else None


def test_a_replica_falls_silent_after_some_looks_and_may_return() -> None:
    links: Any = Links(x=1, y=1)
    signs = SignsOfLife(links)
    signs.note("a", "x")
    signs.note("b", "y")
    for look in range(1, 9):
        links.received["y"] += 1
        signs.look()
        assert signs.is_silent("a") == (look > LOOKS)
        assert not signs.is_silent("b")
        assert signs.heard_within("a", 4 * PERIOD_S) == (look <= 4)
        assert signs.heard_within("b", PERIOD_S)
        signs.note("a", "x")  # says nothing new
    links.received["x"] += 1
    signs.look()
    assert not signs.is_silent("a")


def test_a_replica_whose_link_is_lost_is_silent_at_once_until_it_has_another() -> None:
    links: Any = Links(x=1)
    signs = SignsOfLife(links)
    signs.note("a", "x")
    signs.look()
    del links.received["x"]
    signs.look()
    assert signs.is_silent("a")
    assert not signs.heard_within("a", 1e9)
    links.received["z"] = 0
    signs.note("a", "z")
    signs.look()
    assert not signs.is_silent("a")


def test_a_replica_without_a_link_is_neither_silent_nor_heard() -> None:
    links: Any = Links(x=1)
    signs = SignsOfLife(links)
    signs.note("a", "x")
    signs.look()
    assert signs.heard_within("a", PERIOD_S)
    signs.keep(["b"])
    signs.look()
    for replica in ("a", "b"):
        assert not signs.is_silent(replica)
        assert not signs.heard_within(replica, 1e9)


def test_looks_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpt_serve.deployments.signs_of_life.PERIOD_S", 0)
    links: Any = Links(x=1)
    signs = SignsOfLife(links)
    signs.note("a", "x")

    async def scenario() -> None:
        task = asyncio.create_task(signs.run())
        while not signs.is_silent("a"):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_heartbeat_is_heard_while_the_event_loop_of_its_process_stands_still() -> None:
    """The event loop of the sender is blocked: its thread alone sends."""
    heard = threading.Event()

    def sender(address: Any) -> None:
        async def send() -> None:
            links = delta_links(lambda *_: None)
            assert links.to_if_open(address) is None  # it has just begun to connect
            link = await links.to(address)
            assert link is not None
            assert links.to_if_open(address) is link
            ended = start_heartbeat(links.beat, period_s=0.001)
            heard.wait(60)
            ended.set()
            link.close()
            await asyncio.sleep(0)

        asyncio.run(send())

    async def scenario() -> None:
        receiver = DeltaReceiver()
        receiver.start("127.0.0.1")
        address = await receiver.address(-1)
        thread = threading.Thread(target=sender, args=[address])
        thread.start()
        while not receiver._connections:
            await asyncio.sleep(0)
        (link_id,) = receiver._connections
        connection = receiver.connection(link_id)
        assert connection is not None
        while connection.received < 20:
            await asyncio.sleep(0)
        heard.set()
        receiver.close()
        await asyncio.to_thread(thread.join)

    asyncio.run(asyncio.wait_for(scenario(), 60))
