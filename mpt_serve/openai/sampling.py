"""A generating request checked against the served model, and made into the engine's parameters."""

from collections.abc import Sequence
from dataclasses import dataclass

from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import ModelInfo
from mpt_serve.openai.errors import ContextLengthError, InvalidValueError
from mpt_serve.openai.output_options import OutputOptions
from mpt_serve.openai.protocol.sampling import SamplingRequest
from mpt_serve.structured_outputs.spec import GrammarSpec

__all__ = ["SamplingOptions"]

# Smaller temperatures are as good as greedy, and smaller penalties overflow a division in float32. Of a smaller share
# of the probability the most likely token alone has more.
SMALLEST = 1e-5


@dataclass(frozen=True)
class SamplingOptions:
    """The sampling fields of one request; the prompt's length comes later.

    output: what the response contains. grammar: what the output must match. grammar_field: the field that says it.
    """

    request: SamplingRequest
    output: OutputOptions
    grammar: GrammarSpec | None
    grammar_field: str | None

    @classmethod
    def of(cls, request: SamplingRequest, model: ModelInfo) -> "SamplingOptions":
        """Return the options of a request to the model. Raises InvalidValueError."""
        request = request.with_defaults(model.sampling_defaults)
        _check_ids(request, model.vocab_len)
        grammar_field, grammar = request.output_grammar or (None, None)
        return cls(request, OutputOptions.of(request), grammar, grammar_field)

    def check_choices(self, prompts: int, limits: Limits) -> None:
        """Raise InvalidValueError for more choices than one request may have."""
        request = self.request
        if prompts * request.num_choices > limits.max_choices:
            param = "best_of" if request.num_choices > request.n else "n"
            message = f"'{param}' must not make more than {limits.max_choices} choices, over {prompts} prompts."
            raise InvalidValueError(message, param=param)

    def fit(self, ids: Sequence[int], model: ModelInfo, default_max_tokens: int | None, param: str) -> list[int]:
        """Return the prompt, cut if the request says so. Raises ContextLengthError if it does not fit."""
        requested = self.request.requested_tokens
        keep = self.request.truncate_prompt_tokens
        if keep == -1:
            default = default_max_tokens or model.max_model_len // 4
            keep = max(1, model.max_model_len - (default if requested is None else requested))
        if keep is not None and keep < len(ids):
            ids = ids[-keep:] if self.request.truncation_side == "left" else ids[:keep]
        if not ids:
            raise InvalidValueError(f"'{param}' is empty: there is no token to continue.", param=param)
        if len(ids) + (1 if requested is None else requested) > model.max_model_len:
            raise _too_long(len(ids), requested, model.max_model_len, param)
        return list(ids)

    def max_tokens_for(self, prompt_tokens: int, model: ModelInfo, default_max_tokens: int | None) -> int:
        """Return the number of tokens that may be generated for a prompt that fits.

        `default_max_tokens` is what an omitted `max_tokens` means where the context leaves that many; None takes all.
        """
        if self.request.requested_tokens is not None:
            return self.request.requested_tokens
        left = model.max_model_len - prompt_tokens
        return min(left, default_max_tokens or left)

    def params(self, max_tokens: int, bad_words: tuple[tuple[int, ...], ...] = ()) -> SamplingParams:
        """Return the engine's parameters, with `bad_words` as ids. Raises InvalidValueError."""
        request = self.request
        if request.min_tokens > max_tokens:
            message = f"'min_tokens' must not be above the number of tokens that may be generated, here {max_tokens}."
            raise InvalidValueError(message, param="min_tokens")
        logprobs = self.output.logprobs
        if request.logprob_token_ids is not None or (logprobs is None and request.num_choices > request.n):
            logprobs = 0  # the sampled ids alone, for the ranking or beside those that are named
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=request.min_tokens,
            temperature=0.0 if request.temperature < SMALLEST else request.temperature,
            top_k=max(0, request.top_k),
            top_p=max(SMALLEST, request.top_p),
            min_p=request.min_p,
            repetition_penalty=max(SMALLEST, request.repetition_penalty),
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            logit_bias=request.biases,
            allowed_token_ids=request.allowed_token_ids,
            bad_words=bad_words,
            seed=request.seed,
            n=request.num_choices,
            stop_token_ids=request.stop_token_ids,
            ignore_eos=request.ignore_eos,
            logprobs=logprobs,
            logprob_token_ids=request.logprob_token_ids,
            prompt_logprobs=self.output.engine_prompt_logprobs,
            priority=request.priority,
            cache_salt=request.cache_salt or "",
        )


def _check_ids(request: SamplingRequest, vocab_len: int) -> None:
    ids = {
        "stop_token_ids": request.stop_token_ids,
        "allowed_token_ids": request.allowed_token_ids or (),
        "logprob_token_ids": request.logprob_token_ids or (),
        "logit_bias": [token_id for token_id, _ in request.biases],
    }
    for name, own in ids.items():
        if (largest := max(own, default=0)) >= vocab_len:
            message = f"'{name}' must have ids of the tokenizer, from 0 to {vocab_len - 1}; got {largest}."
            raise InvalidValueError(message, param=name)


def _too_long(prompt_tokens: int, requested: int | None, limit: int, param: str) -> ContextLengthError:
    """Return the error for a prompt that does not fit. Client libraries look for the first two phrases."""
    least = 1 if requested is None else requested
    generated = "at least 1 token is" if requested is None else f"max_tokens = {requested} are"
    ways = []
    if least < limit:
        cut = ", which truncate_prompt_tokens cuts a prompt to" if param in ("prompt", "messages", "input") else ""
        ways.append(f"at most {limit - least} prompt tokens{cut}")
    if requested is not None and prompt_tokens < limit:
        ways.append(f"max_tokens of at most {limit - prompt_tokens}")
    advice = ", or ".join(ways) or f"a shorter prompt and a smaller max_tokens, together at most {limit}"
    output = f", and {generated} to be generated after it" if least else ""
    return ContextLengthError(
        f"This model's maximum context length is {limit} tokens, and the prompt is too long: it has {prompt_tokens}"
        f" tokens{output}. Send {advice}.",
        param=param,
    )
