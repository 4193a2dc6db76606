"""Requests in the background on the CPU's kernels, beside others that come at any moment."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from engine_helpers import Listener, generate

import mpt_serve
from model.kernels.cpu.library import kernel_library
from mpt_serve.engine import Engine, EngineConfig, SamplingParams
from mpt_serve.engine.runner import Runner
from mpt_serve.engine.step_output import Sampled

pytestmark = pytest.mark.skipif(kernel_library() is None, reason="the kernels are not built here")
EMBEDDED = Path(mpt_serve.__path__[0]) / "embedded"

PROMPTS = [list(range(10 * i, 10 * i + 5 + 9 * i)) for i in range(1, 7)]
PARAMS = [
    SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, logprobs=2),
    SamplingParams(max_tokens=40, temperature=1.2, seed=5, top_p=0.9, ignore_eos=True),
    SamplingParams(max_tokens=40, temperature=0.8, seed=6, repetition_penalty=1.3, frequency_penalty=0.4),
    SamplingParams(max_tokens=40, temperature=0, presence_penalty=1.5, logit_bias={7: 3.0}, ignore_eos=True),
    SamplingParams(max_tokens=40, temperature=1.5, seed=8, top_k=20, n=2),
    SamplingParams(max_tokens=40, temperature=0, ignore_eos=True),
]


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_outputs_are_the_same_however_often_steps_are_abandoned(
    monkeypatch: pytest.MonkeyPatch, prefix_caching: bool
) -> None:
    abandoned = 0
    completes = Runner.completes

    def counting(runner: Runner, sampled: Sampled) -> bool:
        nonlocal abandoned
        done = completes(runner, sampled)
        abandoned += not done
        return done

    monkeypatch.setattr(Runner, "completes", counting)
    settings = EngineConfig(max_num_seqs=4, block_size=4, speculation="none", prefix_caching=prefix_caching)
    with Engine.from_pretrained(EMBEDDED, settings) as engine:
        expected = generate(engine, PROMPTS, PARAMS)
        short = [SamplingParams(max_tokens=2, temperature=0)] * 3
        others_expected = [list(own.token_ids) for own in generate(engine, PROMPTS[:3], short)]
        for _ in range(3):
            stop = threading.Event()
            seen: list[tuple[int, list[int]]] = []
            others = threading.Thread(target=_come_and_go, args=(engine, stop, seen))
            others.start()
            try:
                background = [replace(params, background=True) for params in PARAMS]
                found = generate(engine, PROMPTS, background)
            finally:
                stop.set()
                others.join()
            assert found == expected
            assert seen
            assert all(ids == others_expected[number] for number, ids in seen)
        stats = engine.stats()
    assert abandoned
    assert stats.free_blocks == stats.total_blocks


def _come_and_go(engine: Engine, stop: threading.Event, seen: list[tuple[int, list[int]]]) -> None:
    """Submit a short request again and again, a moment after the one before has ended, and note what it generates."""
    number = 0
    while not stop.wait(0.0003 * (number % 5)):
        number += 1
        listener = Listener()
        engine.submit(PROMPTS[number % 3], SamplingParams(max_tokens=2, temperature=0), listener)
        listener.last()
        seen.append((number % 3, listener.token_ids))
