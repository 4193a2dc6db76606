"""Whatever the load, each request's output is the one it gets alone: to the id, on the CPU."""

import json
import threading
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from engine_helpers import draft_freely
from small_engine import END, VOCAB_LIMIT

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from mpt_serve.engine import Delta, Engine, EngineConfig, SamplingParams
from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec

GRAMMARS = [
    GrammarSpec("regex", r"[a-f0-9]{4}(-[a-f0-9]{2}){1,4}"),
    GrammarSpec("choice", json.dumps(["left", "right", "rightmost"])),
    GrammarSpec("json_schema", json.dumps({"type": "array", "items": {"type": "boolean"}, "maxItems": 3})),
]
SOLITARY = EngineConfig(
    max_num_seqs=1, max_num_batched_tokens=64, block_size=4, num_blocks=16, prefix_caching=False, speculation="none"
)
# Too few blocks for those that run: preemption is usual.
CROWDED = EngineConfig(max_num_seqs=6, max_num_batched_tokens=24, block_size=4, num_blocks=20)


class Asked(NamedTuple):
    """A request."""

    prompt: list[int]
    params: SamplingParams
    grammar: GrammarSpec | None


def random_request(random: np.random.Generator) -> Asked:
    """Return a request; many prompts begin alike, many repeat themselves."""
    beginning = np.random.default_rng(int(random.integers(5))).integers(0, END, int(random.integers(0, 30)))
    own = random.integers(0, END, int(random.integers(1, 6))).tolist()
    prompt = [*beginning.tolist(), *(own * int(random.integers(1, 4)))][:48]

    def sometimes(chance: float, value: object, otherwise: object) -> object:
        return value if random.random() < chance else otherwise

    grammar = GRAMMARS[random.integers(len(GRAMMARS))] if random.random() < 0.15 else None
    max_tokens = int(random.integers(0 if grammar is None else 1, 16))
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=int(sometimes(0.2, min(5, max_tokens), 0)),
        temperature=float(random.choice([0.0, 0.3, 1.0])),
        top_k=int(sometimes(0.3, 8, 0)),
        top_p=float(sometimes(0.3, 0.8, 1.0)),
        min_p=float(sometimes(0.2, 0.05, 0.0)),
        repetition_penalty=float(sometimes(0.2, 1.3, 1.0)),
        presence_penalty=float(sometimes(0.1, 0.7, 0.0)),
        frequency_penalty=float(sometimes(0.1, -0.6, 0.0)),
        logit_bias=sometimes(0.15, {3: 2.0, 40: -5.0}, {}),  # type: ignore[arg-type]
        allowed_token_ids=sometimes(0.1, tuple(range(0, VOCAB_LIMIT, 3)), None),  # type: ignore[arg-type]
        bad_words=sometimes(0.15, ((1, 2), (3,), (4, 5, 6)), ()),  # type: ignore[arg-type]
        seed=int(random.integers(2**40)),
        n=int(sometimes(0.2, int(random.integers(2, 5)), 1)),
        stop_token_ids=sometimes(0.3, tuple(range(10, 20)), ()),  # type: ignore[arg-type]
        ignore_eos=grammar is None and random.random() < 0.3,
        logprobs=sometimes(0.2, 3, None),  # type: ignore[arg-type]
        prompt_logprobs=sometimes(0.1, 2, None),  # type: ignore[arg-type]
        priority=int(sometimes(0.2, int(random.integers(-3, 4)), 0)),
        cache_salt=str(sometimes(0.1, "salt", "")),
    )
    return Asked(prompt, params, grammar)


class Output:
    """Gathers the deltas of one request, and after some of them cancels it, or the choice that the last one is of."""

    def __init__(self, engine: Engine, name: str, choices: int, cancel_after: int | None) -> None:
        self._engine, self._name, self._left, self._cancel_after = engine, name, choices, cancel_after
        self.deltas: list[Delta] = []
        self.done = threading.Event()

    def __call__(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self._left -= delta.finish_reason is not None
        if self._left == 0:
            self.done.set()
        elif len(self.deltas) == self._cancel_after:
            self._engine.cancel(self._name, delta.index if len(self.deltas) % 2 else None)

    def of(self, index: int) -> tuple[list[int], str | None, list[object]]:
        """A choice's ids, why it ended, and its log probabilities."""
        own = [delta for delta in self.deltas if delta.index == index]
        logprobs = [entry for delta in own for entry in delta.logprobs or ()]
        return [token for delta in own for token in delta.token_ids], own[-1].finish_reason, logprobs


def soak(weights: Weights, config: MptConfig, grammars: GrammarCompiler, requests: int, kinds: int) -> None:
    random = np.random.default_rng(4)
    pool = [random_request(random) for _ in range(kinds)]
    options = {"vocab_limit": VOCAB_LIMIT, "eos_token_ids": [END]}

    def submit(engine: Engine, asked: Asked, output: Output, name: str) -> None:
        grammar = None if asked.grammar is None else grammars.compile(asked.grammar)
        engine.submit(asked.prompt, asked.params, output, name, grammar=grammar)

    def run_alone(engine: Engine, asked: Asked, index: int) -> Output:
        """Run one choice of a request with nothing else in the engine."""
        output = Output(engine, "alone", 1, None)
        submit(engine, asked._replace(params=replace(asked.params, n=1, choice_index=index)), output, "alone")
        assert output.done.wait(120)
        return output

    with Engine(weights, config, SOLITARY, **options) as engine:
        alone = [[run_alone(engine, asked, i) for i in range(asked.params.n)] for asked in pool]
    with Engine(weights, config, CROWDED, **options) as engine:
        draft_freely(engine)
        outputs: list[tuple[int, Output]] = []
        for number in range(requests):
            kind = int(random.integers(kinds))
            asked = pool[kind]
            cancel_after = int(random.integers(1, 6)) if random.random() < 0.1 else None
            outputs.append((kind, Output(engine, str(number), asked.params.n, cancel_after)))
            submit(engine, asked, outputs[-1][1], str(number))
            if number >= 40:  # that many wait or run
                assert outputs[number - int(random.integers(1, 40))][1].done.wait(120)
        assert all(output.done.wait(120) for _, output in outputs)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.total_blocks)
        engine._scheduler.check_integrity()
    # It was a soak: all of these happened, often.
    counts = stats.preemptions, stats.accepted_tokens, stats.cached_tokens, stats.finished["cancelled"]
    assert min(counts) > requests // 100, counts
    assert stats.error is None
    assert stats.compilations == 0
    for kind, output in outputs:
        for index, expected in enumerate(alone[kind]):
            check(output.of(index), expected.of(index))


def check(given: tuple, expected: tuple) -> None:  # type: ignore[type-arg]
    ids, reason, logprobs = given
    if reason == "cancelled":
        assert ids == expected[0][: len(ids)]
        return
    assert (ids, reason) == expected[:2]
    assert len(logprobs) == len(expected[2])
    for own, other in zip(logprobs, expected[2], strict=True):
        assert own.rank == other.rank
        assert own.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_hundred_requests_and_more(weights: Weights, config: MptConfig, grammars: GrammarCompiler) -> None:
    soak(weights, config, grammars, requests=150, kinds=40)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_5000_requests(weights: Weights, config: MptConfig, grammars: GrammarCompiler) -> None:
    soak(weights, config, grammars, requests=5000, kinds=500)
