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
    tools,
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
    "translation_several": translation.several,
    "summary": summary.make,
    "summary_two": summary.two_sentences,
    "reading": summary.questions,
    "people": summary.people,
    "knowledge": knowledge.make,
    "capitals": knowledge.capital,
    "definitions": knowledge.definition,
    "facts": knowledge.fact,
    "code": code.make,
    "writing": writing.make,
    "sums": sums.make,
    "sums_two_digits": sums.two_digits,
    "sums_several": sums.several,
    "word_problem": sums.word_problem,
    "count": sums.count,
    "units": sums.units,
    "smalltalk": smalltalk.make,
    "fallback": smalltalk.fallback,
    "tool_call": tools.call,
    "tool_answer": tools.answer,
    "tool_unneeded": tools.unneeded,
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
    "memory": 16, "memory_single": 14, "memory_unknown": 3, "json": 28, "field": 4, "repeat": 6, "repeat_long": 6,
    "times": 3, "bullets": 2, "pick": 5, "people": 6, "reading": 4, "summary": 6, "summary_two": 4, "story": 7,
    "plain_story": 2, "plain_profile": 1, "plain_facts": 1, "knowledge": 14, "smalltalk": 6, "sentiment": 5, "code": 6,
    "translation": 14, "translation_several": 7, "sums": 6, "sums_two_digits": 9, "sums_several": 16, "word_problem": 3,
    "count": 1, "units": 2, "fallback": 6, "writing": 2, "tool_call": 2, "tool_answer": 3, "tool_unneeded": 1,
}  # fmt: skip

_SYSTEM_SHARE = 0.12
_CHAIN_SHARE = 0.2
_TELLING = frozenset({"memory", "memory_single", "memory_unknown"})
# Tools are part of the system message, and with a calculator at hand a sum has another answer.
_WITH_TOOLS = frozenset({"tool_call", "tool_answer", "tool_unneeded"})


def _pick(rng: Random, mix: Mapping[str, float]) -> str:
    return rng.choices(tuple(mix), tuple(mix.values()))[0]


def draw_document(draw: Draw, mix: Mapping[str, float]) -> Document:
    """Return one training document: a task of the mix, sometimes with a system prompt, sometimes several in a row."""
    document = MAKERS[_pick(draw.rng, mix)](draw)
    if not isinstance(document, Dialogue) or document.task in _WITH_TOOLS:
        return document
    while draw.chance(_CHAIN_SHARE):
        following = MAKERS[_pick(draw.rng, mix)](draw)
        # A conversation in which something was stated has another answer to "What is my name?".
        tasks = {document.task, following.task}
        if isinstance(following, Dialogue) and not tasks & _TELLING and following.task not in _WITH_TOOLS:
            document = Dialogue(following.task, (*document.turns, *following.turns), following.check)
    return smalltalk.with_system(draw, document) if draw.chance(_SYSTEM_SHARE) else document


def draw_example(seed: int, index: int, task: str, held_out: bool = True, noise: bool = True) -> Dialogue:
    """Return the index-th evaluation example of a task; the same seed and index always give the same example."""
    return DIALOGUES[task](Draw(Random(f"{seed}/{task}/{index}"), held_out=held_out, noise=noise))
