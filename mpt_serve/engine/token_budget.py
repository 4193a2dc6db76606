"""The tokens of prompts that a step may compute beside its decode rows."""

from dataclasses import dataclass
from typing import Self

from mpt_serve.engine.request import Request
from mpt_serve.engine.step_rows import Row, StepRows

__all__ = ["MIN_PROMPT_TOKENS", "PromptLimits", "TokenBudget"]

MIN_PROMPT_TOKENS = 16  # that a step computes at least, where there are some


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """How many tokens a step with decode rows may have; None: as many as a step holds.

    tokens: with chunks of prompts; a few of their tokens always go in.
    pooled: with chunks of prompts whose hidden states are wanted, which may wait for another step.
    others: with chunks of prompts that are not expedited; None where that makes no difference.
    """

    tokens: int | None = None
    pooled: int | None = None
    others: int | None = None

    def next_step(self, max_tokens: int) -> int:
        """Return the tokens that the next step may have, whichever prompts it computes, of at most max_tokens."""
        return min(limit for limit in (max_tokens, self.tokens, self.others) if limit is not None)


@dataclass(slots=True)
class TokenBudget:
    """What is left for prompts in one step.

    pooled, background, others: of it for those whose hidden states are wanted, for those that nobody waits for, and for
        those that are not expedited.
    """

    tokens: int
    pooled: int
    background: int
    others: int

    @classmethod
    def beside(cls, step: StepRows, limits: PromptLimits, max_tokens: int, background: int) -> Self:
        """Return what a step of decode rows leaves: with those that generate, no more than the limits.

        background: tokens left for requests that nobody waits for.
        """
        used = step.num_tokens
        tokens = pooled = max_tokens - used
        if step.num_samples and limits.tokens is not None:
            tokens = min(tokens, max(MIN_PROMPT_TOKENS, limits.tokens - used))
        if step.num_samples and limits.pooled is not None:
            pooled = max(0, limits.pooled - used)
        others = tokens
        if step.num_samples and limits.others is not None:
            others = min(tokens, max(MIN_PROMPT_TOKENS, limits.others - used))
        return cls(tokens, min(tokens, pooled), min(tokens, background), others)

    def of(self, request: Request) -> int:
        """Return how many tokens of a request's prompt the step may compute."""
        tokens = self.tokens if request.params.expedited else min(self.tokens, self.others)
        if request.pooled is not None:
            tokens = min(tokens, self.pooled)
        return min(tokens, self.background) if request.background else tokens

    def take(self, row: Row) -> None:
        """Subtract a row."""
        self.tokens -= row.length
        if not row.request.params.expedited:
            self.others -= row.length
        if row.request.pooled is not None:
            self.pooled -= row.length
        if row.request.background:
            self.background -= row.length
