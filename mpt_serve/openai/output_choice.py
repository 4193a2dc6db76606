"""One choice of an output: the engine's deltas in, text and tokens out."""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mpt_serve.engine.request import NO_NUMBERS_MESSAGE, NO_STATES_MESSAGE, Delta, TokenLogprobs
from mpt_serve.openai.errors import InternalServerError, ShuttingDownError
from mpt_serve.text.text_stream import TextStream

__all__ = ["ChoicePart", "OutputChoice", "Token"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its position in the choice's text.

    offset: characters of the text before it; for part of a character, before that character.
    logprobs: None if they were not requested, and for the first token of a prompt.
    adds_text: whether it is part of the text, as the token that ended the text is not.
    """

    token_id: int
    offset: int
    logprobs: TokenLogprobs | None = None
    of_prompt: bool = False
    adds_text: bool = True


@dataclass(frozen=True, slots=True)
class ChoicePart:
    """A piece of a choice. The text may be empty; with a finish_reason it is the last piece."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None  # the stop string or the request's own stop id; None for the end of text
    tokens: tuple[Token, ...] = ()  # those whose text this piece completes, if the response reports tokens
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None  # in the first piece
    hidden_states: bytes | None = None  # as in `Delta`, in the last piece

    @property
    def generated_ids(self) -> list[int]:
        """Return the ids of `tokens` that are not the prompt's."""
        return [token.token_id for token in self.tokens if not token.of_prompt]

    @classmethod
    def joined(cls, parts: Sequence["ChoicePart"]) -> "ChoicePart":
        """Return the pieces of one choice as one piece."""
        first, last = parts[0], parts[-1]
        if first is last:
            return first
        return cls(
            first.index,
            "".join(part.text for part in parts),
            last.finish_reason,
            last.stop_reason,
            tuple(token for part in parts for token in part.tokens),
            first.prompt_logprobs,
            last.hidden_states,
        )


class OutputChoice:
    """Turns the deltas of one choice into pieces of text, ends it at stop strings, and counts its tokens.

    stop_token_ids: the request's own, which are reported as stop_reason.
    include_stop: the id that ends the text is part of it.
    completion_tokens: so far, including the id that ended the text.
    """

    def __init__(
        self, index: int, text: TextStream, stop_token_ids: Sequence[int] = (), include_stop: bool = False
    ) -> None:
        self.index = index
        self.completion_tokens = 0
        self.finished = False
        self._text = text
        self._stop_token_ids = frozenset(stop_token_ids)
        self._include_stop = include_stop
        self._logprobs: deque[TokenLogprobs] = deque()  # of tokens whose text is not complete yet
        self._total_logprob = 0.0

    @property
    def mean_logprob(self) -> float:
        """Return the mean log probability of the tokens so far; 0 without tokens."""
        return self._total_logprob / max(1, self.completion_tokens)

    def advance(self, delta: Delta) -> ChoicePart:
        """Return the piece that the engine's next delta adds. Raises an ApiError if the engine gave the request up."""
        if delta.finish_reason == "error":
            if delta.message in (NO_NUMBERS_MESSAGE, NO_STATES_MESSAGE):  # the engine has logged it
                raise InternalServerError(f"{delta.message[0].upper()}{delta.message[1:]}.")
            logger.error("the engine failed a request: %s", delta.message)
            raise InternalServerError
        if delta.finish_reason == "cancelled":
            raise ShuttingDownError("The server ended this request before it was complete.")
        text, matched = self._read(delta)
        finish_reason = delta.finish_reason if matched is None else "stop"
        self.finished = finish_reason is not None
        stop_reason = self._stop_id(delta) if matched is None else matched
        tokens = self._take_tokens()
        return ChoicePart(self.index, text, finish_reason, stop_reason, tokens, hidden_states=delta.hidden_states)

    def _read(self, delta: Delta) -> tuple[str, str | None]:
        """Return the delta's text up to a stop string, and that string. Ids after it are not counted."""
        ids = delta.token_ids
        # The id that ended the text is not part of it.
        shown = ids[:-1] if delta.finish_reason == "stop" and not self._include_stop else ids
        text, taken, matched = self._text.push(shown)
        if matched is None and delta.finish_reason is not None:
            taken = len(ids)
            rest, matched = self._text.finish(ids[len(shown) :])
            text += rest
        self.completion_tokens += taken
        for logprobs in (delta.logprobs or ())[:taken]:
            self._total_logprob += logprobs.logprob
            if self._text.tracks_tokens:
                self._logprobs.append(logprobs)
        return text, matched

    def _take_tokens(self) -> tuple[Token, ...]:
        """Return the tokens that the last piece of text completes, with their log probabilities."""
        if not self._text.tracks_tokens:
            return ()
        return tuple(
            Token(
                token.token_id,
                token.offset,
                self._logprobs.popleft() if self._logprobs else None,
                adds_text=token.adds_text,
            )
            for token in self._text.take_tokens()
        )

    def _stop_id(self, delta: Delta) -> int | None:
        return delta.stop_reason if delta.stop_reason in self._stop_token_ids else None
