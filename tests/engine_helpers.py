"""What tests of the engine, and of what is built on it, share."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from waiting import wait_for

from mpt_serve.engine import Delta, Engine, EngineStats, SamplingParams
from mpt_serve.engine.programs import use_compilation_cache
from mpt_serve.engine.step_costs import StepCosts
from mpt_serve.engine.step_output import TurnResult
from mpt_serve.llm import LLM, Completion

COMPILATION_CACHE_OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    """Return a temporary folder that all processes of a test run share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def compiled_in(folder: Path) -> Iterator[None]:
    """Use JAX's persistent cache in `folder`, and restore its settings afterwards."""
    before = {name: getattr(jax.config, name) for name in COMPILATION_CACHE_OPTIONS}
    use_compilation_cache(str(folder))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def generate(
    engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams]
) -> list[Completion]:
    """Return the completions of prompts of ids, which run together."""
    return LLM(engine).generate(prompts, params)


class Listener:
    """Gathers the deltas of one request, and lets a test wait for them."""

    def __init__(self, on_delta: Callable[[Delta], None] = lambda delta: None) -> None:
        self.deltas: list[Delta] = []
        self.ended = threading.Event()
        self._on_delta = on_delta

    def __call__(self, delta: Delta) -> None:
        self.deltas.append(delta)
        if delta.finish_reason is not None:
            self.ended.set()
        self._on_delta(delta)

    def last(self) -> Delta:
        assert self.ended.wait(60)
        return self.deltas[-1]

    @property
    def token_ids(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]


wait_until = partial(wait_for, within_s=60, every_s=0.002)


def wait_idle(engine: Engine) -> EngineStats:
    """Return the engine's counters when it has nothing left to do."""
    seen: list[EngineStats] = []

    def idle() -> bool:
        seen.append(engine.stats())  # one snapshot: between two, a request may go from waiting to running
        return seen[-1].running == seen[-1].waiting == 0

    wait_until(idle)
    return seen[-1]


@contextmanager
def held_after(engine: Engine, turns: int, until: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Let the engine take `turns` turns in the block, and hold it until `until` holds or the block ends.

    What a test does to requests that run is done while they run, however fast the engine is.
    """
    turn, taken, ended = engine._pipeline.turn, itertools.count(), threading.Event()

    def held_turn() -> TurnResult:
        if next(taken) >= turns:
            wait_until(lambda: ended.is_set() or until())
        return turn()

    engine._pipeline.turn = held_turn  # type: ignore[method-assign]
    try:
        yield
    finally:
        ended.set()
        engine._pipeline.turn = turn  # type: ignore[method-assign]


class FreeSteps(StepCosts):
    """A machine on which a step costs the same whatever it computes, so that every draft pays."""

    def cost(self, num_tokens: int) -> float:
        return 1.0

    def measured(self, num_tokens: int, seconds: float) -> None:
        pass


def draft_freely(engine: Engine) -> None:
    """Let an engine draft whenever it can, if it drafts at all: by times measured on a busy machine it might not."""
    if engine._drafter is not None:
        engine._drafter._costs = FreeSteps(engine._drafter._costs.sizes)


def assert_all_free(engine: Engine) -> None:
    """Every block is free as soon as everything that was submitted and cancelled has ended."""
    stats = wait_idle(engine)
    assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, stats.total_blocks)
    engine._scheduler.check_integrity()
