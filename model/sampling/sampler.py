"""Sampling the next id of every row on the device: pure functions over logits [S, V] float32.

A step's rows are sampled in this order:

1. Allowed ids, as one bit mask made by the host: grammars, allowed_token_ids, bad_words, and stop ids below min_tokens.
2. logit_bias is added.
3. Penalties: repetition (positive logits of ids in the prompt or the output are divided by it, others multiplied), then
   frequency (times the number of occurrences of the id in the output), then presence.
4. Greedy rows take the largest logit; of equal ones the lowest id.
5. Others: temperature, min_p, top_k, top_p, and one random number. top_p sees the probabilities renormalised over what
   min_p and top_k left. Ids that tie at a filter's threshold are kept together, and no filter sorts (`filters.py`).

This is the order of vLLM V1. The processors of transformers run in another order: bias, repetition penalty (the only
one there), then the masks, which gives the same result; and, when sampling, temperature, top_k, top_p, min_p: top_p
takes its share of what top_k left, before min_p, and so keeps more ids than here where a request sets both. Under top_p
both libraries cut ties by the order of their sort; this code keeps them.

Where no id is allowed, the row takes its largest raw logit below the vocabulary limit instead; an id from the limit on
is never sampled. nan counts as -inf; a row whose logits below the limit are all nan or -inf takes the id `NO_NUMBER`:
the computation is broken, and nothing can be sampled. A row's result depends on its own logits, parameters, mask and
slot state alone: not on the other rows, nor on their number.

Each sampled id uses one uniform number from a counter: Threefry-2x32 keyed with the seed, at (choice index, position of
the token). It does not depend on the batch, on preemption, on how prefill was chunked, or on a restart.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.random import threefry_2x32

from model.params.sampling_batch import SamplingBatch
from model.sampling.batch import PROMPT, SamplerState, SamplingKernels
from model.sampling.filters import filter_and_sample, first_largest, mask_impossible
from model.sampling.logprobs import Logprobs, log_probabilities

__all__ = ["NO_NUMBER", "choose_ids", "sample", "set_slot_state"]

NO_NUMBER = -1
"""In place of an id: the logits hold no number."""


def set_slot_state(state: SamplerState, slot: Array, counts: Array, bias: Array) -> SamplerState:
    """Return the state with a slot's counts [V] int32 and bias [V] float32 replaced.

    slot: unchanged where it is out of range.
    """
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
    max_logprobs: int,
    kernel: SamplingKernels | None = None,
) -> tuple[Array, Logprobs, SamplerState]:
    """Sample one id per row, always below vocab_limit; `NO_NUMBER` where the row's logits hold no number.

    logits [S, V] float32; masks [S, ceil(V / 32)] uint32, bit i of word w allows id 32 w + i -> ids [S] int32, their
    log probabilities, and the state with each id written to its row's write_slot.
    max_logprobs: the largest value of batch.num_logprobs. kernel: computes the same faster.
    """
    uniform = jax.vmap(_uniform)(batch.seed, batch.choice_index, batch.position)
    batch = batch._replace(slot=jnp.clip(batch.slot, 0, state.counts.shape[0] - 1))
    choose = choose_ids if kernel is None else kernel.choose_ids
    ids = choose(logits, batch, masks, state.counts, state.bias, uniform, vocab_limit)
    known = jnp.maximum(ids, 0)  # steps in flight compute with it until the host has read that there is none
    logprobs = log_probabilities(logits, known, batch.num_logprobs, vocab_limit, max_logprobs, kernel)
    return ids, logprobs, _write(state, batch, known)


def _write(state: SamplerState, batch: SamplingBatch, ids: Array) -> SamplerState:
    slot = _or_none(batch.write_slot, state)
    return state._replace(
        last_tokens=state.last_tokens.at[slot].set(ids, mode="drop"),
        counts=state.counts.at[slot, ids].add(1, mode="drop"),
    )


def _or_none(slot: Array, state: SamplerState) -> Array:
    """Return a slot that drops the write where it is out of range: a negative index would count from the end."""
    return jnp.where(slot < 0, state.counts.shape[0], slot)


def choose_ids(
    logits: Array, batch: SamplingBatch, masks: Array, counts: Array, bias: Array, uniform: Array, vocab_limit: int
) -> Array:
    """Return the ids [S] int32 that `uniform` [S] selects. A step of plain greedy rows pays for one argmax."""
    raw = mask_impossible(logits, vocab_limit)
    penalised = (batch.repetition != 1) | (batch.presence != 0) | (batch.frequency != 0)
    logits = lax.cond(
        jnp.any(batch.masked | batch.biased | penalised),
        lambda: _transform(raw, batch, penalised, masks, counts, bias),
        lambda: raw,
    )
    greedy = first_largest(logits)
    nothing_left = jnp.take_along_axis(logits, greedy[:, None], axis=1)[:, 0] == -jnp.inf
    greedy = lax.cond(
        jnp.any(nothing_left), lambda: jnp.where(nothing_left, _largest_number(raw), greedy), lambda: greedy
    )
    random = batch.temperature > 0
    filters = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    sampled = lax.cond(jnp.any(random), lambda: filter_and_sample(logits, greedy, *filters, uniform), lambda: greedy)
    return jnp.where(random, sampled, greedy)


def _largest_number(logits: Array) -> Array:
    """Return the lowest id among the largest logits, [S, V] -> [S] int32; NO_NUMBER where all are -inf."""
    ids = first_largest(logits)
    return jnp.where(jnp.take_along_axis(logits, ids[:, None], axis=1)[:, 0] == -jnp.inf, NO_NUMBER, ids)


def _transform(
    logits: Array, batch: SamplingBatch, penalised: Array, masks: Array, counts: Array, bias: Array
) -> Array:
    """Apply what greedy rows see too: mask, bias and penalties. [S, V] without nan -> the same."""
    logits = _where(batch.masked, lambda x: jnp.where(_allowed(masks, x.shape[1]), x, -jnp.inf), logits)
    logits = _where(batch.biased, lambda x: x + bias[batch.slot], logits)
    logits = _where(penalised, lambda x: _penalise(x, batch, counts[batch.slot]), logits)
    return jnp.where(jnp.isnan(logits), -jnp.inf, logits)  # of infinities


def _where(selected: Array, change: Callable[[Array], Array], logits: Array) -> Array:
    """Change logits [S, V] in the selected rows [S] bool; the others stay as they are, to the last bit."""
    changed: Array = lax.cond(
        jnp.any(selected), lambda x: jnp.where(selected[:, None], change(x), x), lambda x: x, logits
    )
    return changed


def _allowed(masks: Array, vocab_size: int) -> Array:
    """Unpack masks [S, ceil(V / 32)] uint32 -> [S, V] bool."""
    bits = (masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(masks.shape[0], -1)[:, :vocab_size] == 1


def _penalise(logits: Array, batch: SamplingBatch, counts: Array) -> Array:
    """Apply the penalties for counts [S, V] int32 to logits [S, V]."""
    repetition, frequency, presence = (x[:, None] for x in (batch.repetition, batch.frequency, batch.presence))
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(counts > 0, repeated, logits)
    generated = counts & (PROMPT - 1)
    return logits - frequency * generated.astype(jnp.float32) - jnp.where(generated > 0, presence, 0.0)


def _uniform(seed: Array, choice_index: Array, position: Array) -> Array:
    """Return one token's random number in [0, 1): seed [2] uint32, choice_index and position [] int32 -> [] float32."""
    counter = jnp.stack([choice_index, position]).astype(jnp.uint32)
    bits: Array = threefry_2x32(seed, counter)[0]
    return (bits >> 9).astype(jnp.float32) * 2.0**-23  # 23 bits: the largest times a sum stays below the sum
