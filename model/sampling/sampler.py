"""Choosing the next id of every row on the device: pure functions over logits [S, V] float32.

A step's rows are sampled in this order:

1. Token mask: structured outputs, allowed_token_ids, bad_words, and stop ids below min_tokens, as one bit mask that the
   host makes.
2. logit_bias is added.
3. Penalties: repetition (positive logits of ids in the prompt or the output are divided by it, others multiplied), then
   frequency (times the number of times that the output has the id), then presence.
4. Greedy rows take the largest logit; of equal ones the lowest id.
5. Others: temperature, min_p, top_k, top_p, and one random choice. top_p applies to the probabilities renormalised over
   what min_p and top_k kept. Ids that tie at a filter's threshold are kept together, and no filter sorts (`filters`).

This is vLLM's (V1) order. transformers' processors run in another one: bias, repetition penalty (its only penalty),
then the masks, which gives the same result; and, when sampling, temperature, top_k, top_p, min_p: there top_p takes its
share of what top_k kept, before min_p, and so keeps more ids than here where both are set. Under top_p both break ties
by the order of their sort, where all are kept here.

Where no id is allowed, the row takes its largest raw logit below the vocabulary's limit instead; an id from the limit
on is never sampled. nan counts as -inf; a row without any number takes id 0. A row's result depends on nothing but its
own logits, parameters, mask and slot state: not on the other rows, not on their number.

A random choice uses one uniform number from a counter: Threefry-2x32 keyed with the seed, at (choice index, position of
the token). It does not depend on the batch, on preemption, on how prefill was chunked, or on a restart.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.random import threefry_2x32
from jax.sharding import Sharding

from model.params.sampling_batch import Logprobs, SamplingBatch
from model.sampling.filters import filter_and_choose, first_largest, mask_beyond
from model.sampling.logprobs import log_probabilities

PROMPT = 2**30
"""Added to the count of an id that the prompt has; the rest of the count is how often the id was generated."""


class SamplerState(NamedTuple):
    """What the device keeps of each slot from step to step."""

    last_tokens: Array  # [slots] int32, sampled last
    counts: Array  # [slots, V] int32, times generated, + PROMPT where the prompt has the id
    bias: Array  # [slots, V] float32


class SamplingKernels(NamedTuple):
    """The two halves of sampling. A row's result does not depend on the other rows."""

    # (logits [S, V], batch, masks [S, W], counts [slots, V], bias [slots, V], uniform [S], vocab_limit) -> ids [S]
    choose_ids: Callable[[Array, SamplingBatch, Array, Array, Array, Array, int], Array]
    # (logits [S, V], ids [S], num_logprobs [S], vocab_limit, max_logprobs) -> Logprobs
    log_probabilities: Callable[[Array, Array, Array, int, int], Logprobs]


def init_sampler_state(slots: int, vocab_size: int, sharding: Sharding | None = None) -> SamplerState:
    """Return a state of zeros."""
    return SamplerState(
        jnp.zeros(slots, jnp.int32, device=sharding),
        jnp.zeros((slots, vocab_size), jnp.int32, device=sharding),
        jnp.zeros((slots, vocab_size), jnp.float32, device=sharding),
    )


def set_state_row(state: SamplerState, slot: Array, counts: Array, bias: Array) -> SamplerState:
    """Replace a slot's counts [V] int32 and bias [V] float32; nothing changes where slot is out of range."""
    slot = _or_none(slot, state)
    return state._replace(
        counts=state.counts.at[slot].set(counts, mode="drop"), bias=state.bias.at[slot].set(bias, mode="drop")
    )


def sample(
    logits: Array,
    batch: SamplingBatch,
    masks: Array,
    state: SamplerState,
    vocab_limit: int,
    kernels: SamplingKernels,
    max_logprobs: int,
) -> tuple[Array, Logprobs, SamplerState]:
    """Sample one id per row, always below vocab_limit.

    logits [S, V] float32; masks [S, ceil(V / 32)] uint32, bit i of word w allows id 32 w + i -> ids [S] int32, their
    log probabilities with up to max_logprobs ids each, and the state with each id written to its row's write_slot.
    """
    uniform = jax.vmap(_uniform)(batch.seed, batch.choice_index, batch.position)
    batch = batch._replace(slot=jnp.clip(batch.slot, 0, state.counts.shape[0] - 1))
    ids = kernels.choose_ids(logits, batch, masks, state.counts, state.bias, uniform, vocab_limit)
    logprobs = kernels.log_probabilities(logits, ids, batch.num_logprobs, vocab_limit, max_logprobs)
    return ids, logprobs, _write(state, batch, ids)


def logprobs_of(logits: Array, ids: Array, vocab_limit: int, kernels: SamplingKernels, max_logprobs: int) -> Logprobs:
    """Return log probabilities of a prompt: of ids [P] under logits [P, V] float32, with max_logprobs ids each."""
    counts = jnp.full(ids.shape, max_logprobs, jnp.int32)
    return kernels.log_probabilities(logits, ids, counts, vocab_limit, max_logprobs)


def _write(state: SamplerState, batch: SamplingBatch, ids: Array) -> SamplerState:
    slot = _or_none(batch.write_slot, state)
    return state._replace(
        last_tokens=state.last_tokens.at[slot].set(ids, mode="drop"),
        counts=state.counts.at[slot, ids].add(1, mode="drop"),
    )


def _or_none(slot: Array, state: SamplerState) -> Array:
    """A negative index would count from the end, so it goes past it and is dropped."""
    return jnp.where(slot < 0, state.counts.shape[0], slot)


def choose_ids(
    logits: Array, batch: SamplingBatch, masks: Array, counts: Array, bias: Array, uniform: Array, vocab_limit: int
) -> Array:
    """Choose the ids [S] int32 by `uniform` [S]. A step of greedy rows without other parameters costs one argmax."""
    raw = mask_beyond(logits, vocab_limit)
    penalised = (batch.repetition != 1) | (batch.presence != 0) | (batch.frequency != 0)
    logits = lax.cond(
        jnp.any(batch.masked | batch.biased | penalised),
        lambda: _transform(raw, batch, penalised, masks, counts, bias),
        lambda: raw,
    )
    greedy = first_largest(logits)
    nothing_left = jnp.take_along_axis(logits, greedy[:, None], axis=1)[:, 0] == -jnp.inf
    greedy = lax.cond(
        jnp.any(nothing_left), lambda: jnp.where(nothing_left, first_largest(raw), greedy), lambda: greedy
    )
    random = batch.temperature > 0
    filters = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    chosen = lax.cond(jnp.any(random), lambda: filter_and_choose(logits, greedy, *filters, uniform), lambda: greedy)
    return jnp.where(random, chosen, greedy)


def _transform(
    logits: Array, batch: SamplingBatch, penalised: Array, masks: Array, counts: Array, bias: Array
) -> Array:
    """Apply what greedy rows take part in too: mask, bias and penalties. [S, V] without nan -> the same."""
    logits = _where(batch.masked, lambda x: jnp.where(_allowed(masks, x.shape[1]), x, -jnp.inf), logits)
    logits = _where(batch.biased, lambda x: x + bias[batch.slot], logits)
    logits = _where(penalised, lambda x: _penalise(x, batch, counts[batch.slot]), logits)
    return jnp.where(jnp.isnan(logits), -jnp.inf, logits)  # of infinities


def _where(rows: Array, change: Callable[[Array], Array], logits: Array) -> Array:
    """Change logits [S, V] in the given rows [S] bool; the others stay as they are, to the last bit."""
    changed: Array = lax.cond(jnp.any(rows), lambda x: jnp.where(rows[:, None], change(x), x), lambda x: x, logits)
    return changed


def _allowed(masks: Array, vocab_size: int) -> Array:
    """Unpack bit masks [S, ceil(V / 32)] uint32 -> [S, V] bool."""
    bits = (masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(masks.shape[0], -1)[:, :vocab_size] == 1


def _penalise(logits: Array, batch: SamplingBatch, counts: Array) -> Array:
    """Subtract the penalties for counts [S, V] int32 from logits [S, V]."""
    repetition, frequency, presence = (x[:, None] for x in (batch.repetition, batch.frequency, batch.presence))
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(counts > 0, repeated, logits)
    generated = counts & (PROMPT - 1)
    return logits - frequency * generated.astype(jnp.float32) - jnp.where(generated > 0, presence, 0.0)


def _uniform(seed: Array, choice_index: Array, position: Array) -> Array:
    """Return the number in [0, 1) of one choice: seed [2] uint32, choice_index and position [] int32 -> [] float32."""
    counter = jnp.stack([choice_index, position]).astype(jnp.uint32)
    bits: Array = threefry_2x32(seed, counter)[0]
    return (bits >> 9).astype(jnp.float32) * 2.0**-23  # 23 bits: the largest times a sum stays below the sum


xla_sampling = SamplingKernels(choose_ids, log_probabilities)
"""The definitions, which run everywhere."""
