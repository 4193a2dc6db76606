"""One choice of an answer: the engine's deltas in, text and tokens out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mpt_serve.engine.request import Delta, TokenLogprobs
from mpt_serve.openai.backend import Detokenizer
from mpt_serve.openai.errors import InternalServerError, ShuttingDownError
from mpt_serve.openai.token_alignment import Token, TokenAlignment
from mpt_serve.text.stop_strings import StopMatcher

__all__ = ["ChoicePart", "OutputChoice"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChoicePart:
    """A piece of a choice. The text may be empty; with a finish_reason it is the last piece."""

    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the stop string or the request's own stop id; null for end of text
    tokens: tuple[Token, ...] = ()  # those whose text is complete with this piece, where they are asked for
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None  # in the first piece

    @classmethod
    def of(cls, parts: Sequence["ChoicePart"]) -> "ChoicePart":
        """Return the pieces of one choice as one piece."""
        first, last = parts[0], parts[-1]
        return cls(
            first.index,
            "".join(part.text for part in parts),
            last.finish_reason,
            last.stop_reason,
            tuple(token for part in parts for token in part.tokens),
            first.prompt_logprobs,
        )


class OutputChoice:
    """Detokenizes one choice, ends it at stop strings, and counts and places its tokens.

    tokens: keeps the tokens until their text leaves; None where the answer tells nothing of them.
    completion_tokens: so far, the id that ended the text included.
    """

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        matcher: StopMatcher,
        stop_token_ids: Sequence[int] = (),
        include_stop: bool = False,
        tokens: TokenAlignment | None = None,
    ) -> None:
        self.index = index
        self.completion_tokens = 0
        self.finished = False
        self._detokenizer = detokenizer
        self._matcher = matcher
        self._stop_token_ids = frozenset(stop_token_ids)
        self._include_stop = include_stop
        self._tokens = tokens
        self._decoded = self._sent = 0  # characters
        self._total_logprob = 0.0

    @property
    def mean_logprob(self) -> float:
        """Mean log probability of the tokens so far; 0 without tokens."""
        return self._total_logprob / max(1, self.completion_tokens)

    def advance(self, delta: Delta) -> ChoicePart:
        """Take the engine's next delta. Raises an ApiError if the engine gave the request up."""
        if delta.finish_reason == "error":
            logger.error("the engine failed a request: %s", delta.message)
            raise InternalServerError
        if delta.finish_reason == "cancelled":
            raise ShuttingDownError("The server ended this request before it was complete.")
        text, matched = self._take(delta)
        if matched is None and delta.finish_reason is not None:
            rest, matched = self._matcher.finish(self._detokenizer.flush())
            text += rest
        finish_reason = delta.finish_reason if matched is None else "stop"
        self.finished = finish_reason is not None
        self._sent += len(text)
        stop_reason = self._stop_id(delta) if matched is None else matched
        return ChoicePart(self.index, text, finish_reason, stop_reason, self._leaving(text, matched))

    def _take(self, delta: Delta) -> tuple[str, str | None]:
        """Return the delta's text up to a stop string; the ids after it neither show nor count, however they came."""
        ids, logprobs = delta.token_ids, delta.logprobs
        if self._tokens is None and logprobs is None and self._matcher.idle:
            self.completion_tokens += len(ids)
            return self._detokenizer.push(ids[: self._shown(delta)]), None
        text = ""
        for position, token_id in enumerate(ids):
            own = logprobs[position] if logprobs is not None else None
            found, matched = self._take_one(token_id, own, position < self._shown(delta))
            text += found
            if matched is not None:
                return text, matched
        return text, None

    def _take_one(self, token_id: int, logprobs: TokenLogprobs | None, shown: bool) -> tuple[str, str | None]:
        self.completion_tokens += 1
        self._total_logprob += 0.0 if logprobs is None else logprobs.logprob
        text = self._detokenizer.push((token_id,)) if shown else ""
        begin, self._decoded = self._decoded, self._decoded + len(text)
        if self._tokens is not None:
            unfinished = shown and self._detokenizer.unfinished
            self._tokens.add(token_id, logprobs, begin, self._decoded, unfinished)
        return self._matcher.push(text)

    def _shown(self, delta: Delta) -> int:
        """Return how many of the delta's ids show: all but the one that ended the text."""
        ends = delta.finish_reason == "stop" and not self._include_stop
        return len(delta.token_ids) - ends

    def _leaving(self, text: str, matched: str | None) -> tuple[Token, ...]:
        """Return the tokens that go with a piece of text; none go alone before the end."""
        if self._tokens is None or not (text or self.finished):
            return ()
        if matched is not None:
            return self._tokens.cut(self._sent)
        return self._tokens.rest() if self.finished else self._tokens.release(self._sent)

    def _stop_id(self, delta: Delta) -> int | None:
        return delta.stop_reason if delta.stop_reason in self._stop_token_ids else None
