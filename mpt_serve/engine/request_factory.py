"""Checks of what callers submit, and the engine's own records of it; on the caller's thread."""

import operator
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence

from mpt_serve.engine.pooling import PooledStates
from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.request import Delta, Request
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.token_masks import Grammar, TokenMasks, mask_below
from mpt_serve.errors import RequestError


class RequestFactory:
    """Checks requests, and makes their choices. Thread-safe.

    vocab_size: the model's, which masks have bits for; ids from vocab_limit on are refused.
    embeds_width: the numbers in a row of prompt embeddings; None where the engine takes none.
    """

    def __init__(
        self,
        vocab_size: int,
        vocab_limit: int,
        eos_token_ids: Collection[int],
        max_model_len: int,
        block_size: int,
        embeds_width: int | None = None,
    ) -> None:
        self._vocab_limit = vocab_limit
        self._possible = mask_below(vocab_limit, vocab_size)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._embeds_width = embeds_width

    def check(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        with_grammar: bool = False,
        embeds: PromptEmbeds | None = None,
    ) -> None:
        """Raise `RequestError` for a request that the engine cannot take.

        with_grammar: whether the request comes with a grammar.
        """
        self._check_ids("the prompt", prompt_ids)
        self._check_length(len(prompt_ids), params)
        if embeds is not None:
            self._check_embeds(embeds, len(prompt_ids), params)
        if params.allowed_token_ids is not None:
            self._check_ids("allowed_token_ids", params.allowed_token_ids)
        self._check_ids("logprob_token_ids", params.logprob_token_ids or ())
        self._check_ids("logit_bias", (token for token, _ in params.biases))
        self._check_ids("bad_words", (token for word in params.bad_words for token in word))
        if with_grammar and params.ignore_eos:
            raise RequestError("ignore_eos must be false with a grammar: its output ends with an end-of-sequence id")
        if with_grammar and not self._eos_token_ids:
            raise RequestError(
                "a grammar needs an end-of-sequence id to end the output with, and this model has none: name one in"
                " the checkpoint's generation_config.json or tokenizer_config.json"
            )

    def make(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        request_id: str,
        generated: Sequence[int],
        grammar: Grammar | None,
        embeds: PromptEmbeds | None = None,
    ) -> list[Request]:
        """Return a request's choices, which are each other's siblings. Parameters are those of `Engine.submit`."""
        self.check(prompt_ids, params, with_grammar=grammar is not None, embeds=embeds)
        choices = self._choices(tuple(map(int, prompt_ids)), params, on_delta, request_id, grammar, embeds)
        if generated:
            self._resume(choices, list(generated))
        choices[0].extend_digests(len(prompt_ids), self._block_size)
        for request in choices[1:]:
            request.digests = list(choices[0].digests)
        return choices

    def _choices(
        self,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        request_id: str,
        grammar: Grammar | None,
        embeds: PromptEmbeds | None,
    ) -> list[Request]:
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_token_ids)
        shared = TokenMasks(params, stop_ids, self._possible)
        choices: list[Request] = []
        for i in range(params.n):
            token_masks = shared if grammar is None else shared.with_grammar(grammar.start())
            request = Request(
                request_id=request_id,
                prompt_ids=prompt_ids,
                params=params,
                seed=choices[0].seed if choices else _seed(params),
                max_output=min(params.max_tokens, self._max_model_len - len(prompt_ids)),
                choice_index=params.choice_index + i,
                stop_ids=stop_ids,
                on_delta=on_delta,
                siblings=choices,
                token_masks=token_masks if token_masks.binding else None,
                embeds=embeds,
                pooled=params.pooling and PooledStates(params.pooling, params.normalize, len(prompt_ids)),
                prompt_logprobs=[None] * min(max(1, params.prompt_logprobs_start), len(prompt_ids)),
            )
            choices.append(request)
        return choices

    def _resume(self, choices: list[Request], generated: list[int]) -> None:
        self._check_ids("generated", generated)
        request = choices[0]
        if len(choices) > 1 or len(generated) >= request.max_output or request.stop_ids & set(generated):
            raise RequestError("generated must be the unfinished output of one choice")
        request.resume(generated)

    def _check_length(self, num_prompt_tokens: int, params: SamplingParams) -> None:
        if num_prompt_tokens == 0:
            raise RequestError("the prompt is empty; it must have at least one token")
        min_output = min(1, params.max_tokens)
        if num_prompt_tokens + min_output > self._max_model_len:
            with_output = "with at least one output token " if min_output else ""
            raise RequestError(
                f"the prompt has {num_prompt_tokens} tokens; {with_output}it must be shorter than the "
                f"context length of {self._max_model_len}"
            )

    def _check_embeds(self, embeds: PromptEmbeds, num_prompt_tokens: int, params: SamplingParams) -> None:
        if self._embeds_width is None:
            raise RequestError("this engine takes no prompt embeddings: set prompt_embeds in its EngineConfig to true")
        width = embeds.rows.shape[1]
        if width != self._embeds_width:
            raise RequestError(
                f"prompt embeddings must have {self._embeds_width} numbers for each token, the model's hidden size,"
                f" not {width}"
            )
        if not 0 <= embeds.positions[0] <= embeds.positions[-1] < num_prompt_tokens:
            raise RequestError("prompt embeddings must stand at positions of the prompt")
        if params.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs must be null with prompt embeddings: they are no ids to be likely")

    def _check_ids(self, field: str, ids: Iterable[int]) -> None:
        """Raise `RequestError` unless all are ids of the vocabulary."""
        try:
            numbers = list(map(operator.index, ids))
        except TypeError:
            raise RequestError(f"{field} must be a sequence of integer token ids") from None
        if numbers and (min(numbers) < 0 or max(numbers) >= self._vocab_limit):
            wrong = next(number for number in numbers if not 0 <= number < self._vocab_limit)
            raise RequestError(
                f"{field}: token id {wrong} is not in the vocabulary: ids are 0 to {self._vocab_limit - 1}"
            )


def _seed(params: SamplingParams) -> int:
    return secrets.randbits(64) if params.seed is None else params.seed % 2**64
