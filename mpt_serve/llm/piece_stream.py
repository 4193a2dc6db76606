"""Several requests as one stream of pieces, on the thread of whoever reads it."""

import queue
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mpt_serve.engine.request import Delta, EarlyReason
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.stats import EngineStats
from mpt_serve.errors import EngineClosedError
from mpt_serve.llm.completion import Piece
from mpt_serve.text.text_stream import TextStream


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt that the engine can take, and what is asked for it."""

    ids: tuple[int, ...]
    params: SamplingParams


class RequestRunner(Protocol):
    """What of an engine `stream_pieces` and `GenerationMixin` need; see `Engine`."""

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None: ...

    def submit(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        request_id: str | None = None,
        generated: Sequence[int] = (),
    ) -> str: ...

    def cancel(self, request_id: str, index: int | None = None, reason: EarlyReason = "cancelled") -> None: ...

    def stats(self) -> EngineStats: ...


def stream_pieces(
    runner: RequestRunner, prompts: Sequence[Prompt], new_text: Callable[[SamplingParams], TextStream] | None
) -> Generator[Piece]:
    """Submit the prompts when the first piece is asked for, and yield pieces as they come.

    Closing the stream, or an exception in it, cancels what is unfinished. new_text: makes the text of one choice; None
    for ids alone. Raises as `Engine.submit`, and `EngineClosedError` when the engine fails meanwhile.
    """
    inbox: queue.SimpleQueue[tuple[int, Delta]] = queue.SimpleQueue()
    batch = secrets.token_hex(8)
    names = [f"{batch}-{i}" for i in range(len(prompts))]  # known before a submission can be interrupted
    answers: dict[tuple[int, int], _Answer] = {}
    unfinished = sum(prompt.params.n for prompt in prompts)
    try:
        for i, prompt in enumerate(prompts):
            runner.submit(prompt.ids, prompt.params, lambda delta, i=i: inbox.put((i, delta)), names[i])  # type: ignore[misc]
        while unfinished:
            i, delta = inbox.get()
            if delta.finish_reason == "error" and (error := runner.stats().error):
                raise EngineClosedError(error)
            if (i, delta.index) not in answers:
                answers[i, delta.index] = _Answer(i, new_text(prompts[i].params) if new_text else None)
            answer = answers[i, delta.index]
            if answer.finished:  # at a stop string, before the engine knew
                continue
            piece = answer.advance(delta)
            if piece.finish_reason is not None:
                unfinished -= 1
                if delta.finish_reason is None:
                    runner.cancel(names[i], delta.index, "stop")
            yield piece
    finally:
        for name in names:
            runner.cancel(name)


class _Answer:
    """One choice: deltas in, pieces out."""

    def __init__(self, prompt_index: int, text: TextStream | None) -> None:
        self.finished = False
        self._prompt_index = prompt_index
        self._text = text

    def advance(self, delta: Delta) -> Piece:
        text, taken, matched = self._read(delta)
        finish_reason = delta.finish_reason if matched is None else "stop"
        self.finished = finish_reason is not None
        return Piece(
            prompt_index=self._prompt_index,
            index=delta.index,
            text=text,
            token_ids=delta.token_ids[:taken],
            finish_reason=finish_reason,
            stop_reason=delta.stop_reason if matched is None else matched,
            logprobs=None if delta.logprobs is None else delta.logprobs[:taken],
            error=delta.message,
            num_cached_tokens=delta.num_cached_tokens,
            prompt_logprobs=delta.prompt_logprobs,
        )

    def _read(self, delta: Delta) -> tuple[str | None, int, str | None]:
        """The delta's text, how many of its ids belong to the answer, and the stop string that ended it."""
        ids = delta.token_ids
        if self._text is None:
            return None, len(ids), None
        shown = ids[:-1] if delta.finish_reason == "stop" else ids  # the id that ended the text is not part of it
        text, taken, matched = self._text.push(shown)
        if matched is not None:
            return text, taken, matched
        if delta.finish_reason is not None:
            rest, matched = self._text.finish()
            text += rest
        return text, len(ids), matched
