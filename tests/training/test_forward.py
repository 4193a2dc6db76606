"""The attention of training computes what the product's does, and its gradient."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from model.config.mpt_config import MptConfig
from model.layers import forward as product
from model.params.weights import Weights, init_weights
from training.architecture import config_dict
from training.forward import forward


def test_tiles_give_the_logits_and_gradients_of_the_whole() -> None:
    config = MptConfig.from_dict(config_dict(d_model=16, n_layers=1, n_heads=2, vocab_size=32))
    weights = init_weights(config, jax.random.key(0), jnp.float32)
    tokens = jax.random.randint(jax.random.key(1), (2, 150), 1, 32)  # two whole tiles and a part of one; no end of text

    def result(run: Callable[[Weights, MptConfig, jax.Array], jax.Array]) -> tuple[jax.Array, Weights]:
        def loss(weights: Weights) -> tuple[jax.Array, jax.Array]:
            logits = run(weights, config, tokens)
            return jnp.mean(jnp.square(logits)), logits

        (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(weights)
        return logits, gradients

    (ours, our_gradients), (theirs, their_gradients) = result(forward), result(product.forward)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), our_gradients, their_gradients)


def test_a_document_reads_nothing_of_those_before_it() -> None:
    config = MptConfig.from_dict(config_dict(d_model=16, n_layers=2, n_heads=2, vocab_size=32))
    weights = init_weights(config, jax.random.key(0), jnp.float32)
    first, second = jax.random.randint(jax.random.key(1), (2, 40), 1, 32)
    row = jnp.concatenate([first, jnp.zeros(1, jnp.int32), second])[None]  # 0 is the end-of-text mark
    expected = jax.jit(product.forward, static_argnums=1)(weights, config, second[None])
    np.testing.assert_allclose(jax.jit(forward, static_argnums=1)(weights, config, row)[:, 41:], expected, atol=1e-5)
