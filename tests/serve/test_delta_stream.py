"""The bridge from the engine's thread to the event loop."""

import asyncio
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from mpt_serve.deployments.delta_stream import DeltaMailbox
from mpt_serve.engine.request import Delta


def delta(*ids: int, end: bool = False) -> Delta:
    return Delta(ids, "length" if end else None, None, 3)


def test_the_first_leaves_at_once_and_the_rest_is_merged_while_the_reader_is_away() -> None:
    async def scenario() -> None:
        stream = DeltaMailbox(asyncio.get_running_loop()).stream()
        stream.post(delta(1))
        assert (await anext(stream)).token_ids == (1,)
        for item in (delta(2), delta(3), delta(4, end=True)):
            stream.post(item)
        merged = await anext(stream)
        assert (merged.token_ids, merged.finish_reason, merged.num_prompt_tokens) == ((2, 3, 4), "length", 3)
        assert await anext(stream, None) is None

    asyncio.run(scenario())


def test_one_wake_up_takes_a_whole_step() -> None:
    async def scenario() -> int:
        loop = asyncio.get_running_loop()
        wake_ups = 0
        plain = loop.call_soon_threadsafe

        def counting(*args: object) -> object:
            nonlocal wake_ups
            wake_ups += 1
            return plain(*args)

        loop.call_soon_threadsafe = counting  # type: ignore[method-assign, assignment]
        mailbox = DeltaMailbox(loop)
        streams = [mailbox.stream() for _ in range(32)]
        for stream in streams:
            stream.post(delta(7, end=True))
        assert [(await anext(stream)).token_ids for stream in streams] == [(7,)] * 32
        return wake_ups

    assert asyncio.run(scenario()) == 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_nothing_is_lost_or_reordered_between_threads(lengths: list[int]) -> None:
    async def scenario() -> list[list[int]]:
        mailbox = DeltaMailbox(asyncio.get_running_loop())
        streams = [mailbox.stream() for _ in lengths]

        def engine() -> None:
            for position in range(max(lengths)):
                for stream, length in zip(streams, lengths, strict=True):
                    if position < length:
                        stream.post(delta(position, end=position == length - 1))

        async def read(number: int) -> list[int]:
            return [token async for item in streams[number] for token in item.token_ids]

        thread = threading.Thread(target=engine)
        thread.start()
        answers = await asyncio.gather(*(read(number) for number in range(len(streams))))
        thread.join()
        return answers

    assert asyncio.run(scenario()) == [list(range(length)) for length in lengths]
