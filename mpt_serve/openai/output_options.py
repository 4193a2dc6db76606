"""What an answer tells about its tokens, beside the text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mpt_serve.openai.errors import InvalidValueError
from mpt_serve.openai.fields import Field, Offered
from mpt_serve.openai.kinds import Boolean, Integer

__all__ = ["REPORT_FIELDS", "OutputOptions"]

REPORT_FIELDS: tuple[Field, ...] = (
    Offered(
        "prompt_logprobs",
        Integer(0, 20),
        "Log probabilities of the prompt's tokens and of so many of the likeliest ones; not with `stream`.",
        shown_default="none",
    ),
    Offered("return_token_ids", Boolean(), "Answer with `prompt_token_ids` and `token_ids`, too.", False),
    Offered("return_tokens_as_token_ids", Boolean(), "Name every token by its id, as `token_id:64`.", False),
)


@dataclass(frozen=True)
class OutputOptions:
    """One request's wishes. Numbers are of alternatives beside the token itself, None for no log probabilities."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False

    @classmethod
    def from_values(cls, values: Mapping[str, Any], logprobs: int | None, echo: bool = False) -> "OutputOptions":
        """Build from parsed fields. Raises InvalidValueError."""
        if values["prompt_logprobs"] is not None and values["stream"]:
            raise InvalidValueError("'prompt_logprobs' comes only without 'stream'.", param="prompt_logprobs")
        return cls(
            logprobs,
            values["prompt_logprobs"],
            echo,
            values["return_token_ids"],
            values["return_tokens_as_token_ids"],
        )

    @property
    def by_token(self) -> bool:
        """The answer tells something of each generated token."""
        return self.logprobs is not None or self.token_ids

    @property
    def engine_prompt_logprobs(self) -> int | None:
        """What the engine is asked for about the prompt: enough for `prompt_logprobs` and for the echo."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((count for count in wanted if count is not None), default=None)
