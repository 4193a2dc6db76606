"""Generated outputs as records: piece by piece for callers who read along, whole for callers who wait."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from mpt_serve.engine.request import FinishReason, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """An update of one choice of one prompt. Exactly one piece of a choice has a finish_reason, and it is its last.

    prompt_index: of the prompt in the batch. index: of the choice, as in `Choice`.
    text: may be empty, as half a character and what may become a stop string are held back. None without a tokenizer.
    num_cached_tokens, prompt_logprobs: of the prompt, as in `Completion`; the latter once, with the first choice.
    The other fields are those of `Choice`, for these ids.
    """

    prompt_index: int
    index: int
    text: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """One output for a prompt.

    index: params.choice_index ... params.choice_index + n - 1.
    text: without the stop string or stop id that ended it, and without special tokens; None without a tokenizer.
    token_ids: all generated ids, with the stop id, or the id that completed the stop string.
    stop_reason: the stop id or the stop string, when finish_reason is 'stop'.
    logprobs: one for each of token_ids, where the request wants them.
    error: the message, when finish_reason is 'error'.
    """

    index: int
    text: str | None
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: int | str | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str | None = None

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Self:
        """Join all the pieces of one choice."""
        last = pieces[-1]
        assert last.finish_reason is not None
        scored = last.logprobs is not None or any(piece.logprobs is not None for piece in pieces)
        return cls(
            index=last.index,
            text=None if last.text is None else "".join(piece.text or "" for piece in pieces),
            token_ids=tuple(token for piece in pieces for token in piece.token_ids),
            finish_reason=last.finish_reason,
            stop_reason=last.stop_reason,
            logprobs=tuple(entry for piece in pieces for entry in piece.logprobs or ()) if scored else None,
            error=last.error,
        )


@dataclass(frozen=True, slots=True)
class Completion:
    """All outputs for one prompt. Two are equal when prompt and outputs are, log probabilities included.

    prompt_ids: the ids that the model read.
    choices: params.n of them, in the order of their indices.
    num_cached_tokens: prompt tokens whose keys and values were reused from an earlier request.
    prompt_logprobs: one for each of prompt_ids, None for the first, where the request wants them.
    """

    prompt_ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    num_cached_tokens: int = field(default=0, compare=False)
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None

    @classmethod
    def of(cls, prompt_ids: Sequence[int], pieces: Iterable[Piece]) -> Self:
        """Join all the pieces of one prompt."""
        by_choice: defaultdict[int, list[Piece]] = defaultdict(list)
        for piece in pieces:
            by_choice[piece.index].append(piece)
        first = by_choice[min(by_choice)]
        return cls(
            prompt_ids=tuple(prompt_ids),
            choices=tuple(Choice.of(by_choice[index]) for index in sorted(by_choice)),
            num_cached_tokens=max(piece.num_cached_tokens for piece in first),
            prompt_logprobs=next((p.prompt_logprobs for p in first if p.prompt_logprobs is not None), None),
        )

    @property
    def num_prompt_tokens(self) -> int:
        """Return the length of the prompt."""
        return len(self.prompt_ids)

    @property
    def num_generated_tokens(self) -> int:
        """Return the number of generated tokens, over all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def text(self) -> str | None:
        """Return the text of the first choice."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Return the generated ids of the first choice."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        """Return the finish reason of the first choice."""
        return self.choices[0].finish_reason

    @property
    def stop_reason(self) -> int | str | None:
        """Return the stop id or stop string of the first choice."""
        return self.choices[0].stop_reason
