"""Choosing the next id of every row on the device: pure functions over logits [R, V] float32.

Order, as in vLLM: logit transforms (ids outside the vocabulary, stop ids below min_tokens), temperature, min_p, top_k,
top_p, then one draw. Every filter keeps the ids whose logit is at least a threshold, so ids that tie at the threshold
are kept together; top_p sees the probabilities renormalised over what min_p and top_k left. There is no sort.

A draw uses one uniform number from a counter: Threefry-2x32 keyed with the seed, at (choice index, position of the
token). It does not depend on the batch, on preemption, on how prefill was chunked, or on a restart.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.random import threefry_2x32

_BLOCK = 256  # ids per block of the two-level argmax and inverse CDF


class SamplingBatch(NamedTuple):
    """Sampling parameters of a step's rows. Padding rows are greedy: temperature 0."""

    temperature: Array  # [R] float32, 0 is greedy
    top_k: Array  # [R] int32, 0 keeps all
    top_p: Array  # [R] float32, 1 keeps all
    min_p: Array  # [R] float32, 0 keeps all
    seed: Array  # [R, 2] uint32, high and low half
    choice_index: Array  # [R] int32
    position: Array  # [R] int32, place in the sequence of the token to be sampled
    masked_ids: Array  # [R, M] int32 ids that may not be sampled now, padding -1


class LogitTransform(NamedTuple):
    """A change to the logits that greedy decoding sees too.

    asked: batch -> [R] bool, the rows that want it; `apply` (logits [R, V], batch -> [R, V]) runs when any does.
    """

    asked: Callable[[SamplingBatch], Array]
    apply: Callable[[Array, SamplingBatch], Array]


def _mask_ids(logits: Array, batch: SamplingBatch) -> Array:
    # A negative index would count from the end, so padding goes past it and is dropped.
    ids = jnp.where(batch.masked_ids < 0, logits.shape[1], batch.masked_ids)
    return logits.at[jnp.arange(logits.shape[0])[:, None], ids].set(-jnp.inf, mode="drop")


# Applied in order, before everything else.
LOGIT_TRANSFORMS = (LogitTransform(lambda batch: jnp.any(batch.masked_ids >= 0, axis=1), _mask_ids),)


# (logits [R, V], temperature, top_k, top_p, min_p, uniform, each [R], vocab_limit) -> ids [R]
ChooseIds = Callable[[Array, Array, Array, Array, Array, Array, int], Array]


def sample(logits: Array, batch: SamplingBatch, vocab_limit: int, choose: ChooseIds | None = None) -> Array:
    """Sample one id per row, always below vocab_limit. logits [R, V] float32 -> [R] int32.

    choose: a kernel that does what `choose_ids` does, faster.
    """
    for asked, apply in LOGIT_TRANSFORMS:
        logits = lax.cond(jnp.any(asked(batch)), apply, lambda logits, _: logits, logits, batch)
    uniform = jax.vmap(_uniform)(batch.seed, batch.choice_index, batch.position)
    return (choose or choose_ids)(
        logits, batch.temperature, batch.top_k, batch.top_p, batch.min_p, uniform, vocab_limit
    )


def choose_ids(
    logits: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, uniform: Array, vocab_limit: int
) -> Array:
    """The largest logit's id where temperature is 0, else a draw by `uniform` [R] in [0, 1) from what filters leave.

    A step whose rows are all greedy pays for one argmax.
    """
    logits = _within(logits, vocab_limit)
    greedy = _argmax(logits)
    drawing = temperature > 0
    drawn = lax.cond(
        jnp.any(drawing), lambda: _draw(logits, greedy, temperature, top_k, top_p, min_p, uniform), lambda: greedy
    )
    return jnp.where(drawing, drawn, greedy)


def _within(logits: Array, vocab_limit: int) -> Array:
    """logits [R, V] with -inf from vocab_limit on, and for nan.

    Cutting them off would leave V no multiple of a vector's length.
    """
    possible = (lax.broadcasted_iota(jnp.int32, logits.shape, 1) < vocab_limit) & ~jnp.isnan(logits)
    return jnp.where(possible, logits, -jnp.inf)


def _argmax(logits: Array) -> Array:
    """Lowest id among the largest logits, [R, V] -> [R] int32."""
    # The maximum of each block vectorises on XLA's CPU; an argmax over the whole row does not.
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=2), axis=1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # [R, _BLOCK]
    return (block * _BLOCK + jnp.argmax(inside, axis=1)).astype(jnp.int32)


def _blocks(x: Array, padding: float) -> Array:
    """[R, V] -> [R, ceil(V / _BLOCK), _BLOCK]"""
    R, V = x.shape
    return jnp.pad(x, ((0, 0), (0, -V % _BLOCK)), constant_values=padding).reshape(R, -1, _BLOCK)


def _draw(
    logits: Array, greedy: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, uniform: Array
) -> Array:
    """One id per row from the filtered distribution, logits [R, V] -> [R] int32."""
    top = jnp.take_along_axis(logits, greedy[:, None], axis=1)
    # Subtracting first keeps tiny temperatures finite. Greedy rows go along; what they draw is not used.
    scaled = (logits - top) / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)[:, None]  # [R, V], <= 0
    threshold = _filter(scaled, top_k, top_p, min_p)
    ids, total = _inverse_cdf(_weights(scaled, threshold), uniform)
    # The greedy id's own weight is 1, unless its logit is infinite.
    return jnp.where(jnp.isfinite(total) & (total > 0), ids, greedy)


def _filter(scaled: Array, top_k: Array, top_p: Array, min_p: Array) -> Array:
    """The threshold [R] that min_p, top_k and top_p, in this order, set for scaled [R, V]; -inf keeps all."""

    def raise_threshold(which: Array, threshold: Array) -> Array:
        by_count = which == 0  # top_k is a number of ids, top_p a share of the probability left so far
        asked = jnp.where(by_count, top_k > 0, top_p < 1)

        def search() -> Array:
            weights = jnp.where(by_count, 1.0, _weights(scaled, threshold))
            target = jnp.where(by_count, top_k.astype(jnp.float32), top_p * jnp.sum(weights, axis=1))
            return _bisect(scaled, weights, target)

        found = lax.cond(jnp.any(asked), search, lambda: threshold)
        return jnp.where(asked, jnp.maximum(threshold, found), threshold)

    # A loop, so that the search is compiled once.
    threshold: Array = lax.fori_loop(0, 2, raise_threshold, jnp.log(min_p))
    return threshold


def _weights(scaled: Array, threshold: Array) -> Array:
    """Unnormalised probabilities [R, V] of the ids at or above threshold [R], 0 elsewhere."""
    return jnp.where(scaled >= threshold[:, None], jnp.exp(scaled), 0.0)


def _bisect(scaled: Array, weights: Array, target: Array) -> Array:
    """A threshold [R] that keeps what the highest one does at which the weights [R, V] kept reach target [R].

    scaled [R, V] <= 0. Floats are compared through int32 keys of the same order, so that at most 31 halvings find the
    exact value; a row whose sum is the target already needs no more.
    """
    keys = _ordered_bits(scaled)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        low, high, reached = state
        return jnp.any((high - low > 1) & (reached != target))

    def halve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, reached = state
        middle = low + (high - low) // 2  # no overflow: keys of numbers <= 0 span less than 2**31
        kept = jnp.sum(jnp.where(keys >= middle[:, None], weights, 0.0), axis=1)
        enough = kept >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle), jnp.where(enough, kept, reached)

    # The lowest key keeps everything, and so reaches any target; nothing is above the key of 0, which is 0.
    low = jnp.min(keys, axis=1)
    state = (low, jnp.ones_like(low), jnp.full_like(target, -1.0))
    return _from_ordered_bits(lax.while_loop(unfinished, halve, state)[0])


def _ordered_bits(x: Array) -> Array:
    """int32 keys in the order of the float32 numbers."""
    return _flip_negative(lax.bitcast_convert_type(x, jnp.int32))


def _from_ordered_bits(keys: Array) -> Array:
    return lax.bitcast_convert_type(_flip_negative(keys), jnp.float32)


def _flip_negative(bits: Array) -> Array:
    """Reverse the order of negative numbers, which floats store as sign and magnitude; its own inverse."""
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _uniform(seed: Array, choice_index: Array, position: Array) -> Array:
    """The number in [0, 1) of one draw: seed [2] uint32, choice_index and position [] int32 -> [] float32."""
    counter = jnp.stack([choice_index, position]).astype(jnp.uint32)
    bits: Array = threefry_2x32(seed, counter)[0]
    return (bits >> 9).astype(jnp.float32) * 2.0**-23  # 23 bits: the largest times a sum stays below the sum


def _inverse_cdf(weights: Array, uniform: Array) -> tuple[Array, Array]:
    """weights [R, V] >= 0, uniform [R] in [0, 1) -> ids [R] int32 of positive weight, total weights [R]."""
    blocks = _blocks(weights, 0.0)
    sums = jnp.sum(blocks, axis=2)  # [R, blocks]
    total = jnp.sum(sums, axis=1)
    block, rest = _first_above(sums, uniform * total)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # [R, _BLOCK]
    offset, _ = _first_above(inside, rest)
    return block * _BLOCK + offset, total


def _first_above(weights: Array, target: Array) -> tuple[Array, Array]:
    """The first positive weight [R, N] at which the running sum exceeds target [R], and what is left of the target.

    Rounding may put the target above every running sum: then the last positive weight is the one.
    """
    running = jnp.cumsum(weights, axis=1)
    ids = lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    positive = weights > 0
    last = jnp.max(jnp.where(positive, ids, 0), axis=1)
    first = jnp.min(jnp.where(positive & (running > target[:, None]), ids, last[:, None]), axis=1)
    before = jnp.take_along_axis(running - weights, first[:, None], axis=1)[:, 0]
    return first, jnp.maximum(target - before, 0.0)
