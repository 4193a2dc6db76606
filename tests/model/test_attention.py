"""The paged attention against the dense one, over shapes, lengths and switches; and the numbers of ALiBi themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import jit, random
from jax import numpy as jnp
from paged_run import PagedRun

from model.config.mpt_config import MptConfig
from model.layers.attention import dense_attention
from model.layers.forward import forward
from model.ops.alibi import alibi_slopes
from model.params.weights import init_weights

full_forward = jit(forward, static_argnums=1)
SHAPE = {"model_type": "mpt", "d_model": 32, "n_heads": 4, "n_layers": 1, "vocab_size": 64, "max_seq_len": 64}


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    kv_heads=st.sampled_from([2, 4]),
    window=st.sampled_from([-1, 5]),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_ragged_steps_equal_whole_sequences(
    lengths: list[int], kv_heads: int, window: int, seed: int, data: st.DataObject
) -> None:
    """Rows of any lengths, cut anywhere, mixed in any steps, give the logits of their full forward pass."""
    attn = {
        "attn_type": "grouped_query_attention",
        "kv_n_heads": kv_heads,
        "alibi": True,
        "sliding_window_size": window,
    }
    config = MptConfig.from_dict({**SHAPE, "attn_config": attn})
    weights = init_weights(config, random.key(seed), scale=0.2)
    ids = [np.random.default_rng([seed, i]).integers(0, 64, n) for i, n in enumerate(lengths)]
    run = PagedRun(weights, config, rows=4, length=70, tokens=280)
    done, last = [0] * len(ids), {}
    while any(d < len(i) for d, i in zip(done, ids, strict=True)):
        chunks = []
        for row, (at, sequence) in enumerate(zip(done, ids, strict=True)):
            n = (
                min(data.draw(st.integers(0, 40)), len(sequence) - at)
                if chunks or row + 1 < len(ids)
                else len(sequence)
            )
            part = sequence[at : at + n]
            if len(part):
                chunks.append((row, at, part))
                done[row] += len(part)
        last.update(run.step(chunks))
    padded = np.stack([np.pad(sequence, (0, 70 - len(sequence))) for sequence in ids + [ids[0]] * (4 - len(ids))])
    whole = np.asarray(full_forward(weights, config, padded))  # causal: padding at the end changes nothing before it
    for row, sequence in enumerate(ids):
        np.testing.assert_allclose(last[row], whole[row, len(sequence) - 1], atol=1e-4)


def test_earlier_contents_of_a_block_have_no_effect() -> None:
    """A longer row beside it makes a short row's loop run over blocks that are not its own; inf there does nothing."""
    config = MptConfig.from_dict({**SHAPE, "attn_config": {"alibi": True}})
    weights = init_weights(config, random.key(0), scale=0.2)
    ids = np.random.default_rng(0).integers(0, 64, 60)
    whole = np.asarray(full_forward(weights, config, ids[None]))[0]
    run = PagedRun(weights, config, rows=4, length=70, tokens=280)
    run.fill_cache(np.inf)
    run.step([(0, 0, ids[:3]), (1, 0, ids[:59])])
    both = run.step([(0, 3, ids[3:4]), (1, 59, ids[59:])])
    np.testing.assert_allclose(both[0], whole[3], atol=1e-4)
    np.testing.assert_allclose(both[1], whole[59], atol=1e-4)


def test_dense_attention_in_tiles_equals_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MptConfig.from_dict({**SHAPE, "attn_config": {"alibi": True}})
    q, k, v = (random.normal(random.key(i), (2, 45, 4, 8)) for i in range(3))
    whole = dense_attention(q, k, v, jnp.arange(45), config)
    monkeypatch.setattr("model.layers.attention._DENSE_QUERIES", 16)
    np.testing.assert_allclose(dense_attention(q, k, v, jnp.arange(45), config), whole, atol=1e-6)


@pytest.mark.parametrize("n_heads", [1, 2, 8, 12, 20, 24, 56, 64, 112])
def test_alibi_slopes(n_heads: int) -> None:
    """Press et al.: powers of two are a geometric series; others fill up with the odd places of the next series."""
    slopes = alibi_slopes(n_heads, 8.0)
    below = 1 << (n_heads.bit_length() - 1)
    series = [2.0 ** (-8.0 * (i + 1) / below) for i in range(below)]
    between = [2.0 ** (-8.0 * (i + 1) / (2 * below)) for i in range(0, 2 * below, 2)]
    np.testing.assert_allclose(slopes, (series + between)[:n_heads], rtol=1e-6)


def test_bias_is_exact_far_beyond_the_training_length() -> None:
    """Two equal keys 60,000 apart under a flat slope: the weights' ratio is exp(-slope * distance), in float32."""
    config = MptConfig.from_dict({**SHAPE, "attn_config": {"alibi": True, "alibi_bias_max": 16}})
    zeros = jnp.zeros((1, 2, 4, 8))
    values = jnp.stack([jnp.zeros((4, 8)), jnp.ones((4, 8))])[None]
    out = dense_attention(zeros, zeros, values, jnp.array([0, 60_000]), config)[0, 1, :, 0]
    expected = 1 / (1 + np.exp(-60_000 * alibi_slopes(4, 16.0).astype(np.float64)))
    np.testing.assert_allclose(out, expected, rtol=1e-6)
