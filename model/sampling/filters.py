"""Greedy choice, filters and random sampling: pure functions over logits [S, V] float32 of a step's rows.

Every filter keeps the ids whose logit is at least a threshold, so ids that tie at the threshold are kept together.
Thresholds are found by halving the range of float32 bit patterns; there is no sort.

Sums are spelled out: the order of a reduction is the compiler's choice, and depends on the number of rows.
"""

import jax.numpy as jnp
from jax import Array, lax

_BLOCK = 256  # ids per block of the two-level argmax and inverse CDF


def mask_impossible(logits: Array, vocab_limit: int) -> Array:
    """Return logits [S, V] with -inf from vocab_limit on, and for nan.

    Cutting them off would leave V no multiple of a vector's length.
    """
    possible = (lax.broadcasted_iota(jnp.int32, logits.shape, 1) < vocab_limit) & ~jnp.isnan(logits)
    return jnp.where(possible, logits, -jnp.inf)


def first_largest(logits: Array) -> Array:
    """Return the lowest id among the largest logits, [S, V] -> [S] int32."""
    # The maximum of each block vectorises on XLA's CPU; an argmax over the whole row does not.
    blocks = _blocks(logits, -jnp.inf)
    block = jnp.argmax(jnp.max(blocks, axis=2), axis=1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # [S, _BLOCK]
    return (block * _BLOCK + jnp.argmax(inside, axis=1)).astype(jnp.int32)


def row_sums(x: Array) -> Array:
    """Return the sums [S, V] -> [S], added in an order that depends on V alone."""
    return _add_up(_add_up(_blocks(x, 0.0), axis=1), axis=1)


def filter_and_sample(
    logits: Array, greedy: Array, temperature: Array, top_k: Array, top_p: Array, min_p: Array, uniform: Array
) -> Array:
    """Sample one id per row from what the filters leave: logits [S, V], the rest [S] -> [S] int32.

    greedy: the id of the largest logit, or negative; it is the result where that logit is infinite. uniform: in [0, 1).
    """
    top = jnp.take_along_axis(logits, jnp.maximum(greedy, 0)[:, None], axis=1)
    # Subtracting first keeps tiny temperatures finite. Greedy rows are computed too; their result is not used.
    scaled = (logits - top) / jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)[:, None]  # [S, V], <= 0
    threshold = _filter(scaled, top_k, top_p, min_p)
    ids, total = _inverse_cdf(_weights(scaled, threshold), uniform)
    # The greedy id's own weight is 1, unless its logit is infinite.
    return jnp.where(jnp.isfinite(total) & (total > 0), ids, greedy)


def _filter(scaled: Array, top_k: Array, top_p: Array, min_p: Array) -> Array:
    """Return the threshold [S] of min_p, top_k and top_p, in this order, for scaled [S, V]; -inf keeps all.

    top_p sees the probabilities renormalised over what min_p and top_k left.
    """

    def raise_threshold(which: Array, threshold: Array) -> Array:
        by_count = which == 0  # top_k is a number of ids, top_p a share of the probability left so far
        active = jnp.where(by_count, top_k > 0, top_p < 1)

        def search() -> Array:
            weights = jnp.where(by_count, 1.0, _weights(scaled, threshold))
            target = jnp.where(by_count, top_k.astype(jnp.float32), top_p * row_sums(weights))
            return _bisect(scaled, weights, target)

        found = lax.cond(jnp.any(active), search, lambda: threshold)
        return jnp.where(active, jnp.maximum(threshold, found), threshold)

    # A loop, so that the search is compiled once.
    threshold: Array = lax.fori_loop(0, 2, raise_threshold, jnp.log(min_p))
    return threshold


def _weights(scaled: Array, threshold: Array) -> Array:
    """Return the unnormalised probabilities [S, V] of the ids at or above threshold [S], 0 elsewhere."""
    return jnp.where(scaled >= threshold[:, None], jnp.exp(scaled), 0.0)


def _bisect(scaled: Array, weights: Array, target: Array) -> Array:
    """Return a threshold [S] that keeps what the highest one does at which the kept weights [S, V] reach target [S].

    scaled [S, V] <= 0. Floats are compared through int32 keys of the same order, so that at most 31 halvings find the
    exact value; a row whose sum is the target already needs no more.
    """
    keys = _ordered_bits(scaled)

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        low, high, reached = state
        return jnp.any((high - low > 1) & (reached != target))

    def halve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, reached = state
        middle = low + (high - low) // 2  # no overflow: keys of numbers <= 0 span less than 2**31
        kept = row_sums(jnp.where(keys >= middle[:, None], weights, 0.0))
        enough = kept >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle), jnp.where(enough, kept, reached)

    # The lowest key keeps everything, and so reaches any target; nothing is above the key of 0, which is 0.
    low = jnp.min(keys, axis=1)
    state = (low, jnp.ones_like(low), jnp.full_like(target, -1.0))
    return _from_ordered_bits(lax.while_loop(unfinished, halve, state)[0])


def _ordered_bits(x: Array) -> Array:
    """Return int32 keys in the order of the float32 numbers."""
    return _flip_negative(lax.bitcast_convert_type(x, jnp.int32))


def _from_ordered_bits(keys: Array) -> Array:
    return lax.bitcast_convert_type(_flip_negative(keys), jnp.float32)


def _flip_negative(bits: Array) -> Array:
    """Reverse the order of negative numbers, which floats store as sign and magnitude; its own inverse."""
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _inverse_cdf(weights: Array, uniform: Array) -> tuple[Array, Array]:
    """Sample: weights [S, V] >= 0, uniform [S] in [0, 1) -> ids [S] int32 of positive weight, total weights [S]."""
    blocks = _blocks(weights, 0.0)
    sums = _add_up(blocks, axis=2)  # [S, blocks]
    total = _add_up(sums, axis=1)
    block, rest = _first_above(sums, uniform * total)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # [S, _BLOCK]
    offset, _ = _first_above(inside, rest)
    return block * _BLOCK + offset, total


def _first_above(weights: Array, target: Array) -> tuple[Array, Array]:
    """Return the first positive weight [S, N] whose running sum exceeds target [S], and the rest of the target.

    Rounding may put the target above every running sum: then the last positive weight is the one.
    """
    running = jnp.cumsum(weights, axis=1)
    ids = lax.broadcasted_iota(jnp.int32, weights.shape, 1)
    positive = weights > 0
    last = jnp.max(jnp.where(positive, ids, 0), axis=1)
    first = jnp.min(jnp.where(positive & (running > target[:, None]), ids, last[:, None]), axis=1)
    before = jnp.take_along_axis(running - weights, first[:, None], axis=1)[:, 0]
    return first, jnp.maximum(target - before, 0.0)


def _blocks(x: Array, padding: float) -> Array:
    """Split rows into blocks: [S, V] -> [S, ceil(V / _BLOCK), _BLOCK]."""
    S, V = x.shape
    return jnp.pad(x, ((0, 0), (0, -V % _BLOCK)), constant_values=padding).reshape(S, -1, _BLOCK)


def _add_up(x: Array, axis: int) -> Array:
    """Return the sums along an axis, without that axis: its halves are added until one element is left."""
    while (length := x.shape[axis]) > 1:
        half = (length + 1) // 2
        low, high = lax.slice_in_dim(x, 0, half, axis=axis), lax.slice_in_dim(x, half, length, axis=axis)
        padding = [(0, 2 * half - length if dimension == axis else 0) for dimension in range(x.ndim)]
        x = low + jnp.pad(high, padding)
    return jnp.squeeze(x, axis)
