import itertools
import json
import random
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from following import accepts, allowed_ids
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.child_process import ChildEndedError
from mpt_serve.errors import BusyError, RequestError
from mpt_serve.structured_outputs import compiler as compiler_module
from mpt_serve.structured_outputs import lark
from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.structured_outputs.grammar import GrammarState
from mpt_serve.structured_outputs.matcher import new_matcher
from mpt_serve.structured_outputs.spec import GrammarKind, GrammarSpec
from mpt_serve.text.tokenizer import TextTokenizer

# A vocabulary of all bytes, then two special ids: starts fast.
BYTES: list[bytes | None] = [*(bytes([byte]) for byte in range(256)), None, None]
EOS, OTHER_EOS = 256, 257


def refusal(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> str:
    with pytest.raises(RequestError) as refused:
        compiler.compile(GrammarSpec(kind, text))
    message = str(refused.value)
    assert len(message) < 500
    assert message.isprintable()
    assert not any(sign in message for sign in ("Traceback", 'File "', " at 0x", ".rs:", "/mpt_serve/", "backtrace"))
    return message


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("regex", "[.*", "the regex cannot be used: unclosed character class"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", r"a\bb", "lookarounds not supported"),
        ("regex", "(" * 10_000 + ")" * 10_000, "nested"),
        ("regex", ".*" * 1_000, "its expressions are too complex"),
        ("regex", "\ud800", "surrogate"),
        ("json_schema", "{", "is not JSON"),
        ("json_schema", "[" * 100_000, "nested too deeply"),
        ("json_schema", '{"items":' * 500 + "{}" + "}" * 500, "recursion limit"),
        ("json_schema", '{"type": "objekt"}', "Invalid type: objekt"),
        ("json_schema", '{"type": 5}', "type must be"),
        ("json_schema", '{"minimum": "x"}', "minimum"),
        ("json_schema", '{"minimum": NaN}', "NaN is not JSON"),
        ("json_schema", '{"minimum": 1e999}', "beyond 64-bit"),
        ("json_schema", '{"minimum": ' + "9" * 5_000 + "}", "beyond 64 bits"),
        ("json_schema", '{"const": "\\ud800"}', "surrogate"),
        ("json_schema", '{"const": "a\\u0000"}', "control character"),
        ("json_schema", '{"pattern": "^\\\\x00$"}', "control characters in a pattern"),
        ("json_schema", '{"pattern": "["}', "unclosed character class"),
        ("json_schema", '{"$ref": "#"}', "matches nothing"),
        ("json_schema", '{"$ref": "http://localhost/x"}', "not present in a registry"),
        ("json_schema", '{"properties": {"a": {"not": {}}}}', 'unsupported keywords: "not"'),
        ("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}', 'unsupported keywords: "x-guidance"'),
        ("json_schema", '{"minProperties": 2}', "minProperties: 2 is not supported"),
        ("json_schema", '{"minProperties": 3, "required": ["a", "a"]}', "minProperties: 3 is not supported"),
        ("json_schema", '{"minProperties": 3, "required": ["a", ["b"]]}', "required"),
        ("json_schema", "false", "allows nothing"),
        ("json_schema", "5", "must be a JSON object, not a number"),
        (
            "json_schema",
            '{"oneOf": [{"type": "integer"}, {"type": "number"}]}',
            "give each case a property in required",
        ),
        ("choice", "[]", "a list of strings"),
        ("choice", '["a", 1]', "a list of strings"),
        ("choice", '["\\ud800"]', "surrogate"),
        ("grammar", "", "no start rule"),
        ("grammar", 'start: "a" missing', "line 1, column 8: unknown name"),
        ("grammar", "start: <|endoftext|>", "special tokens match no text: <|endoftext|>"),
        ("grammar", "# <[1]>\nstart: <[5]>", "line 2: special tokens match no text: <[5]>"),
        ("grammar", 'start: /a\n"/ <[5]> /"b/', "line 2: special tokens match no text: <[5]>"),
        ("grammar", r'start: "\" %json', "lexer error"),
        ("grammar", r"start: /\/ %json", "lexer error"),
        ("grammar", 'start: %json {"type": "string"}', "%json is not supported"),
        ("grammar", "start: a\na[max_tokens=5]: /b*/", "line 2: the attribute max_tokens"),
        ("grammar", '%llguidance {"allow_invalid_utf8": true}\nstart: "a"', "%llguidance is not supported"),
        ("grammar", "start: a\na: b\nb: a", "matches nothing"),
        ("grammar", "start: " + "(" * 100_000, "nested"),
        ("grammar", 'root ::= "a', "as GBNF it cannot be read: Unexpected end of input at line 1"),
        ("grammar", 'root ::= "\\', "as GBNF it cannot be read"),
        ("grammar", 'rule ::= "a"', "as GBNF it cannot be read: No 'root' rule found"),
        ("grammar", "root ::= " + "(" * 100_000, "nested too deeply"),
        ("grammar", 'root ::= "\\u0022"', "write the character of \\u0022 itself"),
        ("grammar", 'root ::= "\\U00110000"', "write the character of"),
        (
            "grammar",
            "\n".join(f"r{i}: r{i + 1}" for i in range(9_999)) + '\nr9999: "x"\nstart: r0',
            "nested too deeply",
        ),
    ],
)
def test_refusals_name_what_is_wrong(compiler: GrammarCompiler, kind: GrammarKind, text: str, message: str) -> None:
    assert message in refusal(compiler, kind, text)


@pytest.mark.parametrize(
    ("kind", "text"),
    [("json_object", ""), ("json_schema", "{}"), ("regex", "a"), ("choice", '["a"]'), ("grammar", 'start: "a"')],
)
def test_only_the_worker_reads_a_text(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch, kind: GrammarKind, text: str
) -> None:
    def read_here(*_: object) -> str:
        raise AssertionError("a client's text is read where nothing can end it")

    monkeypatch.setattr(lark, "_lark", read_here)
    for _ in range(2):  # a new spec and a known one
        assert allowed_ids(compiler.compile(GrammarSpec(kind, text + " " * (kind != "regex"))).start())


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        ('root ::= "a" [0-9]+ ws\nws ::= [ \\t\\n]*  # blanks', ["a1", "a12 \n"], ["a", "1", "a1b"]),
        ('root ::= ("yes" | "no"){2}', ["yesno", "nono"], ["yes"]),
        ('root ::= "\\u00e9b" "\\x41"', ["ébA"], ["éb", "\ue9ab"]),
        ('root ::= item ("," item)*\nitem ::= [^,"\\\\]+', ["a,b"], [",", 'a"']),
    ],
)
def test_gbnf_is_translated(
    compiler: GrammarCompiler, neox: TextTokenizer, grammar: str, texts: list[str], others: list[str]
) -> None:
    compiled = compiler.compile(GrammarSpec("grammar", grammar))
    end = neox.eos_token_ids[0]
    assert all(accepts(compiled.start(), neox.encode(text), end) for text in texts)
    assert not any(accepts(compiled.start(), neox.encode(text), end) for text in others)


class TestTaggedUnions:
    """Unions as pydantic writes them: each case has a tag with a default, which nothing requires."""

    A: ClassVar[Any] = {"type": "object", "properties": {"kind": {"const": "a", "default": "a"}}}
    B: ClassVar[Any] = {"type": "object", "properties": {"kind": {"enum": ["b", "c"]}, "x": {"type": "integer"}}}

    def language(self, compiler: GrammarCompiler, schema: Any) -> Callable[[Any], bool]:
        compiled = compiler.compile(GrammarSpec("json_schema", json.dumps(schema)))
        return lambda value: accepts(compiled.start(), self.neox.encode(json.dumps(value)), self.neox.eos_token_ids[0])

    @pytest.fixture(autouse=True)
    def tokenizer(self, neox: TextTokenizer) -> None:
        self.neox = neox

    @pytest.mark.parametrize("discriminator", [{}, {"discriminator": {"propertyName": "kind"}}])
    def test_the_tag_is_always_written(self, compiler: GrammarCompiler, discriminator: Any) -> None:
        valid = self.language(compiler, {"oneOf": [self.A, self.B], **discriminator})
        assert valid({"kind": "a"})
        assert valid({"kind": "c", "x": 1})
        assert not valid({})
        assert not valid({"x": 1})

    def test_cases_may_be_definitions_that_refer_to_the_union(self, compiler: GrammarCompiler) -> None:
        union = {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}], "discriminator": {"propertyName": "kind"}}
        node = {"type": "object", "properties": {"kind": {"$ref": "#/$defs/K"}, "next": union}, "required": ["next"]}
        definitions = {"A": node, "B": self.B, "K": {"const": "a"}, "tagged0": {}}
        valid = self.language(compiler, {"$defs": definitions, **union})
        assert valid({"kind": "a", "next": {"kind": "a", "next": {"kind": "b"}}})
        assert not valid({"kind": "a", "next": {"x": 1}})

    def test_definitions_may_be_anywhere_and_unions_in_unions(self, compiler: GrammarCompiler) -> None:
        inner = {"oneOf": [{"$ref": "#/definitions/a~1b"}, self.B]}
        other = {"type": "object", "properties": {"kind": {"const": "d"}}, "required": ["kind"]}
        schema = {"definitions": {"a/b": self.A}, "oneOf": [inner, other]}
        valid = self.language(compiler, schema)
        assert all(valid({"kind": kind}) for kind in "abcd")
        assert not valid({})

    @pytest.mark.parametrize(
        "cases",
        [
            [],
            [5],
            [{"$ref": "#/$defs/missing/more"}, {}],
            [{"properties": {"kind": {"const": "a"}}}, {"properties": {"kind": {"const": "b"}}}],
            [A, {**B, "properties": {"kind": {"enum": ["a"]}}}],
            [A, {**B, "properties": {"kind": {"const": 1}}}],
            [A, {"type": "object"}],
            [{**A, "properties": [1]}, A],
        ],
        ids=str,
    )
    def test_others_are_refused(self, compiler: GrammarCompiler, cases: Any) -> None:
        refusal(compiler, "json_schema", json.dumps({"oneOf": cases}))


@pytest.mark.parametrize("literal", ['"', '"' + r"\"" * 1_000, "/" + r"\/" * 1_000])
def test_literals_without_an_end_are_read_once(literal: str) -> None:
    """Each character belongs to one match, so that the time is in proportion to the length."""
    found = list(lark._LARK.finditer(literal))
    assert sum(len(match[0]) for match in found) == len(literal)


@pytest.mark.parametrize(
    "text", ["(a+)+b", "((a{1,1000}){1,1000})", "foo**", "(x+x+)+y", "(.{1000}){1000}x", "(a?){300}a{300}"]
)
def test_expressions_that_take_exponential_time_elsewhere(compiler: GrammarCompiler, text: str) -> None:
    assert allowed_ids(compiler.compile(GrammarSpec("regex", text)).start())


def test_a_grammar_that_takes_too_long_is_refused(compiler: GrammarCompiler) -> None:
    quick = GrammarCompiler(BYTES, [EOS], time_limit_s=0.2)
    text = 'start: "a" | ' + '"a" | ' * 50_000 + '"b"'
    assert "takes longer than 0.2 s" in refusal(quick, "grammar", text)
    assert accepts(quick.compile(GrammarSpec("regex", "ok")).start(), list(b"ok"), EOS)
    quick.close()


def test_a_grammar_that_takes_too_much_memory_is_refused() -> None:
    small = GrammarCompiler(BYTES, [EOS], memory_limit_bytes=4 * 1024 * 1024, time_limit_s=10)
    schema = {"enum": [f"{i:06}" for i in range(60_000)]}
    assert "memory" in refusal(small, "json_schema", json.dumps(schema))
    assert accepts(small.compile(GrammarSpec("regex", "ok")).start(), list(b"ok"), EOS)
    small.close()


def test_long_specs_are_refused_before_anything_else(compiler: GrammarCompiler) -> None:
    assert "1048578 bytes; 1048576 are allowed" in refusal(compiler, "regex", "é" * (512 * 1024 + 1))


def test_the_memory_of_the_cache_is_bounded() -> None:
    compiler = GrammarCompiler(BYTES, [EOS], cache_entries=8, cache_bytes=1_000)
    for i in range(50):
        compiler.compile(GrammarSpec("regex", f"{i:05}"))
        with pytest.raises(RequestError):
            compiler.compile(GrammarSpec("regex", f"[{i:05}"))
        assert len(compiler._verdicts._entries) <= 8
    assert compiler._verdicts._entries
    compiler.compile(GrammarSpec("regex", "a" * 999))
    assert compiler._verdicts._bytes <= 1_000
    compiler.close()


def test_a_known_spec_needs_no_worker() -> None:
    compiler = GrammarCompiler(BYTES, [EOS], max_workers=1)
    compiler.compile(GrammarSpec("regex", "a"))
    refusal(compiler, "regex", "[")
    compiler.close()
    assert accepts(compiler.compile(GrammarSpec("regex", "a")).start(), list(b"a"), EOS)
    refusal(compiler, "regex", "[")
    assert compiler._workers.get().pid is None


def test_only_max_workers_compile_at_once() -> None:
    compiler = GrammarCompiler(BYTES, [EOS], max_workers=1, wait_limit_s=0.05)
    worker = compiler._workers.get()
    with pytest.raises(BusyError, match="try again later"):
        compiler.compile(GrammarSpec("regex", "a"))
    compiler._workers.put(worker)
    compiler.compile(GrammarSpec("regex", "a"))
    compiler.close()


def test_a_known_spec_waits_for_no_new_one() -> None:
    compiler = GrammarCompiler(BYTES, [EOS], max_workers=1, wait_limit_s=0.05)
    compiler.compile(GrammarSpec("regex", "a"))
    worker = compiler._workers.get()  # an unknown spec takes all of its time
    assert accepts(compiler.compile(GrammarSpec("regex", "a")).start(), list(b"a"), EOS)
    compiler._workers.put(worker)
    compiler.close()


class EndingWorker:
    """A worker that the signal ends at every request."""

    def __init__(self, number: signal.Signals) -> None:
        self.ended = ChildEndedError(-number)

    def ask(self, request: object) -> dict[str, str]:
        raise self.ended


def test_a_worker_ended_from_outside_is_no_fault_of_the_spec() -> None:
    compiler = GrammarCompiler(BYTES, [EOS], max_workers=1)
    worker = compiler._workers.get()
    compiler._workers.put(EndingWorker(signal.SIGKILL))  # type: ignore[arg-type]
    with pytest.raises(ChildEndedError):
        compiler.compile(GrammarSpec("regex", "a"))
    compiler._workers.get()
    compiler._workers.put(worker)
    assert accepts(compiler.compile(GrammarSpec("regex", "a")).start(), list(b"a"), EOS)
    compiler.close()


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGPROF, "takes longer"), (signal.SIGABRT, "too much memory")])
def test_a_spec_that_ends_its_worker_is_remembered(number: signal.Signals, reason: str) -> None:
    compiler = GrammarCompiler(BYTES, [EOS], max_workers=1, wait_limit_s=0)
    compiler._workers.get()
    compiler._workers.put(EndingWorker(number))  # type: ignore[arg-type]
    assert reason in refusal(compiler, "regex", "a")
    compiler._workers.get()
    assert reason in refusal(compiler, "regex", "a")


def test_a_check_refuses_alike_and_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = GrammarCompiler(BYTES, [EOS], max_text_bytes=100)
    for text in ("[", "a" * 101):
        with pytest.raises(RequestError) as refused:
            compiler.check(GrammarSpec("regex", text))
        assert str(refused.value) == refusal(compiler, "regex", text)
    built = []
    monkeypatch.setattr(compiler_module, "new_matcher", lambda *parts: built.append(parts) or new_matcher(*parts))
    compiler.check(GrammarSpec("regex", "a"))
    assert built == []
    compiler.compile(GrammarSpec("regex", "a"))
    assert len(built) == 1
    compiler.close()


def test_no_request_ends_another_with_an_equal_grammar() -> None:
    """The outputs of one request fill its tables until it fails; the other one has its own tables."""
    compiler = GrammarCompiler(BYTES, [EOS])
    spec = GrammarSpec("regex", "(.*a.{60}){2}b")
    full, other = compiler.compile(spec), compiler.compile(spec)
    rng = random.Random(0)

    def follow(states: list[GrammarState], count: int) -> None:
        for state, _ in itertools.product(states, range(count)):
            assert {ord("a"), ord("b")} <= allowed_ids(state)
            state.accept(rng.choice(b"ab"))

    with pytest.raises(RequestError, match="too complex"):
        follow([full.start() for _ in range(10)], 1_000)
    follow([other.start()], 100)
    compiler.close()


def test_threads_share_a_compiler(compiler: GrammarCompiler, neox: TextTokenizer) -> None:
    barrier = threading.Barrier(8)

    def one(i: int) -> bool:
        barrier.wait()
        state = compiler.compile(GrammarSpec("regex", f"x{i % 3}(a|b)*")).start()
        return accepts(state, neox.encode(f"x{i % 3}abba"), neox.eos_token_ids[0])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(8)))


def test_several_ids_may_end_an_output() -> None:
    compiler = GrammarCompiler(BYTES, [OTHER_EOS, EOS, 4_000])
    state = compiler.compile(GrammarSpec("regex", "a")).start()
    assert allowed_ids(state) == {ord("a")}
    state.accept(ord("a"))
    assert allowed_ids(state) == {EOS, OTHER_EOS}
    state.accept(OTHER_EOS)
    assert state.finished
    compiler.close()


def test_without_an_end_of_sequence_id_there_are_no_grammars() -> None:
    with pytest.raises(ValueError, match="need an end-of-sequence id below 258"):
        GrammarCompiler(BYTES, [300])


def test_ids_with_equal_bytes_are_equally_allowed() -> None:
    compiler = GrammarCompiler([*BYTES, b"ab", b"ab", b""], [EOS])
    assert allowed_ids(compiler.compile(GrammarSpec("regex", "abc")).start()) == {ord("a"), 258, 259}
    compiler.close()


@given(
    st.sampled_from(["json_schema", "regex", "choice", "grammar"]),
    st.one_of(st.text(max_size=60), st.text('[]{}()<>|*+?\\^$."/:a0,%#\n', max_size=60)),
)
def test_any_text_compiles_or_is_refused(compiler: GrammarCompiler, kind: GrammarKind, text: str) -> None:
    try:
        assert allowed_ids(compiler.compile(GrammarSpec(kind, text)).start())
    except RequestError:
        refusal(compiler, kind, text)


_SCHEMAS = st.recursive(
    st.sampled_from([True, {}, {"type": "string"}, {"type": "integer", "minimum": 3}, {"const": 'a"'}, {"type": 7}]),
    lambda inner: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "maxItems": st.integers(-1, 3)}),
        st.fixed_dictionaries({"properties": st.dictionaries(st.text(max_size=3), inner, max_size=3)}),
        st.fixed_dictionaries({"anyOf": st.lists(inner, max_size=3)}),
        st.fixed_dictionaries({"allOf": st.lists(inner, max_size=3)}),
    ),
    max_leaves=6,
)


@given(_SCHEMAS)
def test_any_schema_compiles_or_is_refused(compiler: GrammarCompiler, schema: object) -> None:
    try:
        assert allowed_ids(compiler.compile(GrammarSpec("json_schema", json.dumps(schema))).start())
    except RequestError:
        refusal(compiler, "json_schema", json.dumps(schema))
