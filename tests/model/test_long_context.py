"""StoryWriter's slopes far beyond any prompt of the other tests, by chunks, against plain blockwise attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paged_run import PagedRun

from model.checkpoint.pack import pack_weights
from model.config.mpt_config import MptConfig
from model.kernels.cpu.attention import paged_attention as cpu_attention
from model.kernels.cpu.library import kernels_available
from model.layers.forward import block, embed, logits
from model.layers.paged_forward import CacheAttention, xla_attention
from model.params.qkv import Qkv
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, init_weights

# Two heads of StoryWriter's slopes: one that sees some 6,000 keys, one that sees all.
CONFIG = MptConfig(
    d_model=32, n_heads=2, n_layers=2, vocab_size=64, max_seq_len=65_536, alibi_bias_max=16.0, clip_qkv=6.0
)
QUERIES, KEYS = 512, 1024  # of one tile of the reference


@jax.jit
def attend_tile(q: jax.Array, positions: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attend to every key up to each query's own: q [H, n, hd], positions [n], k, v [H, T, hd] -> [H, n, hd]."""
    slopes = 2.0 ** -(16 / CONFIG.n_heads * jnp.arange(1, CONFIG.n_heads + 1))

    def body(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, values = state
        keys, of_keys = (jax.lax.dynamic_slice_in_dim(x, i * KEYS, KEYS, 1) for x in (k, v))
        distance = positions[:, None] - (i * KEYS + jnp.arange(KEYS))
        scores = jnp.einsum("hnd,hsd->hns", q, keys) / np.sqrt(CONFIG.head_dim) - slopes[:, None, None] * distance
        scores = jnp.where(distance < 0, -jnp.inf, scores)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        weights, keep = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
        values = values * keep[..., None] + jnp.einsum("hns,hsd->hnd", weights, of_keys)
        return new_top, total * keep + weights.sum(axis=-1), values

    start = (jnp.full(q.shape[:2], -jnp.inf), jnp.zeros(q.shape[:2]), jnp.zeros(q.shape))
    _, total, values = jax.lax.fori_loop(0, positions.max() // KEYS + 1, body, start)
    return values / total[..., None]


def blockwise_attention(qkv: Qkv, positions: np.ndarray) -> jax.Array:
    """Attend from the queries at `positions` of a sequence [T, H, hd]; zeros elsewhere."""
    q, k, v = (jnp.swapaxes(x, 0, 1) for x in qkv[:3])
    k, v = (jnp.pad(x, ((0, 0), (0, -x.shape[1] % KEYS), (0, 0))) for x in (k, v))
    out = np.zeros(qkv.q.shape, np.float32)
    for begin in range(0, len(positions), QUERIES):
        at = positions[begin : begin + QUERIES]
        out[at] = np.swapaxes(attend_tile(q[:, at], jnp.asarray(at), k, v), 0, 1)
    return jnp.asarray(out)


def reference_logits(weights: Weights, ids: np.ndarray, at: list[int]) -> np.ndarray:
    """Return logits [len(at), V] of whole-sequence attention, in the last layer of the queries `at` alone."""
    everywhere, wanted = np.arange(len(ids)), np.array(at)
    x = embed(weights, CONFIG, jnp.asarray(ids), jnp.asarray(everywhere))
    for i, b in enumerate(weights.blocks):
        attend = partial(blockwise_attention, positions=wanted if i + 1 == CONFIG.n_layers else everywhere)
        x = block(x, b, CONFIG, jnp.asarray(everywhere), None, attend)
    return np.asarray(logits(weights, CONFIG, x[wanted]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernels", "length", "chunk"),
    [
        pytest.param("cpu", 12_000, 2048, id="cpu"),
        pytest.param("cpu", 84_000, 2048, id="cpu-long", marks=pytest.mark.exhaustive),
        pytest.param("xla", 16_000, 512, id="xla", marks=pytest.mark.exhaustive),
    ],
)
def test_long_contexts(kernels: str, length: int, chunk: int) -> None:
    """At the start, in the middle and at the end; and the last token alone, as a decode step."""
    weights = init_weights(CONFIG, jax.random.key(0), scale=0.25)
    own, attention = weights, xla_attention
    if kernels == "cpu":
        if not kernels_available():
            pytest.skip("kernels were not built")
        own, attention = pack_weights(weights, CONFIG, WeightFormat(packed=True)), cpu_attention
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, length)
    checks = [3, chunk - 1, length // 2, length - 2, length - 1]
    run = PagedRun(own, CONFIG, rows=1, length=length, tokens=chunk, attention=attention, block=128, optimised=True)
    found, at = [], 0
    for stop in checks:
        while at <= stop:
            end = min(at + chunk, stop + 1)
            last = run.step([(0, at, ids[at:end])])[0]
            at = end
        found.append(last)
    expected = reference_logits(weights, ids, checks)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-3)


@pytest.mark.parametrize("kernels", ["cpu", "xla"])
def test_a_step_needs_no_memory_for_the_length(kernels: str) -> None:
    """Beside the cache: a chunk of 64 tokens takes as much for 84,000 tokens as for 4,000."""
    if kernels == "cpu" and not kernels_available():
        pytest.skip("kernels were not built")
    attention: CacheAttention = cpu_attention if kernels == "cpu" else xla_attention
    weights = init_weights(CONFIG, jax.random.key(0))
    sizes = []
    for length in (4_000, 84_000):
        run = PagedRun(weights, CONFIG, rows=1, length=length, tokens=64, attention=attention, block=128)
        sizes.append(run.temporary_bytes())
    assert sizes[1] < sizes[0] + 16 * 1024  # the block table
