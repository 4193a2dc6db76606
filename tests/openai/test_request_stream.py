"""The queue between the backend and the response: parts are joined while the reader is busy, and errors come last."""

import asyncio
from collections.abc import Awaitable, Callable, Set

import pytest
from fake_backend import FakeBackend

from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import GenerationRequest, OnDelta
from mpt_serve.openai.output_choice import ChoicePart, OutputChoice
from mpt_serve.openai.prompt_stream import PromptStream
from mpt_serve.openai.request_stream import RequestStream
from mpt_serve.text.text_stream import TextStream

Script = Callable[[OnDelta], Awaitable[None]]


class ScriptedBackend(FakeBackend):
    """Runs the script of each prompt, which is its first id."""

    def __init__(self, *scripts: Script) -> None:
        super().__init__()
        self._scripts = scripts

    async def generate(self, request: GenerationRequest, on_delta: OnDelta, stopped_choices: Set[int]) -> None:
        await self._scripts[request.ids[0]](on_delta)


def output_of(*scripts: Script, choices: int = 1) -> RequestStream:
    backend = ScriptedBackend(*scripts)
    prompts = []
    for number in range(len(scripts)):
        request = GenerationRequest([number], SamplingParams(n=choices), None, "r")
        own = [OutputChoice(number * choices + i, TextStream(backend.tokenizer)) for i in range(choices)]
        prompts.append(PromptStream(request, own))
    return RequestStream(backend, prompts)


def delta(text: str, index: int = 0, end: bool = False) -> Delta:
    ids = tuple(FakeBackend().tokenizer.encode(text))
    return Delta(ids, "length" if end else None, None, 1, index=index)


def test_parts_of_a_choice_are_joined_while_the_reader_is_busy() -> None:
    async def script(on_delta: OnDelta) -> None:
        for part in (delta("a", 1), delta("b", 0), delta("c", 1), delta("d", 0, end=True), delta("e", 1, end=True)):
            on_delta(part)

    async def scenario() -> list[ChoicePart]:
        async with output_of(script, choices=2) as output:
            parts = await output.next()
            assert output.done
            return parts

    assert asyncio.run(scenario()) == [ChoicePart(1, "ace", "length"), ChoicePart(0, "bd", "length")]


def test_an_error_comes_after_the_parts_before_it_and_ends_the_output() -> None:
    failed = asyncio.Event()

    async def failing(on_delta: OnDelta) -> None:
        on_delta(delta("a"))
        failed.set()
        raise KeyError("broken")

    async def other(on_delta: OnDelta) -> None:
        await failed.wait()
        await asyncio.sleep(0)
        on_delta(delta("b", end=True))

    async def scenario() -> None:
        async with output_of(failing, other) as output:
            assert [part.text for part in await output.next()] == ["a"]
            for _ in range(5):
                await asyncio.sleep(0)
            with pytest.raises(KeyError, match="broken"):
                await output.next()

    asyncio.run(scenario())


def test_waiting_ends_without_parts_after_the_timeout() -> None:
    async def script(on_delta: OnDelta) -> None:
        await asyncio.Event().wait()

    async def scenario() -> None:
        async with output_of(script) as output:
            assert await output.next(timeout=0.01) == []
            assert not output.done

    asyncio.run(scenario())


def test_leaving_cancels_what_has_not_finished_and_waits_for_that() -> None:
    ended = []

    async def script(on_delta: OnDelta) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    async def scenario() -> None:
        async with output_of(script, script) as output:
            await output.next(timeout=0.001)

    asyncio.run(scenario())
    assert ended == [True, True]


def test_leaving_lets_what_has_finished_end_by_itself() -> None:
    """An error that cancels it would refer to itself, and stay until a garbage collection."""
    ended = []

    async def script(on_delta: OnDelta) -> None:
        on_delta(delta("text", end=True))
        await asyncio.sleep(0.01)
        ended.append(True)

    async def scenario() -> None:
        async with output_of(script) as output:
            while not output.done:
                await output.next()

    asyncio.run(scenario())
    assert ended == [True]


def test_deltas_of_a_choice_that_has_ended_are_dropped() -> None:
    backend = FakeBackend()
    request = GenerationRequest([1], SamplingParams(), None, "r")
    prompt = PromptStream(request, [OutputChoice(0, TextStream(backend.tokenizer, ["stop"]))])
    parts: list[ChoicePart] = []
    for text in ("a stop", "more"):
        prompt.advance(delta(text), parts.append)
    assert prompt.done
    assert prompt.stopped_choices == {0}
    assert [(part.text, part.finish_reason) for part in parts] == [("a ", "stop")]
