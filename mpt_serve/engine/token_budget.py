"""The tokens of prompts that a step may compute beside its decode rows."""

from dataclasses import dataclass
from typing import Self

from mpt_serve.engine.request import Request
from mpt_serve.engine.step_rows import Row, StepRows

__all__ = ["PromptLimits", "TokenBudget"]

_MIN_PROMPT_TOKENS = 16  # that a step computes at least, where there are some


@dataclass(frozen=True, slots=True)
class PromptLimits:
    """How many tokens a step with decode rows may have; None: as many as a step holds.

    tokens: with chunks of prompts; a few of their tokens always go in.
    pooled: with chunks of prompts whose hidden states are wanted, which may wait for another step.
    """

    tokens: int | None = None
    pooled: int | None = None


@dataclass(slots=True)
class TokenBudget:
    """What is left for prompts in one step.

    pooled, background: of it for those whose hidden states are wanted, and for those that nobody waits for.
    """

    tokens: int
    pooled: int
    background: int

    @classmethod
    def beside(cls, step: StepRows, limits: PromptLimits, max_tokens: int, background: int) -> Self:
        """Return what a step of decode rows leaves: with those that generate, no more than the limits.

        background: tokens left for requests that nobody waits for.
        """
        used = step.num_tokens
        tokens = pooled = max_tokens - used
        if step.num_samples and limits.tokens is not None:
            tokens = min(tokens, max(_MIN_PROMPT_TOKENS, limits.tokens - used))
        if step.num_samples and limits.pooled is not None:
            pooled = max(0, limits.pooled - used)
        return cls(tokens, min(tokens, pooled), min(tokens, background))

    def of(self, request: Request) -> int:
        """Return how many tokens of a request's prompt the step may compute."""
        tokens = self.tokens if request.pooled is None else min(self.tokens, self.pooled)
        return min(tokens, self.background) if request.background else tokens

    def take(self, row: Row) -> None:
        """Subtract a row."""
        self.tokens -= row.length
        if row.request.pooled is not None:
            self.pooled -= row.length
        if row.request.background:
            self.background -= row.length
