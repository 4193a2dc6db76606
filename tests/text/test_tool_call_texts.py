"""Calls in generated text, however it arrives."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.text.tool_calls import CallPiece, ToolCallParser
from mpt_serve.text.tool_format import CALL_SEPARATOR, CALL_TAG, call_begin, call_end

FRAGMENTS = ["<tool_call>", "</tool_call>", "<tool", "}\n</tool_call>", "}", "{", '"', "\\", "\n", "a", "é", "<", " "]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=6).map("".join)
CONTENTS = TEXTS.filter(lambda text: CALL_TAG not in text and CALL_TAG not in text + CALL_TAG[:-1])
CALLS = st.lists(st.tuples(st.sampled_from(["f", "get_x.y-1"]), st.dictionaries(TEXTS, TEXTS, max_size=2)), max_size=3)


def written(name: str, arguments: str) -> str:
    return f"{CALL_TAG}{call_begin(name)}{arguments}{call_end()}"


def parsed(parser: ToolCallParser, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Return the content and the calls; every call begins with its name, and calls come in order."""
    content = ""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        added, found = parser.push(piece)
        assert not (added and calls)
        content += added
        assert [call.index for call in found] == sorted({call.index for call in found})
        for call in found:
            if call.name is not None:
                assert call.index == len(calls)
                calls.append((call.name, call.arguments))
            else:
                assert call.arguments
                assert call.index == len(calls) - 1
                calls[-1] = (calls[-1][0], calls[-1][1] + call.arguments)
    return content + parser.finish(), calls


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


@given(CONTENTS, CALLS, st.lists(st.integers(0, 10_000), max_size=40), st.sampled_from([None, 1, 2]))
def test_the_parts_do_not_depend_on_how_the_text_arrives(
    content: str, calls: list[tuple[str, dict[str, str]]], places: list[int], indent: int | None
) -> None:
    texts = [(name, json.dumps(arguments, indent=indent)) for name, arguments in calls]
    text = content + CALL_SEPARATOR.join(written(*call) for call in texts)
    parser = ToolCallParser()
    assert parsed(parser, cut(text, places)) == (content, texts)
    assert parser.complete == bool(calls)
    assert parser.num_calls == len(calls)


@given(CONTENTS, st.dictionaries(TEXTS, TEXTS, max_size=2), st.integers(0, 10_000), st.lists(st.integers(0, 10_000)))
def test_what_is_cut_off_is_a_beginning(content: str, arguments: dict[str, str], end: int, places: list[int]) -> None:
    whole = json.dumps(arguments)
    text = content + written("f", whole)
    text = text[: end % len(text)]
    parser = ToolCallParser()
    shown, calls = parsed(parser, cut(text, places))
    assert not parser.complete
    assert content.startswith(shown) or shown == text
    assert whole.startswith(calls[0][1] if calls else "")


def test_a_call_is_known_by_its_name_before_its_arguments() -> None:
    parser = ToolCallParser()
    assert parser.push('Hi <tool_call>\n{"name": "f", "argu') == ("Hi ", [])
    assert parser.push('ments": ') == ("", [CallPiece(0, "f", "")])
    assert parser.push('{"a": 1}') == ("", [CallPiece(0, None, '{"a": 1')])
    assert parser.push("}\n</tool_call>") == ("", [CallPiece(0, None, "}")])
    assert parser.push('\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>') == ("", [CallPiece(1, "g", "{}")])


@pytest.mark.parametrize("text", ["a <tool_call", "<", "a"])
def test_what_might_have_become_a_tag_is_content(text: str) -> None:
    parser = ToolCallParser()
    assert parser.push(text)[0] + parser.finish() == text
