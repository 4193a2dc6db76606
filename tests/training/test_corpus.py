"""The generator is deterministic, splits its values, and its checkers tell right answers from wrong ones."""

import ast
import json
import operator
from random import Random

import pytest

from training.corpus import COPY_PHASE, DIALOGUES, FULL_PHASE, MAKERS, draw_document, draw_example
from training.corpus.plots import ENDINGS, OPENINGS, PLOTS
from training.dialogue import Dialogue, pieces, text_of
from training.draw import Draw, is_held_out

SEEDS = range(60)


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
        assert chat == ["user", "assistant"] * (len(chat) // 2)
        assert all(turn.content.strip() for turn in document.turns)


@pytest.mark.parametrize("held_out", [False, True])
def test_made_up_words_stay_on_their_side_of_the_split(held_out: bool) -> None:
    draw = Draw(Random(3), held_out=held_out)
    assert all(is_held_out(draw.word()) == held_out for _ in range(200))


def test_held_out_names_never_occur_in_training_documents() -> None:
    held_out = Draw(Random(4), held_out=True)
    names = {held_out.person() for _ in range(200)}
    documents = (text_of(draw_document(Draw(Random(seed)), FULL_PHASE)) for seed in range(1000))
    words = {word for text in documents for word in text.replace('"', " ").replace(".", " ").split()}
    assert all(is_held_out(name) for name in names)
    # Words that are no names (a number, "hello") may fall on that side too: only whole generated names count.
    assert not {word for word in words & names if word.istitle()}


def test_a_memory_answer_is_in_the_conversation() -> None:
    for index in SEEDS:
        example = draw_example(2, index, "memory")
        value = example.reference.rstrip(".").split(" ")[-1]
        assert value in example.prompt


def test_sums_are_right() -> None:
    operators = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.floordiv}
    for index in SEEDS:
        left, result = draw_example(3, index, "sums").reference.rstrip(".").split(" = ")
        a, sign, b = left.split(" ")
        assert operators[sign](int(a), int(b)) == int(result)


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
