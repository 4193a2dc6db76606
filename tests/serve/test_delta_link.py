"""Deltas from a Generator to an Ingress over a separate connection, on the event loop that Ray's processes have."""

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import until

from mpt_serve.deployments import delta_link, link_receiver, link_sender
from mpt_serve.deployments.delta_link import DeltaLink, LinkedRequest, delta_links
from mpt_serve.deployments.delta_receiver import Delivery, DeltaReceiver
from mpt_serve.deployments.delta_wire import decode, encode
from mpt_serve.deployments.link_wire import LinkAddress, Unpacker, keep_alive
from mpt_serve.engine.request import Delta, TokenLogprobs
from mpt_serve.errors import EngineClosedError

LOOPBACK = "127.0.0.1"


def delta(*ids: int, end: bool = False, index: int = 0) -> Delta:
    return Delta(ids, "length" if end else None, None, 3, index=index)


class Pair:
    """Both ends of a link, and the deltas that have come."""

    def __init__(self, interval_s: float = 0.0) -> None:
        self.receiver = DeltaReceiver(interval_s)
        self.aborted: list[tuple[str, int | None, str]] = []
        self.links = delta_links(lambda *call: self.aborted.append(call))
        self.received: list[Delta] = []
        self.ended_choices: list[int] = []

    def delivery(self, choices: Sequence[int] = (0,), stopped: frozenset[int] = frozenset()) -> Delivery:
        return Delivery(choices, self.received.append, stopped, self.ended_choices.append)

    async def link(self) -> DeltaLink:
        address = await self.receiver.address(0)
        assert address is not None
        link = await self.links.to(address)
        assert link is not None
        return link


@asynccontextmanager
async def pair(interval_s: float = 0.0) -> AsyncIterator[Pair]:
    both = Pair(interval_s)
    both.receiver.start(LOOPBACK)
    try:
        yield both
    finally:
        for link in both.links._open:
            link.close()
        both.receiver.close()
        await asyncio.sleep(0)


def test_every_field_of_a_delta_arrives() -> None:
    entry = TokenLogprobs(-0.5, 2, ((7, -0.25), (8, -0.5)))
    full = Delta((5, 6), "stop", 6, 9, 4, "text", 3, (entry, replace(entry, top=())), (None, entry), b"\x00\xff\n")
    (frame,) = _frames(encode([(11, full), (12, delta(1, index=2))]))
    assert [values[0] for values in frame] == [11, 12]
    assert [decode([values]) for values in frame] == [full, delta(1, index=2)]


def test_entries_of_a_choice_are_one_delta() -> None:
    entry = TokenLogprobs(-0.5, 2, ())
    plain = [delta(1, 2), delta(3), delta(4, end=True)]
    logged = [replace(part, logprobs=(entry,) * len(part.token_ids)) for part in plain]

    def joined(parts: Sequence[Delta]) -> Delta:
        return decode([_frames(encode([(0, part)]))[0][0] for part in parts])

    assert joined(plain[:2]) == delta(1, 2, 3)
    assert joined(plain) == delta(1, 2, 3, 4, end=True)
    assert joined(logged) == replace(delta(1, 2, 3, 4, end=True), logprobs=(entry,) * 4)


def _frames(data: bytes) -> list[Any]:
    unpacker = Unpacker()
    unpacker.feed(data)
    return list(unpacker)


def test_a_step_of_all_requests_is_one_frame() -> None:
    steps, streams = 20, 32

    async def scenario() -> list[int]:
        async with pair() as both:
            link = await both.link()
            requests = [link.open(number, f"r{number}", 1) for number in range(streams)]
            sizes: list[int] = []
            link._socket = _Counting(link._socket, sizes)  # type: ignore[assignment]
            for step in range(steps):
                for request in requests:
                    request.post(delta(step))
                both.links.flush()
            return sizes

    assert len(uvloop.run(scenario())) == steps


@pytest.mark.parametrize(("held_s", "frames"), [(3600.0, [0, 69]), (0.0, list(range(70)))])
def test_deltas_in_the_background_go_together(
    monkeypatch: pytest.MonkeyPatch, held_s: float, frames: list[int]
) -> None:
    monkeypatch.setattr(delta_link, "_HELD_S", held_s)

    async def scenario() -> None:
        async with pair() as both:
            link = await both.link()
            sizes: list[int] = []
            link._socket = _Counting(link._socket, sizes)  # type: ignore[assignment]
            with both.receiver.receive(both.delivery()):
                request = link.open(0, "r", 1, True)
                sent = []
                for step in range(70):
                    before = len(sizes)
                    request.post(delta(step, end=step == 69))
                    both.links.flush()
                    if len(sizes) > before:
                        sent.append(step)
                assert sent == frames
                await until(lambda: both.received[-1:] and both.received[-1].finish_reason is not None)
            assert [id for item in both.received for id in item.token_ids] == list(range(70))

    uvloop.run(scenario())


def test_an_end_in_the_background_takes_what_is_held_along() -> None:
    async def scenario() -> None:
        async with pair() as both:
            link = await both.link()
            with both.receiver.receive(both.delivery((0, 1))):
                request = link.open(0, "r", 2, True)
                for item in (delta(1, index=1), delta(2), delta(3, index=1), delta(4, end=True)):
                    request.post(item)
                both.links.flush()
                await until(lambda: len(both.received) == 2)
                assert both.received == [delta(1, 3, index=1), delta(2, 4, end=True)]
                request.post(delta(5, index=1, end=True))
                both.links.flush()
                await until(lambda: len(both.received) == 3)

    uvloop.run(scenario())


class _Counting:
    """A socket that notes what it sends."""

    def __init__(self, plain: socket.socket, sizes: list[int]) -> None:
        self._plain = plain
        self._sizes = sizes

    def send(self, data: bytes) -> int:
        self._sizes.append(len(data))
        return self._plain.send(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3)), min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from([0.0, 0.001, 0.05]),
    st.booleans(),
)
def test_nothing_is_lost_or_reordered(
    requests: list[tuple[int, int]], slow: bool, interval_s: float, background: bool
) -> None:
    async def scenario() -> list[dict[int, list[int]]]:
        async with pair(interval_s) as both:
            link = await both.link()
            outputs: list[dict[int, list[int]]] = [{} for _ in requests]
            deliveries = []
            linked: list[LinkedRequest] = []
            for output, (_, choices) in zip(outputs, requests, strict=True):

                def take(item: Delta, output: dict[int, list[int]] = output) -> None:
                    output.setdefault(item.index, []).extend(item.token_ids)

                delivery = Delivery(range(choices), take, frozenset(), both.ended_choices.append)
                deliveries.append(delivery)
                delivery.number = len(linked)
                both.receiver._deliveries[delivery.number] = delivery
                linked.append(link.open(delivery.number, f"r{len(linked)}", choices, background))

            def engine() -> None:
                for position in range(max(length for length, _ in requests)):
                    for request, (length, choices) in zip(linked, requests, strict=True):
                        for index in range(choices if position < length else 0):
                            request.post(delta(position, end=position == length - 1, index=index))
                    both.links.flush()

            thread = threading.Thread(target=engine)
            if slow:  # the engine is far ahead before the Ingress reads
                for connection in both.receiver._connections.values():
                    connection._transport.pause_reading()  # type: ignore[union-attr]
            thread.start()
            if slow:
                await asyncio.to_thread(thread.join)
                for connection in both.receiver._connections.values():
                    connection._transport.resume_reading()  # type: ignore[union-attr]
            async with asyncio.timeout(30):
                await asyncio.gather(*(delivery.ended for delivery in deliveries))
                await asyncio.gather(*(request.ended for request in linked))
            await asyncio.to_thread(thread.join)
            return outputs

    expected = [{index: list(range(length)) for index in range(choices)} for length, choices in requests]
    assert uvloop.run(scenario()) == expected


def test_deltas_are_merged_while_the_ingress_does_not_read() -> None:
    steps = 3000

    async def scenario() -> list[Delta]:
        async with pair() as both:
            link = await both.link()
            link._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            with both.receiver.receive(delivery := both.delivery()):
                request = link.open(delivery.number, "r", 1)
                (connection,) = both.receiver._connections.values()
                connection._transport.pause_reading()  # type: ignore[union-attr]
                for step in range(steps):
                    request.post(delta(*[step] * 500, end=step == steps - 1))
                    link.flush()
                assert link._blocked
                connection._transport.resume_reading()  # type: ignore[union-attr]
                async with asyncio.timeout(60):
                    await delivery.ended
            return both.received

    received = uvloop.run(scenario())
    assert len(received) < steps
    assert [token for item in received for token in item.token_ids] == [s for s in range(steps) for _ in range(500)]


class Steps:
    """One request of a link, and the steps of its engine."""

    def __init__(self, both: Pair, link: DeltaLink, number: int) -> None:
        self._received = both.received
        self._connections = both.receiver._connections
        self._link = link
        self._request = link.open(number, "r", 1)

    async def step(self, *ids: int, end: bool = False) -> list[tuple[int, ...]]:
        """Return the ids of the deltas that were delivered when the step's have come."""
        await self.take(delta(*ids, end=end))
        return [item.token_ids for item in self._received]

    async def take(self, item: Delta) -> None:
        """Wait until a delta has come."""
        (connection,) = self._connections.values()
        frames = connection.received
        self._request.post(item)
        self._link.flush()
        await until(lambda: connection.received > frames)


@asynccontextmanager
async def one_request(interval_s: float) -> AsyncIterator[tuple[Pair, Delivery, Steps]]:
    async with pair(interval_s) as both:
        link = await both.link()
        with both.receiver.receive(delivery := both.delivery()):
            yield both, delivery, Steps(both, link, delivery.number)


def test_what_comes_within_the_interval_goes_as_one() -> None:
    async def scenario() -> None:
        async with one_request(interval_s=3600.0) as (both, delivery, steps):
            assert await steps.step(1) == [(1,)]
            assert await steps.step(2) == [(1,)]
            assert await steps.step(3) == [(1,)]
            with both.receiver.receive(other := both.delivery()):
                # The first of another choice does not wait, nor does it end the others' waiting.
                later = Steps(both, await both.link(), other.number)
                assert await later.step(7) == [(1,), (7,)]
                assert await steps.step(4, end=True) == [(1,), (7,), (2, 3, 4)]
            await delivery.ended

    uvloop.run(scenario())


def test_heartbeats_and_replies_are_no_frames_of_a_step() -> None:
    """What comes with them does not wait for the next one."""

    async def scenario() -> None:
        async with one_request(interval_s=3600.0) as (both, _, steps):
            (connection,) = both.receiver._connections.values()
            both.receiver.take_frames(connection, [[], {"replies": []}])
            assert not both.receiver._paces
            assert await steps.step(1) == [(1,)]

    uvloop.run(scenario())


def test_what_waits_goes_when_the_interval_has_passed() -> None:
    async def scenario() -> None:
        async with one_request(interval_s=0.05) as (both, _, steps):
            for number in range(3):
                await steps.step(number)
            await until(lambda: [token for item in both.received for token in item.token_ids] == [0, 1, 2])

    uvloop.run(scenario())


def test_what_cannot_be_read_ends_the_requests_of_its_connection() -> None:
    async def scenario() -> None:
        async with pair(interval_s=0.05) as both:
            await both.link()
            (connection,) = both.receiver._connections.values()
            other = both.delivery()
            with both.receiver.receive(delivery := both.delivery()), both.receiver.receive(other):
                for request in (delivery, other):
                    both.receiver.take_frames(connection, [[[request.number, 0, [1], 3, 0]]])
                both.receiver.take_frames(connection, [[[delivery.number, 0, [2]]]])  # from another version
                for request in (delivery, other):
                    with pytest.raises(EngineClosedError):
                        await request.ended

    uvloop.run(scenario())


def test_an_error_of_one_choice_leaves_what_waits_of_the_others() -> None:
    async def scenario() -> None:
        async with pair(interval_s=3600.0) as both:
            link = await both.link()
            (connection,) = both.receiver._connections.values()
            with both.receiver.receive(delivery := both.delivery((0, 1))):
                request = link.open(delivery.number, "r", 2)
                for number in range(2):
                    for index in range(2):
                        request.post(delta(number, index=index))
                    link.flush()
                    await until(lambda seen=number: connection.received > seen)  # type: ignore[misc]
                for index in range(2):  # tokens come with the error where the Ingress was behind
                    request.post(replace(delta(2, index=index), finish_reason="error"))
                link.flush()
                await delivery.ended
            for index in range(2):
                *tokens, end = (item for item in both.received if item.index == index)
                assert [token for item in tokens for token in item.token_ids] == [0, 1, 2]
                assert (end.token_ids, end.finish_reason) == ((), "error")

    uvloop.run(scenario())


@pytest.mark.parametrize("reason", ["error", "cancelled"])
def test_what_waits_is_delivered_before_an_end_with_an_error(reason: Literal["error", "cancelled"]) -> None:
    async def scenario() -> None:
        async with one_request(interval_s=3600.0) as (both, delivery, steps):
            for number in range(3):
                await steps.step(number)
            await steps.take(replace(delta(), finish_reason=reason))
            await delivery.ended
            assert [token for item in both.received[:-1] for token in item.token_ids] == [0, 1, 2]
            assert both.received[-1] == replace(delta(), finish_reason=reason)

    uvloop.run(scenario())


def test_what_waits_is_delivered_when_the_connection_is_lost() -> None:
    """So that another replica continues after it."""

    async def scenario() -> None:
        async with one_request(interval_s=3600.0) as (both, delivery, steps):
            for number in range(3):
                await steps.step(number)
            (await both.link()).close()
            with pytest.raises(EngineClosedError):
                await delivery.ended
            assert [item.token_ids for item in both.received] == [(0,), (1, 2)]

    uvloop.run(scenario())


def test_both_ends_notice_a_lost_connection() -> None:
    async def scenario() -> None:
        async with pair() as both:
            link = await both.link()
            with both.receiver.receive(delivery := both.delivery()):
                request = link.open(delivery.number, "r", 1)
                request.post(delta(5))
                link.flush()
                await until(lambda: len(both.received) == 1)
                (connection,) = both.receiver._connections.values()
                connection.close()
                with pytest.raises(EngineClosedError):
                    await delivery.ended
                with pytest.raises(EngineClosedError):
                    await request.ended
            with pytest.raises(EngineClosedError):
                link.open(9, "r", 1)
            assert await both.link() is not link  # the next request gets a new one

    uvloop.run(scenario())


def test_a_request_whose_link_was_lost_before_it_was_known_fails() -> None:
    async def scenario() -> None:
        async with pair() as both:
            link = await both.link()
            link.close()
            await until(lambda: not both.receiver._connections)
            both.receiver.bind(delivery := both.delivery(), link.id)
            with pytest.raises(EngineClosedError):
                await delivery.ended

    uvloop.run(scenario())


def test_requests_and_choices_are_ended_over_the_link() -> None:
    async def scenario() -> None:
        async with pair() as both:
            link = await both.link()
            stopped: set[int] = set()
            delivery = Delivery((0, 1), lambda item: stopped.update([1]), stopped, both.ended_choices.append)
            with both.receiver.receive(delivery):
                request = link.open(delivery.number, "r", 2)
                both.receiver.bind(delivery, link.id)
                request.post(delta(5))
                link.flush()
                await until(lambda: bool(both.aborted))
                delivery.abort()
                await until(lambda: len(both.aborted) == 2)
            assert both.aborted == [("r", 1, "stop"), ("r", None, "cancelled")]
            assert not both.ended_choices  # no call of Serve's

    uvloop.run(scenario())


def test_what_a_reader_raises_ends_its_request_alone() -> None:
    async def scenario() -> None:
        async with pair() as both:
            link = await both.link()

            def fail(item: Delta) -> None:
                raise KeyError("reader")

            failing = Delivery((0,), fail, frozenset(), both.ended_choices.append)
            with both.receiver.receive(failing), both.receiver.receive(other := both.delivery()):
                for delivery in (failing, other):
                    link.open(delivery.number, "r", 1).post(delta(5, end=True))
                link.flush()
                with pytest.raises(KeyError, match="reader"):
                    await failing.ended
                await other.ended

    uvloop.run(scenario())


def test_a_stranger_is_not_accepted(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with pair() as both:
            address = await both.receiver.address(0)
            assert address is not None
            with caplog.at_level(logging.WARNING, "ray.serve"):
                assert await both.links.to(replace(address, secret=b"?" * 32)) is None
            assert not both.receiver._connections

    uvloop.run(scenario())


@pytest.mark.parametrize("on_this_node", [True, False])
def test_a_receiver_on_the_node_is_reached_without_tcp(monkeypatch: pytest.MonkeyPatch, on_this_node: bool) -> None:
    if not on_this_node:
        monkeypatch.setattr(link_sender, "local_name", lambda *_: "\0nobody-listens-there")

    async def scenario() -> None:
        async with pair() as both:
            link = await both.link()
            assert (link._socket.family == socket.AF_UNIX) == (on_this_node and sys.platform == "linux")
            with both.receiver.receive(delivery := both.delivery()):
                link.open(delivery.number, "r", 1).post(delta(5, end=True))
                link.flush()
                await delivery.ended
            assert both.received == [delta(5, end=True)]

    uvloop.run(scenario())


def test_connections_of_strangers_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_receiver, "_MAX_STRANGERS", 2)

    async def scenario() -> None:
        async with pair() as both:
            address = await both.receiver.address(0)
            assert address is not None
            opened = [await asyncio.open_connection(address.host, address.port) for _ in range(3)]
            assert await opened[2][0].read() == b""  # closed
            for _, writer in opened:
                writer.close()
            await until(lambda: both.receiver.strangers == 0)
            await both.link()
            assert both.receiver.strangers == 0

    uvloop.run(scenario())


def test_without_a_connection_deltas_are_left_to_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(link_sender, "_RETRY_PAUSE_S", 0.0)

    async def scenario() -> None:
        with socket.socket() as unused:
            unused.bind((LOOPBACK, 0))  # nobody listens
            address = LinkAddress(LOOPBACK, unused.getsockname()[1], b"x" * 32, 0)
            links = delta_links(lambda *_: None)
            assert await links.to(address) is None
        await asyncio.sleep(0.01)
        assert not links._links  # it is tried again later

    with caplog.at_level(logging.WARNING, "ray.serve"):
        uvloop.run(scenario())


def test_what_ray_encrypts_does_not_go_over_a_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")

    async def scenario() -> None:
        receiver = DeltaReceiver()
        assert await receiver.address(0) is None  # not started
        receiver.start(LOOPBACK)
        assert await receiver.address(0) is None

    uvloop.run(scenario())


def test_a_connection_to_a_node_that_is_lost_ends() -> None:
    """Which says nothing of its end; links within a node end with the processes."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        keep_alive(tcp)
        keep_alive(unix)
        assert tcp.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert unix.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
