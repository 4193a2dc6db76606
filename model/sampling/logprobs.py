"""Log probabilities of chosen ids and of the most likely ones: the model's own, whatever was changed to sample.

They are the float32 log-softmax of the raw logits over all V ids, padding of the vocabulary included. nan counts as
-inf, so that nothing becomes nan: an infinite logit shares all probability with its equals, and where every logit is
-inf all ids are equally likely.
"""

import jax.numpy as jnp
from jax import Array, lax

from model.params.sampling_batch import Logprobs
from model.sampling.filters import mask_beyond, row_sums


def log_probabilities(logits: Array, ids: Array, num_logprobs: Array, vocab_limit: int, max_logprobs: int) -> Logprobs:
    """Return log probabilities of ids [S] under logits [S, V] float32, and the most likely ids of each row.

    num_logprobs [S] int32 most likely ids are listed, `max_logprobs` at most; -1 requests nothing. A step whose rows
    all request nothing does not read its logits.
    """
    S = ids.shape[0]
    nothing = Logprobs(
        jnp.zeros(S), jnp.zeros(S, jnp.int32), jnp.zeros((S, max_logprobs), jnp.int32), jnp.zeros((S, max_logprobs))
    )
    found = lax.cond(
        jnp.any(num_logprobs >= 0),
        lambda: _log_probabilities(logits, ids, vocab_limit, max_logprobs),
        lambda: nothing,
    )
    wanted = num_logprobs >= 0
    listed = jnp.arange(max_logprobs) < num_logprobs[:, None]
    return Logprobs(*(jnp.where(part, x, 0) for part, x in zip((wanted, wanted, listed, listed), found, strict=True)))


def _log_probabilities(logits: Array, ids: Array, vocab_limit: int, max_logprobs: int) -> Logprobs:
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    best_ids = _most_likely(logits, vocab_limit, max_logprobs)
    wanted = jnp.concatenate([ids[:, None], best_ids], axis=1)  # [S, 1 + max_logprobs]
    chosen = jnp.take_along_axis(logits, jnp.maximum(wanted, 0), axis=1)
    top = jnp.max(logits, axis=1, keepdims=True)
    log_total = jnp.log(row_sums(jnp.exp(_below(logits, top))))[:, None]
    # One expression for the id and for the list, so that both hold the same number to the last bit.
    logprobs = jnp.where(wanted < 0, -jnp.inf, _below(chosen, top) - log_total)
    rank = 1 + jnp.sum(logits > chosen[:, :1], axis=1, dtype=jnp.int32)
    return Logprobs(logprobs[:, 0], rank, best_ids, logprobs[:, 1:])


def _most_likely(logits: Array, vocab_limit: int, max_logprobs: int) -> Array:
    """Return the most likely ids: [S, V] without nan -> [S, max_logprobs] int32, -1 where vocab_limit leaves fewer."""
    count = min(max_logprobs, vocab_limit)
    logits = mask_beyond(logits, vocab_limit)
    logits = jnp.where(logits == 0, 0.0, logits)  # top_k puts -0.0 below 0.0
    # Of equal logits the lower index comes first, and so an id before the padding behind it.
    ids = lax.top_k(logits, count)[1]
    return jnp.pad(ids, ((0, 0), (0, max_logprobs - count)), constant_values=-1)


def _below(logits: Array, top: Array) -> Array:
    """Return logits - top, and 0 where both are the same infinity."""
    return jnp.where(logits == top, 0.0, logits - top)
