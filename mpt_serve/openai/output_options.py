"""What a response says about its tokens, beside the text."""

from dataclasses import dataclass

from mpt_serve.openai.protocol.sampling import SamplingRequest

__all__ = ["OutputOptions"]


@dataclass(frozen=True)
class OutputOptions:
    """One request's options. Numbers are of alternatives beside the token itself, None for no log probabilities."""

    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    token_ids: bool = False
    tokens_as_ids: bool = False
    named: bool = False  # `logprobs` ids that the request names, not the most likely ones
    usage: bool = False  # a stream ends with a chunk that has the usage

    @classmethod
    def of(cls, request: SamplingRequest) -> "OutputOptions":
        """Return the options of a request."""
        named = request.logprob_token_ids
        return cls(
            request.num_logprobs if named is None else len(named),
            request.prompt_logprobs,
            request.echo_prompt,
            request.return_token_ids,
            request.return_tokens_as_token_ids,
            named is not None,
            request.include_usage,
        )

    @property
    def by_token(self) -> bool:
        """Whether the response says something about each generated token."""
        return self.logprobs is not None or self.token_ids

    @property
    def engine_prompt_logprobs(self) -> int | None:
        """What the engine reports about the prompt: enough for `prompt_logprobs` and for the echo."""
        echoed = 0 if self.named else self.logprobs  # of a prompt's tokens, named ids have none
        counts = [self.prompt_logprobs, echoed if self.echo else None]
        return max((count for count in counts if count is not None), default=None)
