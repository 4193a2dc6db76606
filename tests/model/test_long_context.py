"""StoryWriter's shape far beyond its own 65,536 tokens, by chunks, against attention in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from paged_run import PagedRun

from model.alibi import alibi_slopes
from model.config import MptConfig
from model.kernels.cpu import calls
from model.mpt import Qkv, block, embed, logits
from model.quantization import WeightFormat, pack_weights
from model.step import CacheAttention, xla_attention
from model.weights import Weights, init_weights

# Two heads of StoryWriter's slopes: one that sees some 6,000 keys, one that sees all.
CONFIG = MptConfig(
    d_model=32, n_heads=2, n_layers=2, vocab_size=64, max_seq_len=65_536, alibi_bias_max=16.0, clip_qkv=6.0
)
QUERIES, KEYS = 256, 2048  # of one tile of the reference


def numpy_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Every key of every query, tile by tile with a running softmax: q, k, v [n or T, H, hd] float32 -> [n, H, hd]."""
    slopes = alibi_slopes(CONFIG.n_heads, CONFIG.alibi_bias_max)[:, None, None]
    q, k, v = (np.swapaxes(x, 0, 1) for x in (q * np.float32(CONFIG.softmax_scale), k, v))  # [H, ., hd]
    out = np.empty_like(q)
    for begin in range(0, q.shape[1], QUERIES):
        rows = slice(begin, begin + QUERIES)
        top, total, values = np.float32(-np.inf), np.float32(0), np.float32(0)
        for first in range(0, positions[rows].max() + 1, KEYS):
            keys = slice(first, first + KEYS)
            distance = (positions[rows, None] - np.arange(first, min(first + KEYS, k.shape[1]))).astype(np.float32)
            scores = q[:, rows] @ np.swapaxes(k[:, keys], 1, 2)  # [H, n, S]
            scores -= slopes * distance
            if first + KEYS > positions[rows].min():
                scores[:, distance < 0] = -np.inf
            new_top = np.maximum(top, scores.max(axis=-1, keepdims=True))
            weights = np.exp(np.subtract(scores, new_top, out=scores), out=scores)
            keep = np.exp(top - new_top)
            total = total * keep + weights.sum(axis=-1, keepdims=True)
            values = values * keep + weights @ v[:, keys]
            top = new_top
        out[:, rows] = values / total
    return np.swapaxes(out, 0, 1)


def reference_logits(weights: Weights, ids: np.ndarray, at: list[int]) -> np.ndarray:
    """Logits [len(at), V] of whole-sequence attention; of the last layer, the queries `at` alone."""
    everywhere, wanted = np.arange(len(ids)), np.array(at)

    def attend(qkv: Qkv) -> jax.Array:
        q, k, v = (np.asarray(x) for x in qkv[:3])
        queries = everywhere if last is None else wanted
        out = np.zeros_like(q)
        out[queries] = numpy_attention(q[queries], k, v, queries)
        return jnp.asarray(out)

    x = embed(weights, CONFIG, jnp.asarray(ids), jnp.asarray(everywhere))
    for b in weights.blocks:
        last = True if b is weights.blocks[-1] else None
        x = block(x, b, CONFIG, jnp.asarray(everywhere), None, attend)
    return np.asarray(logits(weights, CONFIG, x[wanted]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernels", "length", "chunk"),
    [pytest.param("cpu", 84_000, 2048, id="cpu"), pytest.param("xla", 16_000, 512, id="xla")],
)
def test_far_beyond_the_training_length(kernels: str, length: int, chunk: int) -> None:
    """At the start, in the middle and at the end; and the last token alone, as a decode step."""
    weights = init_weights(CONFIG, jax.random.key(0), scale=0.25)
    own, attention = weights, xla_attention
    if kernels == "cpu":
        if not calls.available():
            pytest.skip("kernels were not built")
        own, attention = pack_weights(weights, CONFIG, WeightFormat(packed=True)), calls.paged_attention
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, length)
    checks = [3, chunk - 1, length // 2, length - 2, length - 1]
    run = PagedRun(own, CONFIG, rows=1, length=length, tokens=chunk, attention=attention, block=128)
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
    if kernels == "cpu" and not calls.available():
        pytest.skip("kernels were not built")
    attention: CacheAttention = calls.paged_attention if kernels == "cpu" else xla_attention
    weights = init_weights(CONFIG, jax.random.key(0))
    sizes = []
    for length in (4_000, 84_000):
        run = PagedRun(weights, CONFIG, rows=1, length=length, tokens=64, attention=attention, block=128)
        sizes.append(run.temporary_bytes())
    assert sizes[1] < sizes[0] + 16 * 1024  # the block table
