"""The Pallas kernels against the readable reference, interpreted; and their lowering to Mosaic and to Triton.

Interpreted and lowered only: no TPU or GPU takes part in these tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array, export

from model.config.mpt_config import MptConfig
from model.kernels.pallas import gpu_attention, tpu_attention
from model.layers.attention import paged_attention
from model.params.kv_cache import LayerCache
from model.params.step_batch import StepBatch


def reference(q: Array, k_pool: Array, v_pool: Array, batch: StepBatch, config: MptConfig) -> Array:
    return paged_attention(q, LayerCache(k_pool, v_pool), batch, config)


ATTENTION: dict[str, Callable[..., Array]] = {
    "reference": reference,
    "tpu": partial(tpu_attention.paged_attention, query_tile=4, key_pages=2, interpret=True),
    "gpu": partial(gpu_attention.paged_attention, query_tile=4, key_tile=16, splits=2, interpret=True),
}
PLATFORMS = ["tpu", "gpu"]
ROWS, TOKENS, WIDTH, BLOCKS = 4, 24, 6, 29


def make_config(heads: int = 4, kv_heads: int = 4, head_dim: int = 16, **keys: Any) -> MptConfig:
    return MptConfig(d_model=heads * head_dim, n_heads=heads, kv_n_heads=kv_heads, n_layers=1, vocab_size=8, **keys)


@cache
def compiled(attention: str, config: MptConfig) -> Any:
    return jax.jit(partial(ATTENTION[attention], config=config))


@dataclass(frozen=True)
class Step:
    """Inputs of one ragged step."""

    q: Array
    k_pool: Array
    v_pool: Array
    batch: StepBatch

    def run(self, attention: str, config: MptConfig, **keys: Any) -> np.ndarray:
        """Return the results [tokens of all rows, H, hd]."""
        return self.run_padded(attention, config, **keys)[: int(np.sum(self.batch.query_len))]

    def run_padded(self, attention: str, config: MptConfig, **keys: Any) -> np.ndarray:
        return np.asarray(compiled(attention, config)(self.q, self.k_pool, self.v_pool, self.batch, **keys))


def make_step(
    rows: Sequence[tuple[int, int]],
    config: MptConfig,
    *,
    decode_only: bool = False,
    block: int = 8,
    dtype: Any = jnp.float32,
    unused: float = 0.0,
) -> Step:
    """Return rows (tokens in this step, tokens in all), single tokens first; slots of no key hold `unused`."""
    rng = np.random.default_rng(0)
    T = ROWS if decode_only else TOKENS
    tables = np.zeros((ROWS, WIDTH), np.int32)
    order = rng.permutation(BLOCKS - 1) + 1  # block 0 has no owner: padding refers to it
    start, length, context = np.zeros((3, ROWS), np.int32)
    pools = np.full((2, BLOCKS, config.kv_n_heads, block, config.head_dim), unused, np.float32)
    for r, (count, total) in enumerate(rows):
        own = order[r * WIDTH : (r + 1) * WIDTH]
        tables[r, : -(-total // block)] = own[: -(-total // block)]
        start[r], length[r], context[r] = length.sum(), count, total
        at = np.arange(total)
        keys = rng.normal(size=(total, 2, config.kv_n_heads, config.head_dim))
        pools[:, own[at // block], :, at % block] = keys
    token = np.zeros(T, np.int32)
    decodes = np.int32(sum(count == 1 for count, _ in rows))
    batch = StepBatch(token, token, token, tables, start, length, context, decodes, decode_only=decode_only)  # type: ignore[arg-type]
    q = jnp.asarray(rng.normal(size=(T, config.n_heads, config.head_dim)), jnp.float32)
    return Step(q, *(jnp.asarray(pool, dtype) for pool in pools), batch)


MIXED = [(1, 33), (1, 1), (9, 40), (6, 6)]
DECODES = [(1, 48), (1, 1), (1, 17)]  # and one padding row
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped heads, window, steep slopes": {"heads": 6, "kv_heads": 2, "sliding_window": 11, "alibi_bias_max": 4.0},
    "one key head of many": {"heads": 20, "kv_heads": 1},
    "heads of 80, soft cap, scale, no alibi": {
        "heads": 2,
        "kv_heads": 2,
        "head_dim": 80,
        "attn_logit_softcap": 3.0,
        "softmax_scale": 0.7,
        "alibi": False,
    },
}


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_mixed_step_equals_the_reference(platform: str, variant: str) -> None:
    """With inf in the slots of no key; the reference is given clean ones."""
    config = make_config(**VARIANTS[variant])
    expected = make_step(MIXED, config).run("reference", config)
    found = make_step(MIXED, config, unused=np.inf).run(platform, config)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_decode_step_equals_the_reference(platform: str) -> None:
    """With blocks of no power of two."""
    config = make_config(**VARIANTS["grouped heads, window, steep slopes"])
    expected = make_step(DECODES, config, decode_only=True, block=12).run("reference", config)
    found = make_step(DECODES, config, decode_only=True, block=12, unused=np.nan).run(platform, config)
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("platform", "dtype"), [("tpu", jnp.bfloat16), ("gpu", jnp.bfloat16), ("gpu", jnp.float16)])
def test_16_bit_cache_multiplies_16_bit_operands(platform: str, dtype: Any) -> None:
    """Queries and weights are rounded to 16 bits (at worst bfloat16's 8 significant ones), sums are not."""
    config = make_config()
    expected = make_step(MIXED, config, dtype=dtype).run("reference", config)
    found = make_step(MIXED, config, dtype=dtype, unused=np.nan).run(platform, config)
    np.testing.assert_allclose(found, expected, atol=3e-2)


def test_tpu_kernel_refuses_float16() -> None:
    """Mosaic has no conversion for it; interpreted, it would pass."""
    with pytest.raises(ValueError, match="cache_dtype is float16"):
        make_step(MIXED, make_config(), dtype=jnp.float16).run("tpu", make_config())


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("rows", [[], [(1, 3), (5, 5)]])
def test_tokens_of_no_row_come_out_zero(platform: str, rows: list[tuple[int, int]]) -> None:
    """Padding rows name block 0, which holds nan here: it is not looked at. A warm-up's step is padding alone."""
    config = make_config()
    step = make_step(rows, config, unused=np.nan)
    out = step.run_padded(platform, config)
    real = sum(count for count, _ in rows)
    assert np.all(out[:real] != 0)
    np.testing.assert_array_equal(out[real:], 0)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_pools_may_be_wider_than_heads(platform: str) -> None:
    """As a TPU wants them for heads of, say, 112: whole lanes in memory, zeros beyond the head."""
    config = make_config()
    step = make_step(MIXED, config)
    k_pool, v_pool = (jnp.pad(pool, ((0, 0), (0, 0), (0, 0), (0, 8))) for pool in (step.k_pool, step.v_pool))
    found = replace(step, k_pool=k_pool, v_pool=v_pool).run(platform, config)
    np.testing.assert_allclose(found, step.run("reference", config), atol=2e-5)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_device_with_half_of_the_heads_takes_their_slopes(platform: str) -> None:
    config = make_config()
    step = make_step(MIXED, config)
    half = replace(step, q=step.q[:, 2:], k_pool=step.k_pool[:, 2:], v_pool=step.v_pool[:, 2:])
    found = half.run(platform, config, slopes=jnp.asarray([2.0**-6, 2.0**-8]))  # of heads 2 and 3 of 4
    np.testing.assert_allclose(found, step.run("reference", config)[:, 2:], atol=2e-5)


@settings(max_examples=25)
@given(
    decodes=st.lists(st.integers(1, WIDTH * 8), max_size=2),
    chunks=st.lists(st.tuples(st.integers(2, 11), st.integers(0, WIDTH * 8 - 11)), max_size=2),
    variant=st.sampled_from(["plain", "grouped heads, window, steep slopes"]),
)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_any_ragged_step_equals_the_reference(
    platform: str, decodes: list[int], chunks: list[tuple[int, int]], variant: str
) -> None:
    config = make_config(**VARIANTS[variant])
    rows = [(1, total) for total in decodes] + [(count, before + count) for count, before in chunks]
    expected = make_step(rows, config).run("reference", config)
    found = make_step(rows, config, unused=np.nan).run(platform, config)
    np.testing.assert_allclose(found, expected, atol=2e-5)


TRITON = "__gpu$xla.gpu.triton"


def lowered(platform: str, attention: Callable[..., Array], decode_only: bool, **shape: Any) -> str:
    """Return the text of the exported program of an MPT-7B-like layer."""
    heads, kv_heads, hd, block, dtype = (shape[k] for k in ("heads", "kv_heads", "head_dim", "block", "dtype"))
    config = make_config(heads, kv_heads, hd, sliding_window=shape.get("window"))
    R, W = 16, 2048 // block
    T = R if decode_only else 512
    integers = [(T,), (T,), (T,), (R, W), (R,), (R,), (R,), ()]
    batch = StepBatch(*(jax.ShapeDtypeStruct(s, jnp.int32) for s in integers), decode_only=decode_only)  # type: ignore[arg-type]
    pool = jax.ShapeDtypeStruct((R * W, kv_heads, block, hd), dtype)
    q = jax.ShapeDtypeStruct((T, heads, hd), jnp.float32)
    run = jax.jit(lambda *inputs: attention(*inputs, config))
    checks = [export.DisabledSafetyCheck.custom_call(TRITON)]  # Triton's call promises nothing across versions
    return export.export(run, platforms=[platform], disabled_checks=checks)(q, pool, pool, batch).mlir_module()


SHAPES = [
    {"heads": 32, "kv_heads": 32, "head_dim": 128, "block": 16, "dtype": jnp.bfloat16},
    {"heads": 32, "kv_heads": 8, "head_dim": 128, "block": 64, "dtype": jnp.bfloat16, "window": 1000},
    {"heads": 48, "kv_heads": 1, "head_dim": 112, "block": 32, "dtype": jnp.float32},
]


@pytest.mark.parametrize("decode_only", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_lowers_to_mosaic(shape: dict[str, Any], decode_only: bool) -> None:
    module = lowered("tpu", tpu_attention.paged_attention, decode_only, **shape)
    assert module.count("@tpu_custom_call") == (1 if decode_only else 2)


@pytest.mark.parametrize("decode_only", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="JAX 0.11 lowers Triton kernels only beside a GPU")
def test_lowers_to_triton(shape: dict[str, Any], decode_only: bool) -> None:
    module = lowered("cuda", gpu_attention.paged_attention, decode_only, **shape)
    assert module.count(f"@{TRITON}") == (1 if decode_only else 2)
