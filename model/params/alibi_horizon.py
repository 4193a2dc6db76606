"""The ALiBi horizon: the keys that a query need not read, by proof.

A key at distance d scores scale * q.k - slope * d, at most scale * |q| |k| - slope * d. The cache keeps a bound of each
key's length, so that this bound is known for a page of keys before it is read, and distant pages are skipped for heads
with steep slopes. A page is skipped only where its weight is proven negligible: the weights of all keys skipped for a
query sum to at most NEGLIGIBLE of its weights. Lengths that are not finite prove nothing, and heads without a slope
read everything.

The effect on a result: if the skipped weights are a share e <= NEGLIGIBLE < 2^-25 of those kept, each of its numbers is
off by at most e * (|largest skipped value| + |the number|), the second part because the kept weights are normalised to
one. Where values are of similar size, that is half of float32's rounding; where a skipped value is larger by many
powers of two, the error is larger accordingly. Values must be finite: the cache keeps no bound of them, and a skipped
value that is infinite or nan, which a weight of zero would have spread to the result, does not reach it.
"""

import jax.numpy as jnp
from jax import Array, lax

from model.config.mpt_config import MptConfig

NEGLIGIBLE = 0.95 * 2.0**-25
"""A share of the kept weights: half of float32's rounding of their sum, less the rounding of the comparison."""
_LENGTH_MARGIN = 1.0001  # above the rounding of a sum of thousands of squares
_LEAST_LENGTH = 1e-17  # above the length of a vector whose squares underflow float32


def length_bound(x: Array) -> Array:
    """Return an upper bound of the length of x [..., hd]: [...] float32, infinity where x has a nan."""
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)
    bound = jnp.sqrt(squares) * _LENGTH_MARGIN + _LEAST_LENGTH
    return jnp.where(jnp.isnan(bound), jnp.inf, bound)


def first_pages(
    q: Array,
    own_scores: Array,
    positions: Array,
    key_norms: Array,
    tables: Array,
    begin: Array,
    slopes: Array,
    config: MptConfig,
) -> Array:
    """Return the first page of its sequence that each query has to read; none lies before `begin`.

    q [n, t, Hkv, G, hd], own_scores [n, Hkv, G, t] of each query and the key at its own position, positions [n, t],
    key_norms [N, Hkv, block], tables [n, W], slopes [H] of ALiBi -> [n, Hkv, G, t] int32. The weight of a
    query's own key is what it is certain to have.
    """
    n, t, Hkv, G, _ = q.shape
    block = key_norms.shape[2]
    slopes = slopes.reshape(Hkv, G, 1)
    reach = jnp.abs(config.softmax_scale) * jnp.moveaxis(length_bound(q), 1, 3)  # [n, Hkv, G, t]
    positions = positions[:, None, None, :]  # [n, 1, 1, t]

    def skips(state: tuple[Array, Array, Array]) -> Array:
        page, left_out, _ = state
        return jnp.any((left_out <= NEGLIGIBLE) & (page * block + block <= positions))

    def body(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        page, left_out, first = state  # [], and [n, Hkv, G, t] twice
        longest = jnp.max(key_norms[tables[:, page]], axis=-1)[:, :, None, None]  # [n, Hkv, 1, 1]
        bound = reach * longest
        if config.attn_logit_softcap is not None:
            bound = jnp.where(jnp.isfinite(bound), jnp.minimum(bound, config.attn_logit_softcap), bound)
        distance = positions - (page * block + block - 1)  # to the page's last key
        weight = block * jnp.exp(bound - slopes * distance.astype(jnp.float32) - own_scores)
        left_out += jnp.where(distance > 0, weight, jnp.inf)  # its own page, or one beyond it
        return page + 1, left_out, jnp.where(left_out <= NEGLIGIBLE, page + 1, first)

    shape = (n, Hkv, G, t)
    state = (begin, jnp.zeros(shape), jnp.broadcast_to(begin, shape))
    return lax.while_loop(skips, body, state)[2]
