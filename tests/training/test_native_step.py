"""The native step computes the loss, the gradients and the updates of the compiled one, to bfloat16's accuracy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.config.mpt_config import MptConfig
from model.params.weights import Weights, init_weights
from training import muon, native_step, train
from training.architecture import config_dict
from training.native_step import NativeStep
from training.schedule import ADAM_RATE, MUON_RATE
from training.train_step import weighted_loss

CONFIG = MptConfig.from_dict(config_dict(d_model=64, n_layers=2, n_heads=2, vocab_size=160))
LENGTH = 96

pytestmark = pytest.mark.skipif(
    not native_step.usable(CONFIG, LENGTH), reason="needs a C++ compiler and a processor with AVX512-BF16"
)


@pytest.fixture(scope="module")
def weights() -> Weights:
    # Ten times the usual start, so that attention is far from uniform.
    start = jax.jit(lambda key: init_weights(CONFIG, key, jnp.float32))(jax.random.key(0))
    return jax.tree.map(lambda leaf: np.asarray(leaf * 10 if leaf.ndim == 2 else leaf * 1.1), start)


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Return rows of several documents, of one document, and with padding: tokens and target weights."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 160, (3, LENGTH + 1)).astype(np.int32)
    tokens[0, [0, 20, 33, 77]] = 0
    shares = rng.choice(np.float32([0, 1, 0.5]), (3, LENGTH))
    tokens[2, 50:], shares[2, 49:] = 1, 0
    return tokens, shares


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(ours) - np.asarray(theirs)) / np.linalg.norm(theirs))


def test_loss_and_gradients_are_those_of_the_compiled_step(
    weights: Weights, batch: tuple[np.ndarray, np.ndarray]
) -> None:
    def mean_loss(weights: Weights) -> jax.Array:
        total, count = weighted_loss(weights, CONFIG, *map(jnp.asarray, batch))
        return total / count

    expected, gradients = jax.jit(jax.value_and_grad(mean_loss))(weights)
    for threads in (1, 2):
        loss, ours = NativeStep(CONFIG, LENGTH, threads).gradient(weights, *batch)
        assert loss == pytest.approx(float(expected), rel=2e-3)
        assert max(jax.tree.leaves(jax.tree.map(_distance, ours, gradients))) < 0.03


def test_updates_are_those_of_the_optimisers(weights: Weights, batch: tuple[np.ndarray, np.ndarray]) -> None:
    native = NativeStep(CONFIG, LENGTH, 2)
    ours, state = jax.tree.map(np.array, (weights, muon.init_state(weights)))
    theirs, their_state = weights, muon.init_state(weights)
    update = jax.jit(muon.update)
    for step in (1, 2):
        _, gradient = native.gradient(ours, *batch)
        before = jax.tree.map(np.array, ours)
        theirs, their_state = update(before, gradient, their_state, MUON_RATE * 0.5, ADAM_RATE * 0.5)
        ours, state, _ = native(ours, state, *batch, 0.5)
        assert state.step == step
        moved, expected = (jax.tree.map(np.subtract, after, before) for after in (ours, theirs))
        distances = jax.tree.map(_distance, moved, expected)
        assert max(jax.tree.leaves(distances)) < 0.05
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-8), state.first, their_state.first
        )


def test_steps_repeat_exactly(weights: Weights, batch: tuple[np.ndarray, np.ndarray]) -> None:
    results = []
    for _ in range(2):
        start = jax.tree.map(np.array, (weights, muon.init_state(weights)))
        results.append(NativeStep(CONFIG, LENGTH, 2)(*start, *batch, 1.0)[0])
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_a_document_reads_nothing_of_those_before_it(weights: Weights, batch: tuple[np.ndarray, np.ndarray]) -> None:
    native = NativeStep(CONFIG, LENGTH, 1)
    tokens, shares = (part[:1].copy() for part in batch)
    shares[0, :34] = 0  # the documents that begin at 34 and 78
    loss, _ = native.gradient(weights, tokens, shares)
    tokens[0, :33] = 5
    assert native.gradient(weights, tokens, shares)[0] == loss


def test_runs_take_the_native_step_where_they_can(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    state = muon.init_state(weights)
    monkeypatch.setattr(train.schedule, "LENGTH", LENGTH)
    step, (own, _) = train.choose_step(CONFIG, weights, state)
    assert isinstance(step, NativeStep)
    assert all(isinstance(leaf, np.ndarray) and leaf.flags.writeable for leaf in jax.tree.leaves(own))
    monkeypatch.setattr(train.schedule, "LENGTH", LENGTH + 1)
    assert not isinstance(train.choose_step(CONFIG, weights, state)[0], NativeStep)


@pytest.mark.parametrize(
    "change",
    [{"alibi": False}, {"logit_scale": 0.5}, {"n_heads": 4}, {"vocab_size": 150}],
)
def test_other_models_are_left_to_the_compiled_step(change: dict[str, object]) -> None:
    assert not native_step.usable(replace(CONFIG, **change), LENGTH)
