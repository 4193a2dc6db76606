"""The step lowers for GPU and TPU. Lowered and checked, not run: no such hardware takes part in these tests."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from model.config.mpt_config import MptConfig
from model.layers.paged_forward import forward_step, lm_logits
from model.params.kv_cache import KvCache, init_kv_cache
from model.params.step_batch import StepBatch, row_ends
from model.params.weights import Weights, init_weights

CONFIG = MptConfig(d_model=64, n_heads=4, n_layers=2, vocab_size=256, kv_n_heads=2, clip_qkv=6.0, sliding_window=32)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("decode_only", [True, False])
def test_step_lowers_with_operands_in_bfloat16(platform: str, decode_only: bool) -> None:
    """On accelerators the products take 16-bit operands and accumulate in float32."""

    def step(weights: Weights, cache: KvCache, batch: StepBatch) -> tuple[jax.Array, KvCache]:
        hidden, cache = forward_step(weights, CONFIG, cache, batch)
        return lm_logits(weights, CONFIG, hidden[row_ends(batch)]), cache

    weights = jax.eval_shape(lambda: init_weights(CONFIG, jax.random.key(0), jnp.bfloat16))
    cache = jax.eval_shape(lambda: init_kv_cache(CONFIG, 16, 32, jnp.bfloat16))
    R, T = 8, 8 if decode_only else 64
    shapes = [(T,), (T,), (T,), (R, 4), (R,), (R,), (R,), ()]
    batch = StepBatch(*(jax.ShapeDtypeStruct(s, jnp.int32) for s in shapes), decode_only=decode_only)  # type: ignore[arg-type]
    exported = export.export(jax.jit(step), platforms=(platform,))(weights, cache, batch)
    assert exported.platforms == (platform,)
    assert exported.out_avals[0].shape == (R, CONFIG.vocab_size)
    products = [line for line in exported.mlir_module().splitlines() if "dot_general" in line]
    assert any("xbf16>" in line and "xf32>" in line.split("->")[-1] for line in products)
