import json
import re

import numpy as np
import pytest
from following import WORDS, accepts, allowed_ids, mask_sets
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.errors import RequestError
from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.structured_outputs.grammar import GrammarState
from mpt_serve.structured_outputs.spec import GrammarSpec
from mpt_serve.text.tokenizer import TextTokenizer

EOS = 0

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def start(compiler: GrammarCompiler, kind: str, text: object = "") -> GrammarState:
    text = text if isinstance(text, str) else json.dumps(text)
    return compiler.compile(GrammarSpec(kind, text)).start()  # type: ignore[arg-type]


def follow(state: GrammarState, tokenizer: TextTokenizer, text: str) -> GrammarState:
    for token_id in tokenizer.encode(text):
        state.accept(token_id)
    return state


@pytest.mark.parametrize(
    ("kind", "text", "good", "bad"),
    [
        ("json_object", "", ['{"a": [1, {"b": null}]}', "{}", '{\n  "a": true\n}'], ["[]", '{"a"}', "{}{}", ""]),
        ("json_schema", PERSON, ['{"name": "Zoë \\" \\n 🎉", "age": 7}'], ['{"age": 7, "name": "x"}', "{}"]),
        ("regex", r"(?i)no|yes(, sir)?", ["NO", "yes", "Yes, sir"], ["yes,", "noo", " no", ""]),
        ("regex", r"^\d{4}-\d\d$", ["2024-01"], ["2024-1", "2024-010"]),
        ("regex", "[あ-ん]+|🎉{2}", ["こんにちは", "🎉🎉"], ["🎉", "カ", "a"]),
        ("regex", "", [""], [" "]),
        ("choice", ["a", "ab", "", 'say "hi"\n'], ["a", "ab", "", 'say "hi"\n'], ["b", "aab", 'say "hi"']),
        ("choice", ["\x00\x1f\x7f", "\u2028"], ["\x00\x1f\x7f", "\u2028"], ["", "\x7f"]),
        ("grammar", 'start: sum\nsum: N ("+" N)*\nN: /[0-9]+/', ["1", "12+3+4"], ["1+", "+1", "1 + 2"]),
    ],
)
def test_texts_of_the_language_and_no_others(
    compiler: GrammarCompiler, neox: TextTokenizer, kind: str, text: object, good: list[str], bad: list[str]
) -> None:
    for output in good:
        assert accepts(start(compiler, kind, text), neox.encode(output), EOS), output
    for output in bad:
        assert not accepts(start(compiler, kind, text), neox.encode(output), EOS), output


def test_only_the_end_may_follow_a_complete_output(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    state = start(compiler, "choice", ["yes", "no"])
    assert not state.finished
    follow(state, neox, "yes")
    assert state.finished
    assert allowed_ids(state) == {EOS}
    state.accept(EOS)
    assert state.finished
    assert allowed_ids(state) == {EOS}
    with pytest.raises(ValueError, match="does not allow the id"):
        state.accept(neox.encode("no")[0])


def test_the_end_is_allowed_if_the_text_may_continue(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    state = follow(start(compiler, "regex", "a+"), neox, "a")
    assert not state.finished
    assert {EOS, neox.encode("aa")[0]} <= allowed_ids(state)


def test_an_id_that_is_not_allowed_changes_nothing(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    state = follow(start(compiler, "regex", "ab|ac"), neox, "a")
    before = allowed_ids(state)
    for token_id in (EOS, 1, neox.encode("d")[0], neox.vocab_len, 50431, 2**31 - 1, -1):
        with pytest.raises(ValueError, match=f"does not allow the id {token_id} here"):
            state.accept(token_id)
    assert allowed_ids(state) == before
    state.accept(neox.encode("c")[0])
    assert state.finished


def test_special_and_missing_ids_are_never_allowed(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    anything = start(compiler, "regex", r"(?s:.*)")
    allowed = allowed_ids(anything)
    assert max(allowed) < neox.vocab_len
    assert allowed & neox.special_ids == {EOS}
    # All others but those that hold bytes no UTF-8 text has.
    assert len(allowed) > neox.vocab_len - 300


def test_a_character_may_be_split_over_ids(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    ids = [neox.token_id(char) for char in "ðŁİī"]  # the bytes F0 9F 8E 89, one by one
    assert b"".join(neox.token_bytes(i) for i in ids if i is not None) == "🎉".encode()
    state = start(compiler, "regex", "🎉")
    for token_id in ids:
        assert not state.finished
        assert token_id in allowed_ids(state)
        state.accept(token_id or 0)
    assert state.finished


def test_masks_after_drafts_are_those_of_the_accepted_ids(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    drafts = [*neox.encode('{"name": "Ann", "age": 31}'), EOS]
    stepwise = start(compiler, "json_schema", PERSON)
    expected = [allowed_ids(stepwise)]
    for token_id in drafts:
        stepwise.accept(token_id)
        expected.append(allowed_ids(stepwise))
    assert mask_sets(start(compiler, "json_schema", PERSON), drafts) == expected


def test_rows_after_a_draft_that_is_not_allowed_are_unchanged(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    state = start(compiler, "regex", "[a-c]{5}")
    a, b, x = (neox.encode(char)[0] for char in "abx")
    out = np.full((5, WORDS), 7, np.uint32)
    assert state.fill_masks([a, b, x, a], out) == 2
    assert (out[3:] == 7).all()
    assert (out[:3, neox.vocab_len // 32 + 1 :] == 0).all()
    assert state.fill_masks([x], out[:2]) == 0


@given(data=st.data())
def test_drafts_never_move_the_state(compiler: GrammarCompiler, neox: TextTokenizer, data: st.DataObject) -> None:
    text = '{"name": "é🎉\\n", "age": 120}'
    ids = [*neox.encode(text), EOS]
    cut = data.draw(st.integers(0, len(ids) - 1))
    state, untouched = start(compiler, "json_schema", PERSON), start(compiler, "json_schema", PERSON)
    for token_id in ids[:cut]:
        state.accept(token_id)
        untouched.accept(token_id)
    wrong = data.draw(st.lists(st.sampled_from([*ids, 1, 50300, -5]), max_size=4))
    drafts = ids[cut : data.draw(st.integers(cut, len(ids)))] + wrong
    mask_sets(state, drafts)
    assert allowed_ids(state) == allowed_ids(untouched)
    assert state.finished == untouched.finished
    assert accepts(state, ids[cut:-1], EOS)


def test_a_clone_is_independent(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    state = follow(start(compiler, "regex", "a(b|c)d*"), neox, "a")
    clone = state.clone()
    follow(clone, neox, "b")
    clone.accept(EOS)
    assert not state.finished
    assert not state.clone().finished
    assert clone.clone().finished
    assert accepts(state, neox.encode("cd"), EOS)


@given(st.sampled_from(["[a-c]*b", "(ab|a)(c|bcd)?", "x?y?z?", r"[a-z]+@\d+\.(com|org)", "(?:..)*"]), st.data())
def test_regex_agrees_with_re(
    compiler: GrammarCompiler, neox: TextTokenizer, pattern: str, data: st.DataObject
) -> None:
    text = data.draw(st.one_of(st.from_regex(pattern, fullmatch=True), st.text("abcdxyz@.1com", max_size=12)))
    ids = neox.encode(text)
    expected = re.fullmatch(pattern, neox.decode(ids)) is not None  # the tokenizer normalizes, which can add characters
    assert accepts(start(compiler, "regex", pattern), ids, EOS) == expected


def test_whitespace_is_bounded(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    for blank in ("   ", "\n\n", "\t\t\t", "\n" + " " * 33):
        assert not accepts(start(compiler, "json_object"), neox.encode("{" + blank + "}"), EOS), repr(blank)
    for blank in ("", " ", "  ", "\n", "\r\n  ", "\n" + " " * 32):
        assert accepts(start(compiler, "json_object"), neox.encode("{" + blank + '"a":1}'), EOS), repr(blank)


def test_a_dead_end_is_an_error_and_not_an_end(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    state = follow(start(compiler, "grammar", 'start: "c" b | "d"\nb: b "x"'), neox, "c")
    with pytest.raises(RequestError, match="matches nothing"):
        allowed_ids(state)


# Each further "a" makes more of its parts possible at one place, up to their limit.
AMBIGUOUS = 'start: x | "a"* "\\n"\nx: x x | "a" | x "a"? x "b"?'


def near_the_limit(compiler: GrammarCompiler, token_id: int) -> GrammarState:
    """Return a state in which a few more of the ids exceed a limit."""
    state, count = start(compiler, "grammar", AMBIGUOUS), 0
    while state.count_verifiable([token_id]):
        state.accept(token_id)
        count += 1
    near = start(compiler, "grammar", AMBIGUOUS)
    for _ in range(count - 3):
        near.accept(token_id)
    return near


def test_drafts_that_exceed_a_limit_are_left_out(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    a, line = neox.encode("a")[0], neox.encode("\n")[0]
    state = near_the_limit(compiler, a)
    drafts = [a] * 8
    with pytest.raises(RequestError, match="too many of its parts"):
        mask_sets(state, drafts)
    assert state.count_verifiable(drafts) == 3
    masks = mask_sets(state, drafts[:3])
    assert len(masks) == 4
    for mask in masks:  # the output may still continue otherwise, and the mask is the same as without drafts
        assert mask == allowed_ids(state)
        assert line in mask
        state.clone().accept(line)
        before = state.clone()
        if mask is not masks[-1]:
            state.accept(a)
    assert before.count_verifiable([a]) == 0
    with pytest.raises(RequestError, match="too many of its parts"):
        follow(before, neox, "a")


def test_drafts_that_are_not_allowed_can_be_verified(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    state = start(compiler, "regex", "[a-c]{5}")
    a, x = (neox.encode(char)[0] for char in "ax")
    assert state.count_verifiable([]) == 0
    assert state.count_verifiable([a, a, x, a]) == 4
    assert len(mask_sets(state, [a, a, x, a])) == 3
    assert mask_sets(state, [a]) == mask_sets(start(compiler, "regex", "[a-c]{5}"), [a])
    assert mask_sets(state, [a, a, a]) == mask_sets(start(compiler, "regex", "[a-c]{5}"), [a, a, a])
    state.accept(a)
    assert mask_sets(state, [a]) == mask_sets(follow(start(compiler, "regex", "[a-c]{5}"), neox, "a"), [a])


def test_a_failed_grammar_never_looks_finished(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    state = follow(start(compiler, "grammar", 'start: "c" b | "d"\nb: b "x"'), neox, "c")
    for _ in range(2):
        with pytest.raises(RequestError, match="matches nothing"):
            allowed_ids(state)
