"""Log probabilities of sampled ids and of the most likely ones: the model's own, before any sampling parameter.

They are the float32 log-softmax of the raw logits over all V ids, padding of the vocabulary included. nan counts as
-inf: an infinite logit shares all probability with its equals. Where every logit is -inf there is no distribution, and
every log probability is nan.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from model.sampling.batch import SamplingKernels
from model.sampling.filters import mask_impossible, row_sums


class Logprobs(NamedTuple):
    """One id's log probability for each row, and the most likely ids; zeros where a row wants none.

    Rank 1 is the most likely id: a rank is 1 + the number of ids, of all V, with a larger logit. The most likely ids
    are below the vocabulary limit, in order of falling logits, of equal ones the lowest id first; -1, with -inf, where
    the vocabulary has no more.
    """

    logprob: Array  # [S] float32
    rank: Array  # [S] int32
    top_ids: Array  # [S, max_logprobs] int32
    top_logprobs: Array  # [S, max_logprobs] float32


def prompt_logprobs(
    logits: Array, ids: Array, vocab_limit: int, max_logprobs: int, kernel: SamplingKernels | None = None
) -> Logprobs:
    """Return the log probabilities of ids [P] under logits [P, V] float32, with all max_logprobs most likely ids."""
    num_logprobs = jnp.full(ids.shape, max_logprobs, jnp.int32)
    return log_probabilities(logits, ids, num_logprobs, vocab_limit, max_logprobs, kernel)


def log_probabilities(
    logits: Array,
    ids: Array,
    num_logprobs: Array,
    vocab_limit: int,
    max_logprobs: int,
    kernel: SamplingKernels | None = None,
) -> Logprobs:
    """Return the log probabilities of ids [S] under logits [S, V] float32.

    num_logprobs: [S] int32, number of most likely ids to list, at most max_logprobs; -1 for nothing at all. A step
        whose rows all have -1 does not read its logits.
    kernel: computes the same faster.
    """
    if kernel is not None:
        return Logprobs(*kernel.log_probabilities(logits, ids, num_logprobs, vocab_limit, max_logprobs))
    S = ids.shape[0]
    nothing = Logprobs(
        jnp.zeros(S), jnp.zeros(S, jnp.int32), jnp.zeros((S, max_logprobs), jnp.int32), jnp.zeros((S, max_logprobs))
    )
    wanted = num_logprobs >= 0
    found = lax.cond(
        jnp.any(wanted), lambda: _log_probabilities(logits, ids, vocab_limit, max_logprobs), lambda: nothing
    )
    listed = jnp.arange(max_logprobs) < num_logprobs[:, None]
    return Logprobs(*(jnp.where(part, x, 0) for part, x in zip((wanted, wanted, listed, listed), found, strict=True)))


def _log_probabilities(logits: Array, ids: Array, vocab_limit: int, max_logprobs: int) -> Logprobs:
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    best_ids = _most_likely(logits, vocab_limit, max_logprobs)
    wanted = jnp.concatenate([ids[:, None], best_ids], axis=1)  # [S, 1 + max_logprobs]
    chosen = jnp.take_along_axis(logits, jnp.maximum(wanted, 0), axis=1)
    top = jnp.max(logits, axis=1, keepdims=True)
    log_total = jnp.log(row_sums(jnp.exp(_below(logits, top))))[:, None]
    log_total = jnp.where(top == -jnp.inf, jnp.nan, log_total)  # no logit is a number, and no log probability either
    # One expression for the id and for the list: they hold the very same number.
    logprobs = jnp.where(wanted < 0, -jnp.inf, _below(chosen, top) - log_total)
    rank = 1 + jnp.sum(logits > chosen[:, :1], axis=1, dtype=jnp.int32)
    return Logprobs(logprobs[:, 0], rank, best_ids, logprobs[:, 1:])


def _most_likely(logits: Array, vocab_limit: int, max_logprobs: int) -> Array:
    """Return the most likely ids: [S, V] without nan -> [S, max_logprobs] int32, -1 where vocab_limit leaves fewer."""
    count = min(max_logprobs, vocab_limit)
    logits = mask_impossible(logits, vocab_limit)
    logits = jnp.where(logits == 0, 0.0, logits)  # top_k puts -0.0 below 0.0
    # Of equal logits the lower index comes first, and so an id before the padding behind it.
    ids = lax.top_k(logits, count)[1]
    return jnp.pad(ids, ((0, 0), (0, max_logprobs - count)), constant_values=-1)


def _below(logits: Array, top: Array) -> Array:
    """Return logits - top, and 0 where both are the same infinity."""
    return jnp.where(logits == top, 0.0, logits - top)
