"""The engine on a tiny MPT: the ids of every request are its own, whatever else the engine is doing."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compilation import with_devices
from engine_helpers import Listener, assert_all_free, generate, held_after, wait_idle, wait_until
from reference import check_generated
from small_engine import SETTINGS, VOCAB_LIMIT

from model.checkpoint.save import save_checkpoint
from model.config.mpt_config import MptConfig
from model.kernels.cpu.library import kernels_available
from model.params.weights import Weights
from mpt_serve.engine import (
    Delta,
    Engine,
    EngineClosedError,
    EngineConfig,
    RequestError,
    SamplingParams,
)
from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.token_masks import GrammarState

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB_LIMIT, size=length).tolist()


@contextmanager
def limited(engine: Engine, num_blocks: int | None = None, budget: int | None = None) -> Iterator[None]:
    """An idle engine with fewer blocks or a smaller token budget than it was compiled for."""
    wait_idle(engine)
    scheduler = engine._scheduler
    before = scheduler.pool, scheduler.max_num_batched_tokens
    scheduler._tables.pool = BlockPool(num_blocks, scheduler.pool.block_size) if num_blocks else scheduler.pool
    scheduler.max_num_batched_tokens = budget or scheduler.max_num_batched_tokens
    try:
        yield
    finally:
        # What the pool before kept for later prompts has been overwritten.
        scheduler._tables.pool = BlockPool(before[0].num_blocks, before[0].block_size)
        scheduler.max_num_batched_tokens = before[1]


@pytest.fixture(scope="module")
def lazy_engine(weights: Weights, config: MptConfig):  # type: ignore[no-untyped-def]
    """Makes engines that compile on first use, mostly from the cache that `engine` filled."""
    engines = []

    def make(settings: EngineConfig = SETTINGS, weights: Weights = weights, **more: object) -> Engine:
        engines.append(Engine(weights, config, settings.replace(pre_compile=False), VOCAB_LIMIT, **more))  # type: ignore[arg-type]
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def test_greedy_ids_are_those_of_the_full_forward_pass(engine: Engine, weights: Weights, config: MptConfig) -> None:
    prompts = [prompt_of(length, length) for length in (1, 2, 4, 5, 15, 16, 17, 33, 50, 63)]
    for prompt, completion in zip(prompts, generate(engine, prompts, GREEDY), strict=True):
        assert completion.finish_reason == "length"
        assert len(completion.token_ids) == min(12, config.max_seq_len - len(prompt))
        check_generated(weights, config, VOCAB_LIMIT, prompt, GREEDY, completion.token_ids)


def test_sampled_ids_are_those_that_the_seed_draws_from_the_full_forward_pass(
    engine: Engine, weights: Weights, config: MptConfig
) -> None:
    prompts = [prompt_of(length, length) for length in (3, 12, 30)]
    for params in (SamplingParams(max_tokens=20, seed=5), SamplingParams(max_tokens=20, seed=6, top_k=9, min_p=0.01)):
        for prompt, completion in zip(prompts, generate(engine, prompts, params), strict=True):
            check_generated(weights, config, VOCAB_LIMIT, prompt, params, completion.token_ids)


def test_64_requests_together_give_what_each_gives_alone(engine: Engine, weights: Weights, config: MptConfig) -> None:
    random = np.random.default_rng(7)
    prompts = [prompt_of(int(random.integers(1, 50)), seed) for seed in range(64)]
    params = [
        SamplingParams(
            max_tokens=int(random.integers(1, 14)),
            temperature=[0.0, 1.0, 0.7][seed % 3],
            top_k=[0, 0, 20][seed % 3],
            top_p=[1.0, 0.9][seed % 2],
            seed=seed,
        )
        for seed in range(64)
    ]
    together = generate(engine, prompts, params)
    assert_all_free(engine)
    for prompt, own, completion in zip(prompts, params, together, strict=True):
        (alone,) = generate(engine, [prompt], own)
        if kernels_available():  # no row's numbers depend on another row
            assert alone == completion
        check_generated(weights, config, VOCAB_LIMIT, prompt, own, completion.token_ids)


def test_preemption_loses_nothing(engine: Engine, weights: Weights, config: MptConfig) -> None:
    prompts = [prompt_of(length, length) for length in (9, 3, 20, 14, 1, 30, 7, 8)]
    params = [SamplingParams(max_tokens=30, temperature=seed % 2, seed=seed) for seed in range(8)]
    with limited(engine, num_blocks=16):
        completions = generate(engine, prompts, params)
        engine._scheduler.check_integrity()
        assert engine._scheduler.pool.num_free == 16
    assert engine.stats().preemptions > 0
    for prompt, own, completion in zip(prompts, params, completions, strict=True):
        assert len(completion.token_ids) == 30
        check_generated(weights, config, VOCAB_LIMIT, prompt, own, completion.token_ids)


@pytest.mark.parametrize("chunk", [5, 6, 7, 11, 16])
def test_ids_do_not_depend_on_how_the_prompt_is_chunked(
    engine: Engine, weights: Weights, config: MptConfig, chunk: int
) -> None:
    prompts, params = [prompt_of(37), prompt_of(20, 1)], SamplingParams(max_tokens=8, seed=3)
    with limited(engine, budget=chunk):
        completions = generate(engine, prompts, params)
    for prompt, completion in zip(prompts, completions, strict=True):
        check_generated(weights, config, VOCAB_LIMIT, prompt, params, completion.token_ids)


def test_seeds_decide(engine: Engine) -> None:
    prompt, params = prompt_of(10), SamplingParams(max_tokens=20, seed=1)
    first, again, other, choice = generate(
        engine, [prompt] * 4, [params, params, replace(params, seed=2), replace(params, choice_index=1)]
    )
    assert first == again
    assert len({first, other, choice}) == 3
    unseeded = generate(engine, [prompt] * 2, SamplingParams(max_tokens=20))
    assert unseeded[0] != unseeded[1]


def test_negative_and_large_seeds_are_64_bit_numbers(engine: Engine) -> None:
    a, b, c = generate(engine, [prompt_of(5)] * 3, [SamplingParams(seed=seed) for seed in (-1, 2**64 - 1, 2**32 - 1)])
    assert a == b
    assert a != c


def test_padding_of_the_vocabulary_is_never_sampled(lazy_engine, weights: Weights) -> None:  # type: ignore[no-untyped-def]
    # The head is tied: huge embeddings of the padding ids give them huge logits of either sign.
    loud = weights.replace(wte=weights.wte.at[VOCAB_LIMIT:].mul(1e4))  # type: ignore[attr-defined]
    engine = lazy_engine(weights=loud)
    params = [SamplingParams(max_tokens=20, temperature=temperature, seed=1) for temperature in (0, 1, 5)]
    for completion in generate(engine, [prompt_of(6)] * 3, params):
        assert max(completion.token_ids) < VOCAB_LIMIT


def test_stop_ids_end_a_request_and_are_part_of_it(engine: Engine) -> None:
    (free,) = generate(engine, [prompt_of(8)], GREEDY)
    stop = free.token_ids[5]
    first = free.token_ids.index(stop)
    (stopped,) = generate(engine, [prompt_of(8)], replace(GREEDY, stop_token_ids=(stop, 95)))
    assert stopped.token_ids == free.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.stop_reason) == ("stop", stop)


def test_min_tokens_holds_stop_ids_back(engine: Engine, weights: Weights, config: MptConfig) -> None:
    (free,) = generate(engine, [prompt_of(8)], GREEDY)
    params = replace(GREEDY, stop_token_ids=(free.token_ids[0],), min_tokens=4)
    (held,) = generate(engine, [prompt_of(8)], params)
    assert len(held.token_ids) >= 4
    assert free.token_ids[0] not in held.token_ids[:4]


def test_end_of_sequence_ends_a_request_unless_it_is_ignored(lazy_engine, engine: Engine) -> None:  # type: ignore[no-untyped-def]
    (free,) = generate(engine, [prompt_of(8)], GREEDY)
    ending = lazy_engine(eos_token_ids=(free.token_ids[3],))
    stopped, ignored = generate(ending, [prompt_of(8)] * 2, [GREEDY, replace(GREEDY, ignore_eos=True)])
    assert stopped.finish_reason == "stop"
    assert stopped.stop_reason == free.token_ids[3]
    assert ignored == free


def test_the_context_length_ends_a_request(engine: Engine) -> None:
    (completion,) = generate(engine, [prompt_of(60)], replace(GREEDY, max_tokens=1000))
    assert len(completion.token_ids) == 4
    assert completion.finish_reason == "length"


def test_deltas_report_everything_once(engine: Engine) -> None:
    listener = Listener()
    request_id = engine.submit(prompt_of(7), GREEDY, listener, request_id="mine")
    assert request_id == "mine"
    assert listener.last().finish_reason == "length"
    assert not any(delta.finish_reason for delta in listener.deltas[:-1])
    assert all(delta.token_ids for delta in listener.deltas)
    assert len(listener.token_ids) == 12
    assert {delta.num_prompt_tokens for delta in listener.deltas} == {7}
    assert tuple(listener.token_ids) == generate(engine, [prompt_of(7)], GREEDY)[0].token_ids


def test_listeners_may_submit_and_cancel(engine: Engine) -> None:
    second = Listener()
    first = Listener(lambda delta: delta.finish_reason and engine.submit(prompt_of(3), GREEDY, second))
    engine.submit(prompt_of(4), GREEDY, first)
    assert second.last().finish_reason == "length"
    own = Listener(lambda delta: engine.cancel("self"))
    engine.submit(prompt_of(4), GREEDY, own, "self")
    assert own.last().finish_reason == "cancelled"
    assert own.last().token_ids == ()


def test_a_cancellation_takes_effect_within_two_steps(engine: Engine) -> None:
    names = [f"leaves {number}" for number in range(200)]
    noticed: list[int] = []  # steps so far when each has ended
    left_at: list[int] = []
    all_submitted = threading.Event()  # a cancellation of a request not yet submitted does nothing

    def on_delta(delta: Delta) -> None:
        if delta.finish_reason is not None:
            noticed.append(engine.stats().steps)
        elif len(watched.deltas) == 5 and not left_at:  # in the middle of a step's deltas
            assert all_submitted.wait(60)
            left_at.append(engine.stats().steps)
            for name in names:
                engine.cancel(name)

    watched = Listener(on_delta)
    others = [Listener(on_delta) for _ in names[1:]]
    params = replace(GREEDY, max_tokens=40, ignore_eos=True)
    for name, listener in zip(names, [watched, *others], strict=True):
        engine.submit(prompt_of(4), params, listener, name)
    all_submitted.set()
    assert all(listener.last().finish_reason == "cancelled" for listener in [watched, *others])
    assert len(noticed) == len(names)
    assert max(noticed) <= left_at[0] + 2
    assert_all_free(engine)


def test_cancelled_requests_give_their_blocks_back(engine: Engine) -> None:
    listeners = [Listener() for _ in range(6)]
    with held_after(engine, turns=10):
        ids = [engine.submit(prompt_of(40), replace(GREEDY, max_tokens=20), listener) for listener in listeners]
        for request_id in ids:
            engine.cancel(request_id)
            engine.cancel(request_id)
    assert_all_free(engine)
    engine.cancel("nobody")
    for listener in listeners:
        assert listener.last().finish_reason == "cancelled"
        assert sum(delta.finish_reason is not None for delta in listener.deltas) == 1


def test_a_storm_of_cancellations_leaves_every_block_free(engine: Engine) -> None:
    expected = {length: generate(engine, [prompt_of(length, length)], GREEDY)[0].token_ids for length in range(1, 31)}

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        for _ in range(12):
            length, patience = int(random.integers(1, 31)), int(random.integers(0, 14))
            name = f"{number}-{length}-{random.integers(2**31)}"
            listener = Listener(lambda _: len(listener.token_ids) >= patience and engine.cancel(name))  # noqa: B023
            engine.submit(prompt_of(length, length), GREEDY, listener, name)
            if patience % 3 == 0:
                time.sleep(float(random.uniform(0, 0.01)))
                engine.cancel(name)
            assert listener.last().finish_reason in ("cancelled", "length")
            assert tuple(listener.token_ids) == expected[length][: len(listener.token_ids)]

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(client, range(8)))
    assert_all_free(engine)


def test_a_failing_listener_loses_only_its_own_request(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def fail(delta: Delta) -> None:
        raise RuntimeError("the listener is broken")

    broken, fine = Listener(fail), Listener()
    with caplog.at_level(logging.ERROR):
        engine.submit(prompt_of(5), replace(GREEDY, max_tokens=40), broken, "broken")
        engine.submit(prompt_of(5), GREEDY, fine)
        assert fine.last().finish_reason == "length"
        wait_until(lambda: engine.stats().running == 0)
    assert len(broken.deltas) == 1
    assert "listener of request broken failed" in caplog.text
    assert_all_free(engine)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "empty"),
        ([1, VOCAB_LIMIT], f"token id {VOCAB_LIMIT} is not in the vocabulary: ids are 0 to {VOCAB_LIMIT - 1}"),
        ([-1], "token id -1"),
        (["a"], "integer"),
        ([1] * 64, "64 tokens; .* shorter than the context length of 64"),
    ],
)
def test_bad_prompts_are_refused(engine: Engine, prompt: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        engine.submit(prompt, GREEDY, Listener())
    assert_all_free(engine)


class EveryText:
    """A grammar that is never started, as this engine has no id that ends an output."""

    def start(self) -> GrammarState:
        raise AssertionError


def test_other_bad_requests_are_refused(engine: Engine) -> None:
    with held_after(engine, turns=2):
        engine.submit(prompt_of(3), replace(GREEDY, max_tokens=50), Listener(), "twice")
        with pytest.raises(RequestError, match="'twice' is running already"):
            engine.submit(prompt_of(3), GREEDY, Listener(), "twice")
        engine.cancel("twice")
    with pytest.raises(RequestError, match="logit_bias: token id 95 is not in the vocabulary"):
        engine.submit(prompt_of(3), replace(GREEDY, logit_bias={95: 1.0}), Listener())
    with pytest.raises(RequestError, match="a grammar needs an end-of-sequence id"):
        engine.submit(prompt_of(3), GREEDY, Listener(), grammar=EveryText())
    with pytest.raises(RequestError, match="the unfinished output of one choice"):
        engine.submit(prompt_of(3), replace(GREEDY, n=2), Listener(), generated=[1])


def test_generate_leaves_nothing_behind_when_one_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="empty"):
        generate(engine, [prompt_of(30), []], replace(GREEDY, max_tokens=30))
    assert_all_free(engine)


def test_a_failing_step_ends_every_request_and_the_engine(
    lazy_engine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,  # type: ignore[no-untyped-def]
) -> None:
    engine = lazy_engine()
    listeners = [Listener() for _ in range(6)]
    step_of, steps = engine._runner.step, []

    def fail_at_the_third(*step: object) -> object:
        steps.append(step)
        if len(steps) == 3:
            raise RuntimeError("out of device memory")
        return step_of(*step)

    monkeypatch.setattr(engine._runner, "step", fail_at_the_third)
    for listener in listeners:
        engine.submit(prompt_of(10), GREEDY, listener)
    for listener in listeners:
        assert listener.last().finish_reason == "error"
        assert "a step failed (RuntimeError)" in (listener.last().message or "")
    assert_all_free(engine)
    assert "a step failed (RuntimeError)" in engine.stats().error
    with pytest.raises(EngineClosedError, match=r"a step failed \(RuntimeError\)"):
        engine.submit(prompt_of(3), GREEDY, Listener())
    engine.close()
    assert "out of device memory" in caplog.text  # its text is for the log, not for clients


def test_close_cancels_the_rest_and_refuses_more(lazy_engine) -> None:  # type: ignore[no-untyped-def]
    engine = lazy_engine()
    listeners = [Listener() for _ in range(6)]
    with held_after(engine, turns=10, until=lambda: engine._closed):
        for listener in listeners:
            engine.submit(prompt_of(10), replace(GREEDY, max_tokens=50), listener)
        engine.close()
    assert all(listener.last().finish_reason == "cancelled" for listener in listeners)
    assert_all_free(engine)
    engine.close()
    with pytest.raises(EngineClosedError, match="closed"):
        engine.submit(prompt_of(3), GREEDY, Listener())


def test_close_from_a_listener_does_not_wait_for_itself(lazy_engine) -> None:  # type: ignore[no-untyped-def]
    engine = lazy_engine()
    listener = Listener(lambda delta: engine.close())
    engine.submit(prompt_of(4), GREEDY, listener)
    assert listener.last().finish_reason == "cancelled"
    engine.close()


def test_a_context_that_does_not_fit_the_cache_is_shortened(
    lazy_engine,  # type: ignore[no-untyped-def]
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="mpt_serve.engine"):
        engine = lazy_engine(SETTINGS.replace(num_blocks=3))
    assert engine.max_model_len == engine.stats().max_model_len == 12
    assert "shortened from 64 to 12 tokens" in engine.stats().notes[0]
    assert "shortened from 64 to 12 tokens" in caplog.text
    assert "KV cache: 12 tokens in 3 blocks of 4 (0 MiB); 1.0x concurrency for requests of 12 tokens" in caplog.text
    with pytest.raises(RequestError, match="context length of 12"):
        engine.submit(prompt_of(12), GREEDY, Listener())


def test_nothing_is_compiled_while_serving(engine: Engine, lazy_engine) -> None:  # type: ignore[no-untyped-def]
    prompts = [prompt_of(length) for length in (1, 3, 9, 16, 40, 60)]
    params = [
        replace(GREEDY, temperature=seed % 2, top_k=seed, min_tokens=seed, stop_token_ids=(1,)) for seed in range(6)
    ]
    for count in range(1, 7):
        generate(engine, prompts[:count], params[:count])
    assert engine.stats().compilations == 0
    late = lazy_engine()
    generate(late, prompts[:1], GREEDY)
    assert late.stats().compilations > 0  # on the engine's own thread, as they are met


def test_a_checkpoint_is_served_from_its_folder(
    engine: Engine, weights: Weights, config: MptConfig, tmp_path: Path
) -> None:
    described = {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "vocab_size": 96, "max_seq_len": 64}
    save_checkpoint(weights, {"model_type": "mpt", **described, "attn_config": {"alibi": True}}, tmp_path)
    settings = SETTINGS.replace(pre_compile=False)
    with Engine.from_pretrained(tmp_path, settings, vocab_limit=VOCAB_LIMIT) as served:
        assert served.vocab_limit == VOCAB_LIMIT
        assert served.num_blocks == SETTINGS.num_blocks
        assert generate(served, [prompt_of(8)], GREEDY) == generate(engine, [prompt_of(8)], GREEDY)


@pytest.mark.slow
def test_a_mesh_of_devices_gives_the_ids_of_one_device() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("mesh_run.py"))],
        env={**with_devices(2), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_stats_count(engine: Engine) -> None:
    before = engine.stats()
    generate(engine, [prompt_of(5), prompt_of(6)], GREEDY)
    after = engine.stats()
    assert after.prompt_tokens - before.prompt_tokens == 11
    assert after.generated_tokens - before.generated_tokens == 24
    assert after.finished["length"] - before.finished["length"] == 2
    assert after.steps > before.steps
    assert after.error is None
