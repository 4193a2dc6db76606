"""Training learns, stops on schedule, resumes exactly, and exports what it trained."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from model.config.mpt_config import MptConfig
from model.layers.forward import forward
from model.params.weights import Weights, weight_specs
from training import evaluate, muon, schedule, train
from training.checkpoint import Progress, restore, save
from training.corpus import DIALOGUES, draw_example
from training.evaluate import Model, accuracy, decode, mismatches
from training.export import export, read_model
from training.packing import Batch, batch_at
from training.train_step import data_mesh, make_step, weighted_loss


@pytest.fixture
def short_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches small enough for a test."""
    monkeypatch.setattr(schedule, "ROWS", 2 * jax.device_count())  # as in the other tests: compiled once for all
    monkeypatch.setattr(schedule, "LENGTH", 64)


def test_steps_lower_the_loss_on_a_fixed_batch(config: MptConfig, weights: Weights, tokenizer: Tokenizer) -> None:
    batch = batch_at(0, 0, tokenizer, rows=2 * jax.device_count(), length=64, copy_phase=True)
    weights = jax.tree.map(jnp.copy, weights)  # the step takes over its arguments' memory
    step, state, losses = make_step(config, data_mesh()), muon.init_state(weights), []
    for _ in range(5):
        weights, state, loss = step(weights, state, batch.tokens, batch.weights, np.float32(0.2))
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.1


def test_loss_of_uniform_logits_is_the_log_of_the_vocabulary(config: MptConfig, weights: Weights) -> None:
    weights = jax.tree.map(jnp.zeros_like, weights)
    tokens = jnp.ones((2, 9), jnp.int32)
    total, count = weighted_loss(weights, config, tokens, jnp.full((2, 8), 0.5))
    assert float(count) == 8.0
    assert float(total / count) == pytest.approx(np.log(config.vocab_size), rel=1e-5)


def test_schedule_warms_up_holds_and_decays_to_zero() -> None:
    assert schedule.stage_at(0.0, 0).rate == 1 / schedule.WARMUP_STEPS
    assert schedule.stage_at(0.5, 1000).rate == 1.0
    assert 0.4 < schedule.stage_at(0.775, 1000).rate < 0.6
    assert schedule.stage_at(1.2, 1000).rate == 0.0
    assert schedule.stage_at(0.0, 0).copy_phase
    assert not schedule.stage_at(0.9, 0).copy_phase


@pytest.mark.usefixtures("short_rows")
def test_a_resumed_run_equals_an_uninterrupted_one(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    for name in ("tokenizer.json", "config.json"):
        (other / name).write_bytes((run_folder / name).read_bytes())
    straight = train.train(train.Options(run_folder, steps=4))
    train.train(train.Options(other, steps=4, stop_after=3))
    resumed = train.train(train.Options(other, steps=4))
    for one, two in zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.usefixtures("short_rows")
def test_a_run_begins_with_the_weights_of_a_folder_and_without_the_copying_phase(
    run_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = []

    def observed(*arguments: Any) -> Batch:
        phases.append(arguments[-1])
        return batch_at(*arguments)

    monkeypatch.setattr(train, "batch_at", observed)
    first = train.train(train.Options(run_folder, steps=1))
    out = tmp_path_factory.mktemp("second") / "run"
    begun = train.train(train.Options(out, start=run_folder, steps=4, stop_after=0))
    jax.tree.map(np.testing.assert_array_equal, begun, first)
    train.train(train.Options(out, start=run_folder, steps=4, stop_after=1))
    assert phases == [True, False]
    for name in ("tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (run_folder / name).read_bytes()


@pytest.mark.usefixtures("short_rows")
def test_the_table_has_a_column_for_each_kind_of_prompt_and_weights(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train.train(train.Options(run_folder, steps=1))
    arguments = [str(run_folder), "--count", "1", "--tasks", "sums_two_digits", "--columns", "clean", "int8"]
    monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
    capsys.readouterr()  # the log of the run
    evaluate.main()
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["task", "target", "clean", "int8"]
    assert row.split() == ["sums_two_digits", "0.80", "0.000", "0.000", "of", "1"]


def test_targets_are_of_tasks() -> None:
    assert evaluate.TARGETS.keys() <= DIALOGUES.keys()


def test_minutes_bound_a_run_by_its_own_time() -> None:
    options = train.Options(Path("run"), minutes=2.0)
    assert options.fraction(Progress(step=10, seconds=60.0)) == 0.5


def test_a_checkpoint_of_another_shape_is_refused(weights: Weights, tmp_path: Path) -> None:
    save(tmp_path / "c.npz", weights, muon.init_state(weights), Progress(step=3, tokens=5, seconds=1.5))
    _, _, progress = restore(tmp_path / "c.npz", weights, muon.init_state(weights))
    assert progress == Progress(3, 5, 1.5)
    wider = jax.tree.map(lambda leaf: np.zeros((*leaf.shape, 2), np.float32), weights)
    with pytest.raises(ValueError, match=r"c\.npz holds an array"):
        restore(tmp_path / "c.npz", wider, muon.init_state(wider))


@pytest.mark.usefixtures("short_rows")
def test_export_writes_the_weights_under_their_published_names(run_folder: Path) -> None:
    trained = train.train(train.Options(run_folder, steps=1))
    out = run_folder / "exported"
    export(run_folder, out)
    tensors = load_file(out / "model.safetensors")
    config = MptConfig.from_file(out)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {s.name: s.shape for s in weight_specs(config)}
    assert all(tensor.dtype == ml_dtypes.bfloat16 for tensor in tensors.values())
    weights, _, _ = read_model(out)
    ids = jnp.arange(12, dtype=jnp.int32)[None]
    logits = jax.jit(forward, static_argnums=1)
    np.testing.assert_allclose(logits(weights, config, ids), logits(trained, config, ids), atol=0.02)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "<|endoftext|>"
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [0, 3]


def test_one_pass_scoring_agrees_with_decoding(config: MptConfig, weights: Weights, tokenizer: Tokenizer) -> None:
    model = Model(weights, config, tokenizer)
    example = draw_example(0, 0, "sums")
    (answer,) = decode(model, [example.prompt], max_tokens=4)
    assert mismatches(model, [example]) == ([] if answer == example.reference else [example])
    assert accuracy(model, "sums", 4) == 0.0


def test_an_output_with_other_tokens_is_right(
    config: MptConfig, weights: Weights, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that generates "rosra" in other pieces than the tokenizer splits it into."""
    model = Model(weights, config, tokenizer)
    examples = [draw_example(evaluate.SEED, i, "json") for i in range(4)]
    assert len(mismatches(model, examples)) == 4
    texts = {example.prompt: example.reference for example in examples}
    monkeypatch.setattr(evaluate, "decode", lambda model, prompts, max_tokens: [texts[prompt] for prompt in prompts])
    assert accuracy(model, "json", 4) == 1.0
