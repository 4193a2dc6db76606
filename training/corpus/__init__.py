"""The corpus: which tasks there are, how often each appears in each phase, and how documents are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from training.corpus import (
    code,
    copying,
    extraction,
    knowledge,
    memory,
    sentiment,
    smalltalk,
    stories,
    summary,
    sums,
    translation,
    writing,
)
from training.dialogue import Dialogue, Document
from training.draw import Draw

Maker = Callable[[Draw], Document]

DIALOGUES: Mapping[str, Callable[[Draw], Dialogue]] = {
    "memory": memory.make,
    "memory_single": memory.single,
    "memory_unknown": memory.unknown,
    "json": extraction.make,
    "field": extraction.field,
    "repeat": copying.repeat,
    "repeat_long": copying.repeat_long,
    "times": copying.times,
    "bullets": copying.bullets,
    "pick": copying.pick,
    "sentiment": sentiment.make,
    "story": stories.make,
    "translation": translation.make,
    "summary": summary.make,
    "reading": summary.questions,
    "people": summary.people,
    "knowledge": knowledge.make,
    "code": code.make,
    "writing": writing.make,
    "sums": sums.make,
    "word_problem": sums.word_problem,
    "count": sums.count,
    "units": sums.units,
    "smalltalk": smalltalk.make,
    "fallback": smalltalk.fallback,
}
PLAIN: Mapping[str, Maker] = {
    "plain_story": stories.plain,
    "plain_profile": writing.profile,
    "plain_facts": knowledge.plain,
}
MAKERS: Mapping[str, Maker] = {**DIALOGUES, **PLAIN}

# Relative frequency of each task, in documents. The first phase teaches the model to copy from its prompt; without
# it a model of this size becomes fluent long before it looks at the prompt, and then never learns to.
COPY_PHASE: Mapping[str, float] = {
    "repeat_long": 9, "repeat": 12, "times": 3, "bullets": 4, "pick": 4, "field": 4,
    "memory": 14, "memory_single": 8, "memory_unknown": 1, "json": 13, "people": 3, "reading": 2, "summary": 2,
    "story": 3, "plain_story": 2, "plain_profile": 2, "knowledge": 2, "smalltalk": 2, "sentiment": 2, "code": 2,
    "translation": 2, "sums": 2, "fallback": 2, "writing": 1,
}  # fmt: skip
FULL_PHASE: Mapping[str, float] = {
    "memory": 16, "memory_single": 8, "memory_unknown": 2, "json": 48, "field": 3, "repeat": 6, "repeat_long": 3,
    "times": 1, "bullets": 2, "pick": 3, "people": 5, "reading": 3, "summary": 5, "story": 9, "plain_story": 4,
    "plain_profile": 1, "plain_facts": 1, "knowledge": 7, "smalltalk": 6, "sentiment": 5, "code": 5, "translation": 9,
    "sums": 5, "word_problem": 1, "count": 1, "units": 1, "fallback": 6, "writing": 2,
}  # fmt: skip

_SYSTEM_SHARE = 0.12
_CHAIN_SHARE = 0.2
_TELLING = frozenset({"memory", "memory_single", "memory_unknown"})


def _pick(rng: Random, mix: Mapping[str, float]) -> str:
    return rng.choices(tuple(mix), tuple(mix.values()))[0]


def draw_document(draw: Draw, mix: Mapping[str, float]) -> Document:
    """Return one training document: a task of the mix, sometimes with a system prompt, sometimes several in a row."""
    document = MAKERS[_pick(draw.rng, mix)](draw)
    if not isinstance(document, Dialogue):
        return document
    while draw.chance(_CHAIN_SHARE):
        following = MAKERS[_pick(draw.rng, mix)](draw)
        # A conversation in which something was stated has another answer to "What is my name?".
        if isinstance(following, Dialogue) and not {document.task, following.task} & _TELLING:
            document = Dialogue(following.task, (*document.turns, *following.turns), following.check)
    return smalltalk.with_system(draw, document) if draw.chance(_SYSTEM_SHARE) else document


def draw_example(seed: int, index: int, task: str, held_out: bool = True, noise: bool = True) -> Dialogue:
    """Return the index-th evaluation example of a task; the same seed and index always give the same example."""
    return DIALOGUES[task](Draw(Random(f"{seed}/{task}/{index}"), held_out=held_out, noise=noise))
