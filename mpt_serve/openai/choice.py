"""One choice of an answer: the engine's deltas in, text out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mpt_serve.engine.request import Delta
from mpt_serve.openai.backend import Detokenizer
from mpt_serve.openai.errors import InternalServerError, ShuttingDownError
from mpt_serve.openai.usage import Usage
from mpt_serve.text.stop import StopMatcher

__all__ = ["Choice", "ChoicePart"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChoicePart:
    """What one delta adds to a choice. The text may be empty; with a finish_reason it is the last part."""

    index: int
    text: str
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the stop string or the request's own stop id; null for end of text


class Choice:
    """Detokenizes one choice, ends it at stop strings and counts its tokens."""

    def __init__(
        self,
        index: int,
        prompt_tokens: int,
        detokenizer: Detokenizer,
        matcher: StopMatcher,
        stop_token_ids: Sequence[int] = (),
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self.index = index
        self.usage = Usage(prompt_tokens)
        self._detokenizer = detokenizer
        self._matcher = matcher
        self._stop_token_ids = frozenset(stop_token_ids)
        self._include_stop = include_stop
        self._unmatched = min_tokens  # tokens to come whose text no stop string may end

    def advance(self, delta: Delta) -> ChoicePart:
        """Take the engine's next delta. Raises an ApiError if the engine gave the request up."""
        self._count(0, delta.num_cached_tokens)
        if delta.finish_reason == "error":
            logger.error("the engine failed a request: %s", delta.message)
            raise InternalServerError
        if delta.finish_reason == "cancelled":
            raise ShuttingDownError("The server ended this request before it was complete.")
        text, matched = self._match(self._shown(delta))
        if matched is None:
            self._count(len(delta.token_ids) - len(self._shown(delta)))  # the id that ended the text
        if matched is None and delta.finish_reason is not None:
            text, matched = self._finish(text)
        if matched is not None:
            return ChoicePart(self.index, text, "stop", matched)
        return ChoicePart(self.index, text, delta.finish_reason, self._stop_id(delta))

    def _shown(self, delta: Delta) -> Sequence[int]:
        """Return the ids without the one that ended the text."""
        ends = delta.finish_reason == "stop" and not self._include_stop
        return delta.token_ids[:-1] if ends else delta.token_ids

    def _match(self, ids: Sequence[int]) -> tuple[str, str | None]:
        """Return the ids' text up to a stop string; the ids after it neither show nor count, however they came."""
        free, rest = ids[: self._unmatched], ids[self._unmatched :]
        self._unmatched -= len(free)
        self._count(len(free))
        text = self._detokenizer.push(free) if free else ""
        runs = [rest] if self._matcher.idle else [rest[i : i + 1] for i in range(len(rest))]
        for run in runs:
            self._count(len(run))
            found, matched = self._matcher.push(self._detokenizer.push(run))
            text += found
            if matched is not None:
                return text, matched
        return text, None

    def _count(self, tokens: int, cached_tokens: int = 0) -> None:
        so_far = self.usage
        cached = max(so_far.cached_tokens, cached_tokens)
        self.usage = Usage(so_far.prompt_tokens, so_far.completion_tokens + tokens, cached)

    def _finish(self, text: str) -> tuple[str, str | None]:
        found, matched = self._matcher.push(self._detokenizer.flush())
        return text + found + ("" if matched is not None else self._matcher.flush()), matched

    def _stop_id(self, delta: Delta) -> int | None:
        return delta.stop_reason if delta.stop_reason in self._stop_token_ids else None
