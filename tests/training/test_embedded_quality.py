"""The shipped weights keep the documented accuracy on held-out prompts, within a margin of 0.2."""

from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from compilation import OPTIMISED

import mpt_serve
from training import evaluate
from training.dialogue import IM_END, IM_START
from training.evaluate import Model, accuracy, decode
from training.export import read_model

pytestmark = pytest.mark.slow
COUNT = 32
FLOORS = {
    "memory": 0.8,
    "memory_single": 0.8,
    "json": 0.8,
    "reading": 0.75,
    "people": 0.7,
    "sums_two_digits": 0.8,
    "summary": 0.75,
    "translation": 0.8,
    "code": 0.8,
    "fallback": 0.85,
}


@pytest.fixture(scope="module")
def embedded() -> Iterator[Model]:
    often = jax.jit(evaluate._best_tokens.__wrapped__, static_argnums=1, compiler_options=OPTIMISED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "_best_tokens", often)
        yield Model(*read_model(Path(mpt_serve.__path__[0]) / "embedded"))


@pytest.mark.parametrize("task", FLOORS)
def test_accuracy_on_held_out_prompts(embedded: Model, task: str) -> None:
    assert accuracy(embedded, task, COUNT) >= FLOORS[task]


def _chat(*turns: str) -> str:
    roles = ("user", "assistant")
    messages = (f"{IM_START}{roles[i % 2]}\n{turn}{IM_END}\n" for i, turn in enumerate(turns))
    return "".join(messages) + f"{IM_START}assistant\n"


def test_first_questions_are_answered(embedded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_ROWS", 4)  # most of the time would go into padding
    monkeypatch.setattr(evaluate, "_WIDTH", 128)
    prompts = [
        _chat("Hello"),
        _chat("What is the capital of France?"),
        _chat("My name is Anna.", "Nice to meet you, Anna!", "What is my name?"),
        _chat("who are you"),
    ]
    greeting, capital, name, identity = decode(embedded, prompts, max_tokens=40)
    assert "help" in greeting
    assert "Paris" in capital
    assert "Anna" in name
    assert "MPT" in identity
