"""Short texts from an Ingress to a Tokenizer over a separate connection."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from ray.exceptions import RayActorError
from waiting import until

from mpt_serve.deployments.delta_receiver import DeltaReceiver
from mpt_serve.deployments.encode_link import EncodeLink, encode_links
from mpt_serve.deployments.encoding_lanes import SHORT_CHARS
from mpt_serve.deployments.link_receiver import Connection
from mpt_serve.deployments.replica_updates import ReplicaUpdates, RunningReplica
from mpt_serve.deployments.replicas import WatchedReplicas
from mpt_serve.deployments.signs_of_life import SignsOfLife
from mpt_serve.deployments.tokenizer_client import TokenizerClient
from mpt_serve.deployments.watchdog import ReplicaReport, Watchdog
from mpt_serve.errors import RequestError
from mpt_serve.openai.errors import NotReadyError

CHAT = [{"role": "user", "content": "Hello"}]


class Site:
    """An Ingress' end, and Tokenizers that it reaches over links and through a handle of Serve's.

    over_link, through_serve: the calls so far, as (replica or None, method, arguments). run: what a Tokenizer does.
    """

    def __init__(self) -> None:
        self.receiver = DeltaReceiver()
        self.over_link: list[tuple[int, str, list[Any]]] = []
        self.through_serve: list[tuple[str, list[Any]]] = []
        self.serve_raises: list[Exception] = []
        self.links: list[EncodeLink] = []
        self.run: Callable[[str, Sequence[Any]], Awaitable[Sequence[int]]] = codes
        handle: Any = SimpleNamespace(
            encode=SimpleNamespace(remote=self._called("encode")),
            encode_chat=SimpleNamespace(remote=self._called("encode_chat")),
        )
        replicas: Any = SimpleNamespace()  # the watchdog is asked for nothing
        self.client = TokenizerClient(handle, Watchdog(replicas, 10), self.connections, self.receiver.calls)

    async def add_replica(self) -> EncodeLink:
        """Connect one more Tokenizer."""
        number = len(self.links)

        async def run(method: str, arguments: Sequence[Any]) -> Sequence[int]:
            self.over_link.append((number, method, list(arguments)))
            return await self.run(method, arguments)

        address = await self.receiver.address(0)
        assert address is not None
        link = await encode_links(run).to(address)
        assert link is not None
        self.links.append(link)
        return link

    def connections(self) -> list[Connection]:
        found = [self.receiver.connection(link.id) for link in self.links]
        return [connection for connection in found if connection is not None]

    def _called(self, method: str) -> Callable[..., Awaitable[Sequence[int]]]:
        async def call(*arguments: Any) -> Sequence[int]:
            self.through_serve.append((method, list(arguments)))
            if self.serve_raises:
                raise self.serve_raises.pop(0)
            return await self.run(method, arguments)

        return call


async def codes(method: str, arguments: Sequence[Any]) -> Sequence[int]:
    """Return the characters' code points."""
    text = arguments[0] if method == "encode" else "".join(message["content"] for message in arguments[0])
    return [ord(character) for character in text]


@asynccontextmanager
async def site(replicas: int = 1) -> AsyncIterator[Site]:
    own = Site()
    own.receiver.start("127.0.0.1")
    for _ in range(replicas):
        await own.add_replica()
    try:
        yield own
    finally:
        for link in own.links:
            link.close()
        own.receiver.close()
        await asyncio.sleep(0)


def test_short_texts_and_conversations_go_over_the_link() -> None:
    async def scenario() -> None:
        async with site() as own:
            assert await own.client.encode("aé\U0001f600", True, False) == [97, 233, 0x1F600]
            assert await own.client.encode_chat(CHAT, True, False, [], True) == [ord(c) for c in "Hello"]
            texts = [f"text {i}" for i in range(50)]
            ids = await asyncio.gather(*(own.client.encode(text, True, True) for text in texts))
            assert ids == [[ord(c) for c in text] for text in texts]
            assert own.over_link[:2] == [
                (0, "encode", ["aé\U0001f600", True, False, None]),
                (0, "encode_chat", [CHAT, True, False, [], True, None]),
            ]
            assert not own.through_serve

    uvloop.run(scenario())


@pytest.mark.parametrize("text", ["x" * (SHORT_CHARS + 1), "\ud800"], ids=["long", "a lone surrogate"])
def test_what_the_link_does_not_carry_goes_through_serve(text: str) -> None:
    async def scenario() -> None:
        async with site() as own:
            assert await own.client.encode(text, True, True) == [ord(c) for c in text]
            assert await own.client.encode("short", True, True)
            assert len(own.through_serve) == len(own.over_link) == 1

    uvloop.run(scenario())


def test_numbers_that_the_link_does_not_carry_go_through_serve() -> None:
    async def scenario() -> None:
        async with site() as own:
            tools = [{"function": {"parameters": {"maximum": 2**80}}}]
            assert await own.client.encode_chat(CHAT, True, False, tools, False)
            assert own.through_serve == [("encode_chat", [CHAT, True, False, tools, False])]

    uvloop.run(scenario())


def test_errors_are_those_of_serves_call() -> None:
    async def refuse(method: str, arguments: Sequence[Any]) -> Sequence[int]:
        raise RequestError("the text is not right", "prompt")

    async def scenario() -> None:
        async with site() as own:
            own.run = refuse
            with pytest.raises(RequestError, match="the text is not right"):
                await own.client.encode("text", True, True)
            assert len(own.over_link) == len(own.through_serve) == 1
            own.run = codes
            own.serve_raises = [RayActorError()] * 3
            for link in own.links:
                link.close()
            await until(lambda: not own.connections())
            with pytest.raises(NotReadyError):
                await own.client.encode("text", True, True)

    uvloop.run(scenario())


def test_a_replica_that_dies_costs_no_request() -> None:
    async def scenario() -> None:
        async with site() as own:
            begun = asyncio.Event()

            async def hang(method: str, arguments: Sequence[Any]) -> Sequence[int]:
                own.run = codes
                begun.set()
                await asyncio.Event().wait()
                raise AssertionError

            own.run = hang
            ids = asyncio.create_task(own.client.encode("text", True, True))
            await begun.wait()
            own.links[0].close()
            assert await ids == [ord(c) for c in "text"]
            assert len(own.through_serve) == 1
            await until(lambda: not own.links[0]._calls)  # what ran for nobody has ended

    uvloop.run(scenario())


def test_calls_go_to_the_replica_with_the_fewest() -> None:
    async def scenario() -> None:
        async with site(replicas=3) as own:
            free = asyncio.Event()

            async def wait(method: str, arguments: Sequence[Any]) -> Sequence[int]:
                await free.wait()
                return await codes(method, arguments)

            own.run = wait
            calls = [asyncio.create_task(own.client.encode(str(i), True, True)) for i in range(9)]
            await until(lambda: len(own.over_link) == 9)
            assert [sum(replica == i for replica, *_ in own.over_link) for i in range(3)] == [3, 3, 3]
            calls.pop().cancel()  # its client has left; the reply that comes is for nobody
            free.set()
            assert await asyncio.gather(*calls) == [[ord(str(i))] for i in range(8)]

    uvloop.run(scenario())


def test_only_replicas_that_say_so_and_are_heard_get_texts() -> None:
    async def scenario() -> None:
        async with site(replicas=2) as own:
            reports = [
                ReplicaReport("new", (), "", own.links[0].id, takes_texts=True),
                ReplicaReport("of an older release", (), "", own.links[1].id),
            ]

            async def reply(report: ReplicaReport) -> ReplicaReport:
                return report

            async def each() -> list[Any]:
                return [SimpleNamespace(get_async=lambda report=report: reply(report)) for report in reports]

            handle: Any = SimpleNamespace(broadcast=lambda *_: SimpleNamespace(_fetch_replica_results_async=each))
            running = [RunningReplica(1, None, report.replica) for report in reports]
            updates = ReplicaUpdates(["Tokenizer"])
            updates.replicas["Tokenizer"] = running
            signs = SignsOfLife(own.receiver)
            replicas = WatchedReplicas("Tokenizer", handle, updates, own.receiver, signs)
            assert replicas.taking_texts(running) == []
            for report in await replicas.reports():
                await report
            (connection,) = replicas.taking_texts(running)
            assert connection is own.receiver.connection(own.links[0].id)
            assert replicas.taking_texts(running[1:]) == []  # the other is of another model
            for _ in range(5):  # nothing is heard meanwhile
                signs.look()
            assert replicas.taking_texts(running) == []
            own.links[0].beat()
            await until(lambda: connection.received > 1)
            signs.look()
            assert replicas.taking_texts(running) == [connection]

    uvloop.run(scenario())
