"""The bridge from the engine's thread to the event loop."""

import asyncio
import threading
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mpt_serve.deployments.delta_mailbox import DeltaMailbox
from mpt_serve.engine.request import Delta, TokenLogprobs


def delta(*ids: int, end: bool = False) -> Delta:
    return Delta(ids, "length" if end else None, None, 3)


def test_the_first_comes_at_once_and_the_rest_is_merged_while_the_reader_is_busy() -> None:
    async def scenario() -> None:
        stream = DeltaMailbox(asyncio.get_running_loop()).subscribe()
        stream.post(delta(1))
        assert (await anext(stream)).token_ids == (1,)
        for item in (delta(2), delta(3), delta(4, end=True)):
            stream.post(item)
        merged = await anext(stream)
        assert (merged.token_ids, merged.finish_reason, merged.num_prompt_tokens) == ((2, 3, 4), "length", 3)
        assert await anext(stream, None) is None

    asyncio.run(scenario())


def test_choices_are_merged_separately() -> None:
    def part(index: int, token_id: int, end: bool = False, prompt: bool = False) -> Delta:
        entry = TokenLogprobs(-float(token_id), 1, ((token_id, -float(token_id)),))
        reason: Any = "length" if end else None
        return Delta(
            (token_id,), reason, None, 3, index=index, logprobs=(entry,), prompt_logprobs=(None,) * prompt or None
        )

    async def scenario() -> None:
        stream = DeltaMailbox(asyncio.get_running_loop()).subscribe(choices=2)
        for item in (
            part(4, 1, prompt=True),
            part(5, 2),
            part(4, 3),
            part(5, 4, end=True),
            part(4, 5, end=True),
        ):
            stream.post(item)
        first, second = [item async for item in stream]
        assert (first.index, first.token_ids, first.finish_reason) == (4, (1, 3, 5), "length")
        assert (second.index, second.token_ids, second.finish_reason) == (5, (2, 4), "length")
        assert [entry.logprob for entry in first.logprobs or ()] == [-1.0, -3.0, -5.0]
        assert (first.prompt_logprobs, second.prompt_logprobs) == ((None,), None)

    asyncio.run(scenario())


def test_one_wake_up_delivers_a_whole_step() -> None:
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
        streams = [mailbox.subscribe() for _ in range(32)]
        for stream in streams:
            stream.post(delta(7, end=True))
        assert [(await anext(stream)).token_ids for stream in streams] == [(7,)] * 32
        return wake_ups

    assert asyncio.run(scenario()) == 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 3)), min_size=1, max_size=8))
def test_nothing_is_lost_or_reordered_between_threads(requests: list[tuple[int, int]]) -> None:
    async def scenario() -> list[dict[int, list[int]]]:
        mailbox = DeltaMailbox(asyncio.get_running_loop())
        streams = [mailbox.subscribe(choices) for _, choices in requests]

        def engine() -> None:
            for position in range(max(length for length, _ in requests)):
                for stream, (length, choices) in zip(streams, requests, strict=True):
                    for index in range(choices if position < length else 0):
                        reason: Any = "length" if position == length - 1 else None
                        stream.post(Delta((position,), reason, None, 3, index=index))

        async def read(number: int) -> dict[int, list[int]]:
            outputs: dict[int, list[int]] = {}
            async for item in streams[number]:
                outputs.setdefault(item.index, []).extend(item.token_ids)
            return outputs

        thread = threading.Thread(target=engine)
        thread.start()
        outputs = await asyncio.gather(*(read(number) for number in range(len(streams))))
        thread.join()
        return outputs

    expected = [{index: list(range(length)) for index in range(choices)} for length, choices in requests]
    assert asyncio.run(scenario()) == expected
