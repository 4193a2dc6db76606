"""A request that outlives the replicas that work on it."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from ray.exceptions import RayActorError

from mpt_serve.deployments.merge import merged
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import EngineClosedError
from mpt_serve.openai.errors import NotReadyError

__all__ = ["FailoverStream", "OpenStream"]

logger = logging.getLogger("ray.serve")

_MAX_MOVES = 3  # times one choice is taken to another replica
_MOVE_PAUSE_S = 1.0  # before the second move; twice that before the third

# Starts a request on some replica: its parameters, and the ids that the one choice has already.
OpenStream = Callable[[SamplingParams, tuple[int, ...]], AsyncGenerator[Delta, None]]


@dataclass
class _Choice:
    index: int
    answer: list[int] = field(default_factory=list)
    finished: bool = False


class FailoverStream:
    """One prompt and all its choices, as deltas from whichever replicas serve them.

    One replica makes all choices, since they share the prompt. When it dies or shuts its engine down, others go on with
    each unfinished choice, from the prompt and the ids so far: what a choice's next id depends on (seed, choice, and
    the ids before) is the same there, so it goes on as the first would have. A request whose own step failed is not
    taken further: it could fail every replica in turn.

    unwanted: choices that the reader wants nothing more of; what `open_stream` opens ends them.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        prompt_tokens: int,
        params: SamplingParams,
        name: str,
        unwanted: Set[int] = frozenset(),
    ) -> None:
        self._open_stream = open_stream
        self._prompt_tokens = prompt_tokens
        self._params = params if params.seed is not None else replace(params, seed=secrets.randbits(63))
        self._name = name
        self._unwanted = unwanted
        self._choices = {params.choice_index + i: _Choice(params.choice_index + i) for i in range(params.n)}
        self._prompt_told = params.prompt_logprobs is None
        self._cached_tokens: int | None = None  # of the first replica, which read the prompt for all

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield the news about all choices; closing the iterator ends them in their engines."""
        try:
            async with aclosing(self._segment(self._params, ())) as first:
                async for delta in first:
                    yield delta
            return
        except (RayActorError, EngineClosedError) as error:
            unfinished = [choice for choice in self._choices.values() if self._goes_on(choice)]
            self._log(error, unfinished)
        async with aclosing(merged([self._continued(choice) for choice in unfinished])) as others:
            async for delta in others:
                yield delta

    async def _continued(self, choice: _Choice) -> AsyncGenerator[Delta, None]:
        for move in range(1, _MAX_MOVES + 1):
            answer = tuple(choice.answer)
            if answer and len(answer) == self._params.max_tokens:  # only the news of its end was lost
                yield Delta((), "length", None, self._prompt_tokens, self._cached_tokens or 0, index=choice.index)
                return
            await asyncio.sleep(_MOVE_PAUSE_S * (move - 1))
            try:
                async with aclosing(self._segment(self._alone(choice), answer)) as segment:
                    async for delta in segment:
                        yield delta
                return
            except (RayActorError, EngineClosedError) as error:
                if not self._goes_on(choice):
                    return
                if move == _MAX_MOVES:
                    raise NotReadyError(f"The request was lost with {1 + move} replicas.", code="loading") from error
                self._log(error, [choice])

    def _goes_on(self, choice: _Choice) -> bool:
        return not choice.finished and choice.index not in self._unwanted

    def _alone(self, choice: _Choice) -> SamplingParams:
        """Return the parameters of one choice; the first still owes the prompt's log probabilities, if nobody told."""
        owes = choice.index == self._params.choice_index and not self._prompt_told
        prompt_logprobs = self._params.prompt_logprobs if owes else None
        return replace(self._params, n=1, choice_index=choice.index, prompt_logprobs=prompt_logprobs)

    async def _segment(self, params: SamplingParams, generated: tuple[int, ...]) -> AsyncGenerator[Delta, None]:
        """Yield one replica's deltas until its choices have finished. Raises EngineClosedError where it gives up."""
        unfinished = params.n
        # Closed here and now: a request is cancelled before the end of this iterator is seen.
        async with aclosing(self._open_stream(params, generated)) as stream:
            async for delta in stream:
                if delta.finish_reason == "cancelled":  # not by us: the engine shuts down
                    raise EngineClosedError("the engine was closed")
                yield self._noted(delta)
                unfinished -= delta.finish_reason is not None
                if unfinished == 0:
                    return

    def _noted(self, delta: Delta) -> Delta:
        choice = self._choices[delta.index]
        choice.answer += delta.token_ids
        choice.finished = delta.finish_reason is not None
        self._prompt_told = self._prompt_told or delta.prompt_logprobs is not None
        if self._cached_tokens is None:
            self._cached_tokens = delta.num_cached_tokens
        return replace(delta, num_cached_tokens=self._cached_tokens)

    def _log(self, error: Exception, choices: Sequence[_Choice]) -> None:
        tokens = sum(len(choice.answer) for choice in choices)
        logger.warning("%s: %s after %d tokens; moving on", self._name, type(error).__name__, tokens)
