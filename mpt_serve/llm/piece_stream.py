"""Several requests as one stream of pieces, on the thread of its reader."""

import queue
import secrets
from collections.abc import Callable, Generator, Sequence

from mpt_serve.engine.engine import Engine
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.token_masks import Grammar
from mpt_serve.errors import EngineClosedError
from mpt_serve.llm.completion import Piece
from mpt_serve.llm.prompts import Prompt
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.text_stream import TextStream


def stream_pieces(
    engine: Engine,
    prompts: Sequence[Prompt],
    compile_grammar: Callable[[GrammarSpec], Grammar],
    new_text: Callable[[SamplingParams], TextStream] | None,
) -> Generator[Piece]:
    """Submit the prompts when the first piece is asked for, and yield pieces as they come.

    Closing the stream, or an exception in it, cancels what is unfinished. new_text: makes the text of one choice; None
    for ids alone. Raises as `Engine.submit`, and `EngineClosedError` when the engine fails meanwhile.
    """
    deltas: queue.SimpleQueue[tuple[int, Delta]] = queue.SimpleQueue()
    batch = secrets.token_hex(8)
    names = [f"{batch}-{i}" for i in range(len(prompts))]  # known before a submission can be interrupted
    choices: dict[tuple[int, int], _ChoiceStream] = {}
    unfinished = sum(prompt.params.n for prompt in prompts)
    try:
        for i, prompt in enumerate(prompts):
            grammar = None if prompt.grammar is None else compile_grammar(prompt.grammar)
            engine.submit(
                prompt.ids, prompt.params, _listener(deltas, i), names[i], grammar=grammar, embeds=prompt.embeds
            )
        while unfinished:
            i, delta = deltas.get()
            if delta.finish_reason == "error" and (error := engine.stats().error):
                raise EngineClosedError(error)
            choice = choices.get((i, delta.index))
            if choice is None:
                text = new_text(prompts[i].params) if new_text else None
                choice = choices[i, delta.index] = _ChoiceStream(i, text)
            if choice.finished:  # at a stop string, before the engine knew
                continue
            piece = choice.advance(delta)
            if piece.finish_reason is not None:
                unfinished -= 1
                if delta.finish_reason is None:
                    engine.cancel(names[i], delta.index, "stop")
            yield piece
    finally:
        for name in names:
            engine.cancel(name)


def _listener(deltas: "queue.SimpleQueue[tuple[int, Delta]]", prompt_index: int) -> Callable[[Delta], None]:
    """Return what queues the deltas of one prompt."""
    return lambda delta: deltas.put((prompt_index, delta))


class _ChoiceStream:
    """One choice: deltas in, pieces out."""

    def __init__(self, prompt_index: int, text: TextStream | None) -> None:
        self.finished = False
        self._prompt_index = prompt_index
        self._text = text

    def advance(self, delta: Delta) -> Piece:
        """Return the piece that a delta adds."""
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
        """Return a delta's text, how many of its ids belong to the output, and the stop string that ended it."""
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
