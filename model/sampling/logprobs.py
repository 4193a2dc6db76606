"""Log probabilities of chosen ids and of the most likely ones: the model's own, whatever was done to sample.

They are the float32 log-softmax of the raw logits over all V ids, padding of the vocabulary included. nan counts as
-inf, so that nothing becomes nan: an infinite logit shares all probability with its equals, and where every logit is
-inf all ids are equally likely.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from model.kernel_selection import SamplingKernels
from model.sampling.filters import row_sums, within
from mpt_serve.engine.sampling_params import MAX_LOGPROBS


class Logprobs(NamedTuple):
    """Of each row one id's log probability, and the most likely ids; zeros where not asked for.

    Rank 1 is the most likely: a rank is 1 + the number of all V ids with a larger logit. The most likely ids are below
    the vocabulary's limit, in order of falling logits, of equal ones the lowest id first; -1, with -inf, where the
    vocabulary has no more.
    """

    logprob: Array  # [S] float32
    rank: Array  # [S] int32
    top_ids: Array  # [S, MAX_LOGPROBS] int32
    top_logprobs: Array  # [S, MAX_LOGPROBS] float32


def logprobs_of(logits: Array, ids: Array, vocab_limit: int, kernel: SamplingKernels | None = None) -> Logprobs:
    """Of ids [P] under logits [P, V] float32, with all MAX_LOGPROBS most likely ids: log probabilities of a prompt."""
    return log_probabilities(logits, ids, jnp.full(ids.shape, MAX_LOGPROBS, jnp.int32), vocab_limit, kernel)


def log_probabilities(
    logits: Array, ids: Array, num_logprobs: Array, vocab_limit: int, kernel: SamplingKernels | None = None
) -> Logprobs:
    """Of ids [S] under logits [S, V] float32, with num_logprobs [S] int32 most likely ids; -1 asks for nothing.

    A step whose rows all ask for nothing does not read its logits. kernel: does the same, faster.
    """
    if kernel is not None:
        return Logprobs(*kernel.log_probabilities(logits, ids, num_logprobs, vocab_limit, MAX_LOGPROBS))
    S = ids.shape[0]
    nothing = Logprobs(
        jnp.zeros(S), jnp.zeros(S, jnp.int32), jnp.zeros((S, MAX_LOGPROBS), jnp.int32), jnp.zeros((S, MAX_LOGPROBS))
    )
    found = lax.cond(jnp.any(num_logprobs >= 0), lambda: _log_probabilities(logits, ids, vocab_limit), lambda: nothing)
    asked = num_logprobs >= 0
    listed = jnp.arange(MAX_LOGPROBS) < num_logprobs[:, None]
    return Logprobs(*(jnp.where(part, x, 0) for part, x in zip((asked, asked, listed, listed), found, strict=True)))


def _log_probabilities(logits: Array, ids: Array, vocab_limit: int) -> Logprobs:
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    best_ids = _most_likely(logits, vocab_limit)
    wanted = jnp.concatenate([ids[:, None], best_ids], axis=1)  # [S, 1 + MAX_LOGPROBS]
    chosen = jnp.take_along_axis(logits, jnp.maximum(wanted, 0), axis=1)
    top = jnp.max(logits, axis=1, keepdims=True)
    log_total = jnp.log(row_sums(jnp.exp(_below(logits, top))))[:, None]
    # One expression for the id and for the list: they hold the very same number.
    logprobs = jnp.where(wanted < 0, -jnp.inf, _below(chosen, top) - log_total)
    rank = 1 + jnp.sum(logits > chosen[:, :1], axis=1, dtype=jnp.int32)
    return Logprobs(logprobs[:, 0], rank, best_ids, logprobs[:, 1:])


def _most_likely(logits: Array, vocab_limit: int) -> Array:
    """[S, V] without nan -> [S, MAX_LOGPROBS] int32, -1 where vocab_limit leaves fewer ids."""
    count = min(MAX_LOGPROBS, vocab_limit)
    logits = within(logits, vocab_limit)
    logits = jnp.where(logits == 0, 0.0, logits)  # top_k puts -0.0 below 0.0
    # Of equal logits the lower index comes first, and so an id before the padding behind it.
    ids = lax.top_k(logits, count)[1]
    return jnp.pad(ids, ((0, 0), (0, MAX_LOGPROBS - count)), constant_values=-1)


def _below(logits: Array, top: Array) -> Array:
    """logits - top, and 0 where both are the same infinity."""
    return jnp.where(logits == top, 0.0, logits - top)
