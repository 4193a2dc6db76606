"""Steps by a session against the same steps by XLA's programs: equal to the last bit on every instruction set."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.checkpoint.pack import pack_weights
from model.config.mpt_config import MptConfig
from model.kernels.cpu.session import computes_sessions
from model.ops.rope import RopeConfig
from model.params.weight_format import WeightFormat
from model.params.weights import init_weights
from model.sampling.batch import PROMPT
from mpt_serve.engine.memory import CachePlan
from mpt_serve.engine.request import Request
from mpt_serve.engine.runner import Runner
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.engine.step_output import Sampled
from mpt_serve.engine.step_rows import Row, StepRows
from mpt_serve.engine.token_masks import TokenMasks, Words, mask_below, mask_words

VOCAB, LIMIT = 90, 83
CONFIG = MptConfig(d_model=64, n_heads=4, kv_n_heads=2, n_layers=2, vocab_size=VOCAB, max_seq_len=64)
ROPE = replace(CONFIG, alibi=False, rope=RopeConfig(scaling="linear", factor=2.0), qk_norm="gn")

PARAMS = (
    SamplingParams(temperature=0, logprobs=3),
    SamplingParams(temperature=1.3, seed=7, top_p=0.9, min_p=0.01, logprobs=0),
    SamplingParams(temperature=0.8, seed=2**64 - 3, top_k=9, repetition_penalty=1.3, presence_penalty=0.2),
    SamplingParams(temperature=2, seed=1, frequency_penalty=0.5, logit_bias={3: 2.5}, allowed_token_ids=[1, 3, 40, 82]),
)


@cache  # compiled once, for all instruction sets
def make_runner(config: MptConfig, dtype: str, quantization: str, cache_dtype: str, native: bool) -> Runner:
    source = np.random.default_rng(5)
    shapes = jax.eval_shape(lambda: init_weights(config, jax.random.key(0)))
    weights = jax.tree.map(lambda x: jnp.asarray(source.normal(0, 0.2, x.shape).astype(dtype)), shapes)
    weights = pack_weights(weights, config, WeightFormat(quantization, packed=True, group=16))
    assert computes_sessions(weights, config)
    runner = Runner(weights, config, CachePlan(32, 8, 64), cache_dtype, 4, 16, 16, LIMIT)
    if not native:
        runner._native = None
    return runner


def make_requests() -> list[Request]:
    """Return a request for each of `PARAMS`, in its slot and with its blocks."""
    source = np.random.default_rng(3)
    requests = []
    for i, params in enumerate(PARAMS):
        prompt = tuple(source.integers(0, LIMIT, 3 + i % 2).tolist())
        masks = TokenMasks(params, (), mask_below(LIMIT, VOCAB))
        request = Request(f"r{i}", prompt, params, seed=params.seed or 0, max_output=20, choice_index=i)
        request.token_masks = masks if masks.binding else None
        request.slot, request.blocks = 3 - i, [4 * i, 4 * i + 2, 4 * i + 1]
        requests.append(request)
    return requests


def masks_of(rows: Sequence[Row], samples: int) -> Words | None:
    if not any(row.masked for row in rows):
        return None
    masks = np.zeros((samples, mask_words(VOCAB)), np.uint32)
    begin = 0
    for row in rows:
        if row.request.token_masks is not None and row.samples:
            row.request.token_masks.fill(0, (), row.drafts, masks[begin : begin + row.samples])
        begin += row.samples
    return masks


def set_slot(runner: Runner, request: Request) -> None:
    counts, bias = np.zeros(VOCAB, np.int32), np.zeros(VOCAB, np.float32)
    counts[list(request.prompt_ids)] += PROMPT
    for token, value in request.params.biases:
        bias[token] = value
    runner.set_slot(request.slot, counts, bias)


def run_steps(runner: Runner) -> list[np.ndarray]:
    """Run prompts, decode steps that take their tokens from one another, and drafts; return all that came out."""
    state = runner._state
    state.cache, state.slots = jax.tree.map(jnp.zeros_like, (state.cache, state.slots))
    requests, found, pending = make_requests(), [], []
    for request in requests:
        set_slot(runner, request)
    prompts = [Row(r, 0, len(r.prompt_ids), 1, token_in_flight=False) for r in requests]
    decodes = [[Row(r, len(r.prompt_ids) + n, 1, 1, token_in_flight=True) for r in requests[: 4 - n]] for n in range(3)]
    for rows, num_decode in ((prompts, 0), *((rows, len(rows)) for rows in decodes)):
        prepared = runner.prepare(StepRows(rows, num_decode, [(0, 30)]))
        pending.append(runner.step(prepared, masks_of(rows, prepared.key.num_samples))[1])
        for row in rows:
            row.request.in_flight = 1  # the host knows none of the ids
    found += [np.asarray(sampled)[: len(rows)] for sampled, rows in zip(pending, (prompts, *decodes), strict=True)]
    first = requests[0]
    first.output_ids, first.in_flight = [int(sampled[0, 0]) for sampled in found], 0
    drafting = [Row(first, len(first.prompt_ids) + 3, 3, 3, token_in_flight=False, drafts=(5, 6))]
    found.append(np.asarray(runner.step(runner.prepare(StepRows(drafting, 0)))[1])[:3])
    if runner._native is not None:
        runner._native.finish()
    return [*found, *map(np.asarray, jax.tree.leaves((state.cache, state.slots)))]


@pytest.mark.parametrize(
    ("config", "formats"),
    [
        (CONFIG, ("float32", "none", "float32")),
        (CONFIG, ("bfloat16", "none", "bfloat16")),
        (CONFIG, ("bfloat16", "int8", "int8")),
        (CONFIG, ("bfloat16", "int4", "bfloat16")),
        (ROPE, ("bfloat16", "none", "bfloat16")),
    ],
    ids=["float32", "bfloat16", "int8", "int4", "rope"],
)
def test_steps_of_a_session_are_those_of_the_programs(library, config, formats):
    expected, found = (run_steps(make_runner(config, *formats, native=native)) for native in (False, True))
    assert all((step[:, 0] >= 0).all() for step in expected[:5])
    assert len({tuple(step[:, 0].tolist()) for step in expected[:4]}) > 1
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


def test_a_step_is_read_while_the_next_one_runs(library, monkeypatch):
    runner = make_runner(CONFIG, "float32", "none", "float32", native=True)
    run_steps(runner)  # opens the session
    session, waits = runner._native._session, []
    finish = session.finish
    monkeypatch.setattr(session, "finish", lambda: waits.append(finish()))
    request = make_requests()[0]
    row = Row(request, 0, len(request.prompt_ids), 1, token_in_flight=False)
    behind, ahead = (runner.step(runner.prepare(StepRows([row], 0)))[1] for _ in range(2))
    waits.clear()  # for XLA, before the first step
    counts = [(int(np.asarray(step)[0, 0]), len(waits)) for step in (behind, ahead)]
    first = counts[0][0]
    assert counts == [(first, 0), (first, 1)]


@pytest.mark.parametrize("delay_s", [0.0, 1e-5, 3e-5, 1e-4])
def test_a_step_that_was_abandoned_is_as_if_it_had_not_begun(library, delay_s):
    """Whenever another thread abandons it: it is complete, or the same step is begun again."""
    runner = make_runner(CONFIG, "float32", "none", "float32", native=True)
    expected = run_steps(runner)[0]
    state = runner._state
    for _ in range(50):
        rows = begin_requests(runner, background=True)
        before = [np.array(x) for x in jax.tree.leaves(state.slots)]
        sampled = start(runner, rows)
        abandon = threading.Timer(delay_s, runner.abandon)
        abandon.start()
        done = runner.completes(sampled)
        abandon.join()
        if not done:
            for old, new in zip(before, jax.tree.leaves(state.slots), strict=True):
                np.testing.assert_array_equal(old, new)
            sampled = start(runner, rows)
            assert runner.completes(sampled)
        np.testing.assert_array_equal(np.asarray(sampled)[: len(rows)], expected)


@pytest.mark.parametrize("background", [True, False])
def test_steps_in_the_background_alone_are_abandoned(library, background):
    runner = make_runner(CONFIG, "float32", "none", "float32", native=True)
    expected = run_steps(runner)[0]
    rows = begin_requests(runner, background=background)
    runner.abandon()  # nothing is in flight: this has no effect
    library.limit_threads(1)  # so that nothing is computed before somebody waits for it
    try:
        sampled = start(runner, rows)
        runner.abandon()
        assert runner.completes(sampled) != background
    finally:
        library.limit_threads(None)
    if background:
        sampled = start(runner, rows)
        assert runner.completes(sampled)
    np.testing.assert_array_equal(np.asarray(sampled)[: len(rows)], expected)


def begin_requests(runner: Runner, background: bool) -> list[Row]:
    """Return rows of the prompts of all requests, as the first ones of a runner."""
    state = runner._state
    state.cache, state.slots = jax.tree.map(jnp.zeros_like, (state.cache, state.slots))
    requests = make_requests()
    for request in requests:
        request.params = replace(request.params, background=background)
        set_slot(runner, request)
    return [Row(r, 0, len(r.prompt_ids), 1, token_in_flight=False) for r in requests]


def start(runner: Runner, rows: list[Row]) -> Sampled:
    prepared = runner.prepare(StepRows(rows, 0))
    return runner.step(prepared, masks_of(rows, prepared.key.num_samples))[1]


@pytest.mark.parametrize("addition", [{"logit_scale": 0.5}, {"final_logit_softcap": 2.0}, {"learned_positions": True}])
def test_models_whose_embedding_or_logits_are_more_than_a_matrix_have_no_session(addition):
    config = MptConfig(d_model=32, n_heads=2, n_layers=1, vocab_size=40, alibi=not addition.get("learned_positions"))
    weights = init_weights(config, jax.random.key(0))
    packed = pack_weights(weights, config, WeightFormat("none", packed=True))
    assert computes_sessions(packed, MptConfig(**{**vars(config), "learned_positions": False}))
    assert not computes_sessions(packed, MptConfig(**{**vars(config), **addition}))
