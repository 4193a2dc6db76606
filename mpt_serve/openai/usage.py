"""Token counts as clients see them."""

from collections.abc import Iterable
from dataclasses import dataclass

from mpt_serve.openai.protocol.responses import UsageBody

__all__ = ["Usage"]


@dataclass(frozen=True)
class Usage:
    """The tokens of a request.

    Each prompt counts once, however many choices it has. Completion tokens are those of every choice that was
    generated, including the ids that ended a text.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0

    @classmethod
    def total(cls, parts: Iterable["Usage"]) -> "Usage":
        """Return the sum over prompts."""
        all_parts = tuple(parts)
        return cls(
            prompt_tokens=sum(part.prompt_tokens for part in all_parts),
            completion_tokens=sum(part.completion_tokens for part in all_parts),
            cached_tokens=sum(part.cached_tokens for part in all_parts),
        )

    def body(self) -> UsageBody:
        """Return the `usage` object of a response."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }
