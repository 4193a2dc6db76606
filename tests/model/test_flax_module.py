"""The public face: the calls of the README, and their equality with the pure functions."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import FlaxMptForCausalLM, MptConfig, mpt_from_pretrained
from model.layers.forward import forward

STORYWRITER = Path(__file__).parents[1] / "golden" / "mpt-7b-storywriter"


def test_the_public_calls() -> None:
    params, config = mpt_from_pretrained(str(STORYWRITER), device=jax.devices("cpu")[0], dtype=jnp.float32)
    assert config.get_partition_rules(fsdp=True)
    model = FlaxMptForCausalLM(
        config,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
        _do_init=False,
        input_shape=(1, 1024),
    )
    golden = np.load(STORYWRITER / "golden.npz")
    logits = model(golden["ids"][None], params=params).logits
    assert logits.shape == (1, len(golden["ids"]), config.vocab_size)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits[0], golden["logits"], atol=2e-4)


def test_own_parameters_are_those_of_the_pure_functions() -> None:
    config = MptConfig.from_file(STORYWRITER)
    model = FlaxMptForCausalLM(config, param_dtype=jnp.bfloat16, _do_init=True, input_shape=(1, 8))
    assert model.params is not None
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.bfloat16)}
    ids = jnp.arange(8)[None]
    np.testing.assert_allclose(model(ids).logits, forward(model.params, config, ids), atol=1e-5)


def test_bfloat16_weights_are_the_only_rounding_on_a_cpu() -> None:
    params, config = mpt_from_pretrained(STORYWRITER, dtype=jnp.bfloat16)
    golden = np.load(STORYWRITER / "golden.npz")
    logits = FlaxMptForCausalLM(config)(golden["ids"][None], params=params).logits[0]
    np.testing.assert_allclose(logits, golden["logits"], atol=2e-4)


def test_misuse_is_named() -> None:
    model = FlaxMptForCausalLM(MptConfig.from_file(STORYWRITER))
    with pytest.raises(ValueError, match=r"no parameters: pass params=\.\.\."):
        model(jnp.zeros((1, 4), jnp.int32))
    with pytest.raises(ValueError, match=r"input_ids is float32 of shape \(4,\)"):
        model(jnp.zeros(4), params=None)
    with pytest.raises(ValueError, match=r"inputs_embeds is float32 of shape \(1, 4, 3\); .* \[batch, length, \d+\]"):
        model(inputs_embeds=jnp.zeros((1, 4, 3)))
    with pytest.raises(ValueError, match="input_ids or inputs_embeds, and not both"):
        model()


@pytest.mark.parametrize("case", ["mpt-7b-storywriter", "mosaic-gpt-positions-biases"])
def test_embeddings_in_place_of_tokens(case: str) -> None:
    """The rows of the table give what the ids give; one other row changes what comes after it, and nothing before."""
    params, config = mpt_from_pretrained(STORYWRITER.parent / case, dtype=jnp.float32)
    model = FlaxMptForCausalLM(config)
    ids = np.load(STORYWRITER.parent / case / "golden.npz")["ids"][None, :8]
    rows = params.wte[ids]
    logits = model(ids, params=params).logits
    np.testing.assert_allclose(model(inputs_embeds=rows, params=params).logits, logits, atol=1e-5)
    other = model(inputs_embeds=rows.at[0, 5].multiply(-1.0), params=params).logits
    np.testing.assert_allclose(other[0, :5], logits[0, :5], atol=1e-5)
    assert np.abs(np.asarray(other - logits))[0, 5:].max(axis=-1).min() > 1e-3


def test_learned_positions_end() -> None:
    config = MptConfig.from_dict(
        {"d_model": 16, "n_heads": 2, "n_layers": 1, "vocab_size": 32, "max_seq_len": 8, "attn_config": {}}
    )
    model = FlaxMptForCausalLM(config, _do_init=True)
    with pytest.raises(ValueError, match="9 tokens are longer than the 8 learned positions"):
        model(jnp.zeros((1, 9), jnp.int32))
