"""Whether the engine can serve a request at all; what it says when it cannot."""

import operator
from collections.abc import Iterable, Sequence

from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import RequestError


def check_prompt(prompt_ids: Sequence[int], params: SamplingParams, vocab_limit: int, max_model_len: int) -> None:
    """Raises `RequestError` for a prompt, or ids in the parameters, that this engine cannot take."""
    check_ids("the prompt", prompt_ids, vocab_limit)
    if not len(prompt_ids):
        raise RequestError("the prompt is empty; it needs at least one token")
    answer = min(1, params.max_tokens)
    if len(prompt_ids) + answer > max_model_len:
        with_answer = "with at least one token of answer " if answer else ""
        raise RequestError(
            f"the prompt has {len(prompt_ids)} tokens; {with_answer}it must be shorter than the "
            f"context length of {max_model_len}"
        )
    if params.allowed_token_ids is not None:
        check_ids("allowed_token_ids", params.allowed_token_ids, vocab_limit)
    check_ids("logit_bias", (token for token, _ in params.biases), vocab_limit)
    check_ids("bad_words", (token for word in params.bad_words for token in word), vocab_limit)


def check_ids(field: str, ids: Iterable[int], vocab_limit: int) -> None:
    """Raises `RequestError` unless all are ids of the vocabulary."""
    try:
        numbers = list(map(operator.index, ids))
    except TypeError:
        raise RequestError(f"{field} must be a sequence of integer token ids") from None
    if numbers and (min(numbers) < 0 or max(numbers) >= vocab_limit):
        wrong = next(number for number in numbers if not 0 <= number < vocab_limit)
        raise RequestError(f"{field}: token id {wrong} is not in the vocabulary: ids are 0 to {vocab_limit - 1}")
