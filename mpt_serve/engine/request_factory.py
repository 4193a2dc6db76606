"""From what a caller asks to the engine's own record of it; on the caller's thread."""

import secrets
from collections.abc import Callable, Collection, Sequence

from mpt_serve.engine.request import Delta, Request
from mpt_serve.engine.request_checks import check_ids, check_prompt
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.token_masks import TokenMasks, mask_below
from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.compiler import GrammarCompiler, LazyGrammarCompiler


class RequestFactory:
    """Checks requests, and makes their choices. Thread-safe.

    vocab_size: of the model, which masks have bits for; ids from vocab_limit on are refused.
    """

    def __init__(
        self,
        vocab_size: int,
        vocab_limit: int,
        eos_token_ids: Collection[int],
        max_model_len: int,
        block_size: int,
        guides: GrammarCompiler | LazyGrammarCompiler | None,
    ) -> None:
        self._vocab_limit = vocab_limit
        self._possible = mask_below(vocab_limit, vocab_size)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._guides = guides

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        """Raises `RequestError` for a request that the engine cannot take."""
        check_prompt(prompt_ids, params, self._vocab_limit, self._max_model_len)
        if params.guide is not None:
            self._guides_for(params).check(params.guide)

    def make(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        on_delta: Callable[[Delta], None],
        request_id: str,
        generated: Sequence[int],
    ) -> list[Request]:
        """A request's choices, which are each other's siblings. As `Engine.submit`, which says what is what."""
        check_prompt(prompt_ids, params, self._vocab_limit, self._max_model_len)
        choices = self._choices(tuple(map(int, prompt_ids)), params, on_delta, request_id)
        if generated:
            self._resume(choices, list(generated))
        choices[0].extend_digests(len(prompt_ids), self._block_size)
        for request in choices[1:]:
            request.digests = list(choices[0].digests)
        return choices

    def _choices(
        self, prompt_ids: tuple[int, ...], params: SamplingParams, on_delta: Callable[[Delta], None], request_id: str
    ) -> list[Request]:
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos_token_ids)
        guide = None if params.guide is None else self._guides_for(params).compile(params.guide)
        shared = TokenMasks(params, stop_ids, self._possible)
        choices: list[Request] = []
        for i in range(params.n):
            limits = shared.with_guide(guide.start()) if guide else shared
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
                limits=limits if limits.binding else None,
            )
            choices.append(request)
        return choices

    def _guides_for(self, params: SamplingParams) -> GrammarCompiler | LazyGrammarCompiler:
        """What compiles the request's guide. Raises RequestError where there is none, or the answer could not end."""
        if params.ignore_eos:
            raise RequestError("guided output ends with an end-of-sequence id, which ignore_eos would not let it do")
        if self._guides is None or not self._eos_token_ids:
            raise RequestError(
                "guided output needs the model's tokenizer, and an end-of-sequence id to end with: have the"
                " checkpoint's generation_config.json or tokenizer_config.json name one"
            )
        return self._guides

    def _resume(self, choices: list[Request], generated: list[int]) -> None:
        check_ids("generated", generated, self._vocab_limit)
        request = choices[0]
        if len(choices) > 1 or len(generated) >= request.max_output or request.stop_ids & set(generated):
            raise RequestError("generated must be the unfinished answer of one choice")
        request.resume(generated)


def _seed(params: SamplingParams) -> int:
    return secrets.randbits(64) if params.seed is None else params.seed % 2**64
