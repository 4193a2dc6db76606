"""ALiBi horizons: which keys a query need not read, by proof.

A key at distance d scores scale * q.k - slope * d, at most scale * |q| |k| - slope * d. The cache keeps a bound of each
key's length, so that this is known of a page of keys before it is read, and far pages of steep heads are left out. Only
what is proven to be light is: the weights of all keys left out for a query sum to at most NEGLIGIBLE of its weights.
Lengths that are no finite numbers prove nothing, and heads without a slope read everything.

What that does to a result: with the weights left out a share e <= NEGLIGIBLE < 2^-25 of those kept, each number of it
is off by at most e * (|largest value left out| + |the number|), the second part because the kept weights are normalised
to one. Where values are of a size, that is half of a float32's rounding; next to a value left out that is larger by
many powers of two, it is that much more. Values must be finite: the cache holds no bound of theirs, and one left out
that is infinite or no number, which would have spread to the result by a weight of zero, does not.
"""

import jax.numpy as jnp
from jax import Array, lax

from model.config.mpt_config import MptConfig

NEGLIGIBLE = 0.95 * 2.0**-25
"""Of the kept weights: half of float32's rounding of their sum, less what the comparison with it rounds."""
_LENGTH_MARGIN = 1.0001  # above the rounding of a sum of thousands of squares
_LEAST_LENGTH = 1e-17  # above what squares too small for float32 may hide


def length_bound(x: Array) -> Array:
    """What the length of x [..., hd] is not above: [...] float32; infinity where x is not a number."""
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
    """The first page that each query has to read of its sequence's, which none before `begin` is.

    q [n, t, Hkv, G, hd], own_scores [n, Hkv, G, t] of each query and the key at its own position, positions [n, t],
    key_norms [N, Hkv, block], tables [n, W], slopes [H] of ALiBi -> [n, Hkv, G, t] int32. What a query certainly has is
    the weight of its own key.
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
