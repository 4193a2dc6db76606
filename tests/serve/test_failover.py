"""The choices of a request whose replica was lost continue side by side, and end together."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from ray.exceptions import RayActorError

from mpt_serve.deployments.failover import FailoverStream
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import GenerationRequest, OnDelta

Script = Callable[[OnDelta], Awaitable[None]]


class Choice:
    """Sends its ids as deltas, then raises or waits; records how it ended."""

    def __init__(self, index: int, *ids: int, error: Exception | None = None, hangs: bool = False) -> None:
        self.index = index
        self._ids, self._error, self._hangs = ids, error, hangs
        self.ended = False

    async def run(self, on_delta: OnDelta) -> None:
        try:
            for position, token_id in enumerate(self._ids, 1):
                last = position == len(self._ids) and not (self._hangs or self._error)
                on_delta(Delta((token_id,), "length" if last else None, None, 3, index=self.index))
                await asyncio.sleep(0)
            if self._hangs:
                await asyncio.Event().wait()
            if self._error is not None:
                raise self._error
        finally:
            self.ended = True


def moved(deltas: list[Delta], *choices: Choice) -> FailoverStream:
    """Return a request whose first replica is lost before its first delta, so that its choices run as these do."""

    async def run_segment(request: GenerationRequest, generated: tuple[int, ...], on_delta: OnDelta) -> None:
        if request.params.n > 1:
            raise RayActorError
        await choices[request.params.choice_index].run(on_delta)

    request = GenerationRequest([1, 2, 3], SamplingParams(n=len(choices)), None, "request")
    return FailoverStream(run_segment, request, deltas.append)


def test_everything_comes_and_each_choices_ids_in_order() -> None:
    deltas: list[Delta] = []
    asyncio.run(moved(deltas, Choice(0, 1, 2, 3), Choice(1, 11, 12)).run())
    assert [delta.token_ids for delta in deltas if delta.index == 0] == [(1,), (2,), (3,)]
    assert [delta.token_ids for delta in deltas if delta.index == 1] == [(11,), (12,)]
    assert deltas[1].index == 1  # side by side


def test_moves_and_their_pauses_are_counted() -> None:
    deltas: list[Delta] = []
    stream = moved(deltas, Choice(0, 1, 2), Choice(1, 11))
    asyncio.run(stream.run())
    assert stream._metrics.moves == 2
    assert sum(stream._metrics.histograms["move_pause"].counts) == 2


def test_an_exception_ends_the_other_choices() -> None:
    waits = Choice(0, 1, hangs=True)
    with pytest.raises(KeyError, match="broken"):
        asyncio.run(moved([], waits, Choice(1, 2, error=KeyError("broken"))).run())
    assert waits.ended


def test_cancelling_ends_all_choices_first() -> None:
    choices = [Choice(0, 1, hangs=True), Choice(1, 2, hangs=True)]

    async def scenario() -> None:
        deltas: list[Delta] = []
        task = asyncio.create_task(moved(deltas, *choices).run())
        while len(deltas) < 2:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(choice.ended for choice in choices)

    asyncio.run(scenario())
