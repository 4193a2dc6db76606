"""Choosing the next id of every row on the device: pure functions over logits [S, V] float32.

A step's rows are sampled in this order:

1. Allowed ids: guides, allowed_token_ids, bad_words, and stop ids below min_tokens, as one bit mask of the host's.
2. logit_bias is added.
3. Penalties: repetition (positive logits of ids in the prompt or the answer are divided by it, others multiplied), then
   frequency (times the number of times that the answer has the id), then presence.
4. Greedy rows take the largest logit; of equal ones the lowest id.
5. Others: temperature, min_p, top_k, top_p, and one draw. top_p sees the probabilities renormalised over what min_p and
   top_k left. Ids that tie at a filter's threshold are kept together, and none of the filters sorts (`draw.py`).

This is vLLM's (V1) order. transformers' processors run otherwise: bias, repetition penalty (it has no other), then
the masks, which comes to the same; and, when sampling, temperature, top_k, top_p, min_p: there top_p takes its share of
what top_k left, before min_p, and so keeps more ids than here where both are asked for. Under top_p both cut ties by
the order of their sort, where we keep them.

Where nothing is allowed, the row takes its largest raw logit below the vocabulary's limit instead; an id from the limit
on is never sampled. nan counts as -inf; a row without any number takes id 0. A row's result depends on nothing but its
own logits, parameters, mask and state: not on the other rows, not on their number.

A draw uses one uniform number from a counter: Threefry-2x32 keyed with the seed, at (choice index, position of the
token). It does not depend on the batch, on preemption, on how prefill was chunked, or on a restart.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.random import threefry_2x32
from jax.sharding import Sharding

from model.kernel_selection import SamplingKernels
from model.sampling.filters import draw, first_largest, within
from model.sampling.logprobs import Logprobs, log_probabilities, logprobs_of

__all__ = [
    "PROMPT",
    "Logprobs",
    "SamplerState",
    "SamplingBatch",
    "init_sampler_state",
    "logprobs_of",
    "sample",
    "set_state_row",
]

PROMPT = 2**30
"""Added to the count of an id that the prompt has; what is left is how often the id was generated."""


class SamplingBatch(NamedTuple):
    """Sampling parameters of a step's rows. Padding rows are greedy and write nothing."""

    slot: Array  # [S] int32, row of the state that is read; clamped to those there are
    write_slot: Array  # [S] int32, row of the state that is written, no two the same; none where out of range
    temperature: Array  # [S] float32, 0 is greedy
    top_k: Array  # [S] int32, 0 keeps all
    top_p: Array  # [S] float32, 1 keeps all
    min_p: Array  # [S] float32, 0 keeps all
    repetition: Array  # [S] float32, 1 for none
    presence: Array  # [S] float32, 0 for none
    frequency: Array  # [S] float32, 0 for none
    biased: Array  # [S] bool, whether the state's bias is added
    masked: Array  # [S] bool, whether the mask is applied
    seed: Array  # [S, 2] uint32, high and low half
    choice_index: Array  # [S] int32
    position: Array  # [S] int32, place in the sequence of the token to be sampled
    num_logprobs: Array  # [S] int32, number of most likely ids to list; -1 for no log probability at all


class SamplerState(NamedTuple):
    """What the device remembers of each slot from step to step."""

    last_tokens: Array  # [slots] int32, sampled last
    counts: Array  # [slots, V] int32, times generated, + PROMPT where the prompt has the id
    bias: Array  # [slots, V] float32


def init_sampler_state(slots: int, vocab_size: int, sharding: Sharding | None = None) -> SamplerState:
    """A state of zeros."""
    return SamplerState(
        jnp.zeros(slots, jnp.int32, device=sharding),
        jnp.zeros((slots, vocab_size), jnp.int32, device=sharding),
        jnp.zeros((slots, vocab_size), jnp.float32, device=sharding),
    )


def set_state_row(state: SamplerState, slot: Array, counts: Array, bias: Array) -> SamplerState:
    """The state with a slot's counts [V] int32 and bias [V] float32 replaced; unchanged where slot is out of range."""
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
    kernel: SamplingKernels | None = None,
) -> tuple[Array, Logprobs, SamplerState]:
    """Sample one id per row, always below vocab_limit.

    logits [S, V] float32; masks [S, ceil(V / 32)] uint32, bit i of word w allows id 32 w + i -> ids [S] int32, their
    log probabilities, and the state with each id written to its row's write_slot. kernel: does the same, faster.
    """
    uniform = jax.vmap(_uniform)(batch.seed, batch.choice_index, batch.position)
    batch = batch._replace(slot=jnp.clip(batch.slot, 0, state.counts.shape[0] - 1))
    choose = choose_ids if kernel is None else kernel.choose_ids
    ids = choose(logits, batch, masks, state.counts, state.bias, uniform, vocab_limit)
    return ids, log_probabilities(logits, ids, batch.num_logprobs, vocab_limit, kernel), _write(state, batch, ids)


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
    """The ids [S] int32 that `uniform` [S] draws. A step whose rows all ask for nothing pays for one argmax."""
    raw = within(logits, vocab_limit)
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
    drawing = batch.temperature > 0
    filters = (batch.temperature, batch.top_k, batch.top_p, batch.min_p)
    drawn = lax.cond(jnp.any(drawing), lambda: draw(logits, greedy, *filters, uniform), lambda: greedy)
    return jnp.where(drawing, drawn, greedy)


def _transform(
    logits: Array, batch: SamplingBatch, penalised: Array, masks: Array, counts: Array, bias: Array
) -> Array:
    """Everything that greedy rows see too: mask, bias and penalties. [S, V] without nan -> the same."""
    logits = _where(batch.masked, lambda x: jnp.where(_allowed(masks, x.shape[1]), x, -jnp.inf), logits)
    logits = _where(batch.biased, lambda x: x + bias[batch.slot], logits)
    logits = _where(penalised, lambda x: _penalise(x, batch, counts[batch.slot]), logits)
    return jnp.where(jnp.isnan(logits), -jnp.inf, logits)  # of infinities


def _where(asked: Array, change: Callable[[Array], Array], logits: Array) -> Array:
    """logits [S, V] changed in the rows that ask [S] bool; the others stay as they are, to the last bit."""
    changed: Array = lax.cond(jnp.any(asked), lambda x: jnp.where(asked[:, None], change(x), x), lambda x: x, logits)
    return changed


def _allowed(masks: Array, vocab_size: int) -> Array:
    """[S, ceil(V / 32)] uint32 -> [S, V] bool"""
    bits = (masks[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(masks.shape[0], -1)[:, :vocab_size] == 1


def _penalise(logits: Array, batch: SamplingBatch, counts: Array) -> Array:
    """logits [S, V] less what counts [S, V] int32 cost."""
    repetition, frequency, presence = (x[:, None] for x in (batch.repetition, batch.frequency, batch.presence))
    repeated = jnp.where(logits > 0, logits / repetition, logits * repetition)
    logits = jnp.where(counts > 0, repeated, logits)
    generated = counts & (PROMPT - 1)
    return logits - frequency * generated.astype(jnp.float32) - jnp.where(generated > 0, presence, 0.0)


def _uniform(seed: Array, choice_index: Array, position: Array) -> Array:
    """The number in [0, 1) of one draw: seed [2] uint32, choice_index and position [] int32 -> [] float32."""
    counter = jnp.stack([choice_index, position]).astype(jnp.uint32)
    bits: Array = threefry_2x32(seed, counter)[0]
    return (bits >> 9).astype(jnp.float32) * 2.0**-23  # 23 bits: the largest times a sum stays below the sum
