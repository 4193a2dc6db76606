"""The generator is deterministic, splits its values, and its checkers tell right answers from wrong ones."""

import ast
import itertools
import json
import operator
import re
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from training import names
from training.corpus import COPY_PHASE, DIALOGUES, FULL_PHASE, MAKERS, draw_document, draw_example, memory
from training.corpus.plots import ENDINGS, OPENINGS, PLOTS
from training.dialogue import Dialogue, pieces, text_of
from training.draw import Draw, is_held_out

SEEDS = range(60)
OPERATORS = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.floordiv}


@pytest.mark.parametrize("task", MAKERS)
def test_same_seed_gives_same_document(task: str) -> None:
    assert [MAKERS[task](Draw(Random(seed))) for seed in SEEDS] == [MAKERS[task](Draw(Random(seed))) for seed in SEEDS]


@pytest.mark.parametrize("task", MAKERS)
def test_seeds_give_variety(task: str) -> None:
    texts = {text_of(MAKERS[task](Draw(Random(seed)))) for seed in SEEDS}
    assert len(texts) > len(SEEDS) // 2


@pytest.mark.parametrize("task", MAKERS)
def test_no_template_field_is_left_unfilled(task: str) -> None:
    for seed in SEEDS:
        text = text_of(MAKERS[task](Draw(Random(seed))))
        fields = [part.split("}")[0] for part in text.split("{")[1:]]
        assert not any(field.isidentifier() for field in fields), text


@pytest.mark.parametrize("task", DIALOGUES)
def test_checker_accepts_the_reference_and_rejects_other_answers(task: str) -> None:
    for index in SEEDS:
        example = draw_example(1, index, task)
        assert example.check(example.reference, example.reference)
        assert not example.check("", example.reference)
        assert not example.check("I do not know", example.reference)
        assert not example.check(example.reference[: len(example.reference) // 3], example.reference)


def test_json_checker_compares_values() -> None:
    example = draw_example(1, 0, "json")
    value = json.loads(example.reference)
    assert example.check(json.dumps(dict(reversed(value.items())), indent=1), example.reference)
    assert not example.check(json.dumps({**value, "more": 1}), example.reference)


@pytest.mark.parametrize("task", DIALOGUES)
def test_dialogues_alternate_and_end_with_the_assistant(task: str) -> None:
    for seed in SEEDS:
        document = draw_document(Draw(Random(seed)), {task: 1.0})
        assert isinstance(document, Dialogue)
        roles = [turn.role for turn in document.turns]
        chat = roles[1:] if roles[0] == "system" else roles
        rounds = "".join(role[0] for role in chat)  # a round: question, maybe a call and its result, answer
        assert re.fullmatch("(ua|uata)+", rounds)
        assert all(turn.content.strip() for turn in document.turns)


def test_fragments_are_words_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = Random(5)
    made = {names.fragments(rng) for _ in range(2000)}
    assert len(made) > 1500
    assert all(3 <= len(word) <= 14 and word.isascii() and word.islower() for word in made)
    monkeypatch.setattr(names, "fragments", lambda _: "fragment")
    unseen, training = (Draw(Random(6), held_out=held_out) for held_out in (True, False))
    assert "fragment" not in {unseen.word() for _ in range(100)}
    assert "fragment" in {training.word() for _ in range(100)}


@pytest.mark.parametrize("held_out", [False, True])
def test_made_up_words_stay_on_their_side_of_the_split(held_out: bool) -> None:
    draw = Draw(Random(3), held_out=held_out)
    assert all(is_held_out(draw.word()) == held_out for _ in range(200))


def test_held_out_names_never_occur_in_training_documents() -> None:
    held_out = Draw(Random(4), held_out=True)
    people = {held_out.person() for _ in range(200)}
    documents = (text_of(draw_document(Draw(Random(seed)), FULL_PHASE)) for seed in range(1000))
    words = {word for text in documents for word in text.replace('"', " ").replace(".", " ").split()}
    assert all(is_held_out(name) for name in people)
    # Words that are no names (a number, "can") may fall on that side too: only whole generated names count.
    assert not {word for word in words & people if word.istitle() and len(word) > 3}


def test_a_memory_answer_is_in_the_conversation() -> None:
    for index in SEEDS:
        example = draw_example(2, index, "memory")
        value = example.reference.rstrip(".").split(" ")[-1]
        assert value in example.prompt


def _check_sum(line: str) -> tuple[int, str, int]:
    """Check that all parts of a chain such as `47 + 38 = 70 + 15 = 85.` are equal; return the first part."""
    *parts, result = line.rstrip(".").split(" = ")
    operands = []
    for part in parts:
        a, sign, b = part.split(" ")
        assert OPERATORS[sign](int(a), int(b)) == int(result), line
        operands.append((int(a), sign, int(b)))
    return operands[0]


def test_sums_are_right() -> None:
    for index in SEEDS:
        _check_sum(draw_example(3, index, "sums").reference)


def test_two_digit_sums_are_right_and_held_out() -> None:
    for index in SEEDS:
        reference = draw_example(3, index, "sums_two_digits").reference
        a, sign, b = _check_sum(reference)
        assert min(a, b) >= 10
        assert max(a, b) <= 99
        assert reference.count(" = ") == 2
        assert is_held_out(str((a, sign, b)))


def test_several_sums_have_a_line_each() -> None:
    for index in SEEDS:
        for line in draw_example(3, index, "sums_several").reference.split("\n"):
            _check_sum(line)


def test_word_problems_show_their_sum() -> None:
    for index in SEEDS:
        chain, answer = draw_example(3, index, "word_problem").reference.split(", so the ")
        _check_sum(chain)
        assert answer.split(" ")[2] == chain.split(" = ")[-1]


def test_several_translations_have_a_line_for_each_sentence() -> None:
    for index in SEEDS:
        example = draw_example(3, index, "translation_several")
        assert 2 <= len(example.reference.split("\n")) <= 6


def test_two_sentence_summaries_take_both_sentences_from_the_text() -> None:
    for index in SEEDS:
        example = draw_example(3, index, "summary_two")
        event, detail = example.reference.split(". ", 1) if ". " in example.reference else ("", "")
        assert detail in example.prompt
        assert event.split(" in ")[-1] in example.prompt


def _calls(document: Dialogue) -> Iterator[tuple[dict[str, Any], dict[str, Any], str]]:
    """Yield the definitions, a call of them, and the question before it."""
    lines = document.turns[0].content.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in map(json.loads, lines)}
    for question, turn in itertools.pairwise(document.turns):
        if turn.content.startswith("<tool_call>"):
            text = turn.content.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
            yield tools, json.loads(text), question.content


@pytest.mark.parametrize("task", ["tool_call", "tool_answer", "tool_unneeded"])
def test_calls_name_a_tool_and_take_their_value_from_the_question(task: str) -> None:
    for index in SEEDS:
        for tools, call, question in _calls(draw_example(7, index, task)):
            (parameter,) = tools[call["name"]]["properties"]
            assert call["arguments"].keys() == {parameter}
            words = call["arguments"][parameter].split(" ")
            assert words[0] in question
            assert words[-1] in question


def test_tool_tasks_end_with_a_call_or_in_words_after_a_result_or_a_question() -> None:
    for index in SEEDS:
        assert draw_example(7, index, "tool_call").reference.startswith("<tool_call>\n")
        assert draw_example(7, index, "tool_answer").turns[-2].role == "tool"
        assert draw_example(7, index, "tool_unneeded").turns[-2].role == "user"


def test_code_answers_parse_and_define_one_function() -> None:
    for index in SEEDS:
        answer = draw_example(4, index, "code").reference
        source = answer.removeprefix("```python\n").removesuffix("```")
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.FunctionDef)


def test_answers_alone_have_full_weight() -> None:
    example = draw_example(5, 0, "memory")
    learned = [piece.text for piece in pieces(example) if piece.answer]
    assert learned == [turn.content + "<|im_end|>" for turn in example.turns if turn.role == "assistant"]


def test_every_plot_has_enough_wordings() -> None:
    assert len(PLOTS) >= 15
    assert all(len(beat) >= 5 for plot in (*PLOTS, (OPENINGS,), (ENDINGS,)) for beat in plot)


@pytest.mark.parametrize("mix", [COPY_PHASE, FULL_PHASE])
def test_mixes_name_existing_tasks(mix: dict[str, float]) -> None:
    assert mix.keys() <= MAKERS.keys()


def test_facts_of_one_conversation_do_not_contradict_each_other() -> None:
    for seed in range(300):
        kinds = [fields["k"] for fact, fields in memory._facts(Draw(Random(seed)), 16) if fact is memory.FAVOURITE]
        assert not {"color", "colour"} <= set(kinds)  # one question, which both would answer
