"""Texts become ids: the same on every lane, and short ones never wait for long ones."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mpt_serve.configuration.model_folder import tokenizer_folder
from mpt_serve.deployments import encoding_lanes
from mpt_serve.deployments.encoding_lanes import EncodingLanes
from mpt_serve.errors import BusyError
from mpt_serve.text.encode_process import EncodeProcess
from mpt_serve.text.tokenizer import TextTokenizer

TOKENIZER = TextTokenizer.from_folder(tokenizer_folder("embedded"))


@asynccontextmanager
async def lanes() -> AsyncIterator[EncodingLanes]:
    own = EncodingLanes(TOKENIZER)
    try:
        yield own
    finally:
        own.close()


@pytest.mark.parametrize("chars", [3, 20_000, 140_000])
def test_every_lane_makes_the_same_ids(chars: int) -> None:
    text = ("Zoë said “hi” <|im_start|>\n🎉 \u0301 12345   " * 10_000)[:chars]

    async def scenario() -> None:
        async with lanes() as own:
            assert list(await own.encode(text, add_special_tokens=True)) == TOKENIZER.encode(text)

    asyncio.run(scenario())


def test_short_texts_pass_long_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The long lanes are held up until the short text has its ids."""
    release = threading.Event()

    def held(self: EncodeProcess, text: str, add_special_tokens: bool = True) -> list[int]:
        assert release.wait(60)
        return [len(text)]

    monkeypatch.setattr(EncodeProcess, "encode", held)

    async def scenario() -> None:
        async with lanes() as own:
            long = [asyncio.create_task(own.encode("a" * size, True)) for size in (500_000, 500_000, 100_000)]
            await asyncio.sleep(0)
            for _ in range(20):
                assert await own.encode("hello", True) == TOKENIZER.encode("hello")
            assert not any(task.done() for task in long)
            release.set()
            assert await asyncio.gather(*long) == [[500_000], [500_000], [100_000]]

    asyncio.run(scenario())


def test_waiting_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_lanes, "_MAX_WAITING_CHARS", 250_000)
    release = threading.Event()

    def held(self: EncodeProcess, text: str, add_special_tokens: bool = True) -> list[int]:
        assert release.wait(60)
        return [len(text)]

    monkeypatch.setattr(EncodeProcess, "encode", held)

    async def scenario() -> None:
        async with lanes() as own:
            text = "a" * 200_000
            first = asyncio.create_task(own.encode(text, True))
            await asyncio.sleep(0)
            with pytest.raises(BusyError):
                await own.encode(text, True)
            release.set()
            await first
            await asyncio.sleep(0)
            assert await own.encode("a" * 300_000, True) == [300_000]  # alone, it is always taken

    asyncio.run(scenario())


def test_the_event_loop_runs_while_texts_are_encoded() -> None:
    """Two texts of four million characters, straight through the class: the loop has many turns meanwhile."""

    async def scenario() -> int:
        turns = 0
        async with lanes() as own:
            tasks = [asyncio.create_task(own.encode("the cat sat " * 333_000, True)) for _ in range(2)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.001)
                turns += 1
            assert len({len(task.result()) for task in tasks}) == 1
        return turns

    assert asyncio.run(scenario()) > 50
