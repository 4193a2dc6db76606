"""Structured outputs through the engine: always in the grammar's language, whatever else the request asks for."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

import jsonschema
import pytest
from engine_helpers import Listener, assert_all_free, draft_freely
from small_engine import CHARACTERS, END, SETTINGS, VOCAB_LIMIT
from test_engine import limited, prompt_of
from test_sampling_features import choices_of, submit

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from mpt_serve.engine import Engine, RequestError, SamplingParams
from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ada", "bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SPECS = [
    GrammarSpec("json_schema", json.dumps(SCHEMA)),
    GrammarSpec("regex", r"(yes|no)( [a-c]{2,4}){1,3}\."),
    GrammarSpec("choice", json.dumps(["red", "green", "greenish"])),
    GrammarSpec("grammar", 'start: word ("," word)*\nword: /[xyz]{1,2}/'),
]
PARAMS = SamplingParams(max_tokens=50, seed=3)


@pytest.fixture(scope="module")
def ending_engine(weights: Weights, config: MptConfig) -> Iterator[Engine]:
    """An engine with an id that ends an output."""
    with Engine(weights, config, SETTINGS.replace(pre_compile=False), VOCAB_LIMIT, eos_token_ids=[END]) as engine:
        yield engine


def text_of(ids: Sequence[int]) -> str:
    return "".join(CHARACTERS[i] for i in ids if i != END)


def check_text(spec: GrammarSpec, text: str) -> None:
    if spec.kind == "json_schema":
        jsonschema.validate(json.loads(text), json.loads(spec.text))
    elif spec.kind == "regex":
        assert re.fullmatch(spec.text, text)
    elif spec.kind == "choice":
        assert text in json.loads(spec.text)
    else:
        assert re.fullmatch(r"[xyz]{1,2}(,[xyz]{1,2})*", text)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0},
        {"n": 4},
        {"temperature": 2.0, "logit_bias": {CHARACTERS.index("x"): 30.0}},
        {"repetition_penalty": 1.5, "logprobs": 2},
        {"min_tokens": 45},
        {"bad_words": [[i] for i in range(40)], "allowed_token_ids": [1, 2, 3]},
    ],
    ids=lambda changes: "+".join(changes),
)
def test_outputs_match_their_grammar(
    ending_engine: Engine,
    grammars: GrammarCompiler,
    spec: GrammarSpec,
    changes: dict,  # type: ignore[type-arg]
) -> None:
    params = replace(PARAMS, **changes)
    listeners = [submit(ending_engine, prompt_of(9, seed), params, grammar=grammars.compile(spec)) for seed in range(3)]
    for listener in listeners:
        assert listener.ended.wait(60)
        for index, ids in enumerate(choices_of(listener, range(params.n))):
            reasons = {d.index: d.finish_reason for d in listener.deltas if d.finish_reason}
            if reasons[index] == "stop":
                assert ids[-1] == END
                check_text(spec, text_of(ids))
            else:  # the grammar alone is endless
                assert (reasons[index], spec.kind, len(ids)) == ("length", "grammar", 50)
    assert_all_free(ending_engine)


def outputs_of(
    engine: Engine, grammars: GrammarCompiler, spec: GrammarSpec, params: Sequence[SamplingParams], prompt: list[int]
) -> list[tuple[list[int], str | None, int | None, str | None]]:
    """Return the ids of a prompt with several parameters, which run together, and how each of them ended."""
    listeners = [submit(engine, prompt, own, grammar=grammars.compile(spec)) for own in params]
    assert all(listener.ended.wait(60) for listener in listeners)
    ends = [listener.deltas[-1] for listener in listeners]
    return [
        (own.token_ids, end.finish_reason, end.stop_reason, end.message)
        for own, end in zip(listeners, ends, strict=True)
    ]


def test_outputs_are_the_same_with_drafts_and_among_others(
    ending_engine: Engine, weights: Weights, config: MptConfig, grammars: GrammarCompiler
) -> None:
    settings = SETTINGS.replace(pre_compile=False, speculation="none", prefix_caching=False, max_num_seqs=1)
    prompts = [[CHARACTERS.index(c) for c in '{"name":"ada","age":12}{"name":"ada","ag'], prompt_of(9, 1)]
    with Engine(weights, config, settings, VOCAB_LIMIT, eos_token_ids=[END]) as plain:
        for prompt in prompts:
            for spec in SPECS:
                for params in (PARAMS, replace(PARAMS, temperature=0, max_tokens=24)):
                    (expected,) = outputs_of(plain, grammars, spec, [params], prompt)
                    assert outputs_of(ending_engine, grammars, spec, [params] * 3, prompt) == [expected] * 3


def test_an_output_with_a_grammar_continues_elsewhere(ending_engine: Engine, grammars: GrammarCompiler) -> None:
    grammar = grammars.compile(SPECS[0])
    whole = submit(ending_engine, prompt_of(5), PARAMS, grammar=grammar)
    assert whole.ended.wait(60)
    rest = submit(ending_engine, prompt_of(5), PARAMS, generated=whole.token_ids[:7], grammar=grammar)
    assert rest.ended.wait(60)
    assert rest.token_ids == whole.token_ids[7:]
    with pytest.raises(RequestError, match="generated does not match the request's grammar"):
        ending_engine.submit(prompt_of(5), PARAMS, Listener(), generated=[CHARACTERS.index("x")], grammar=grammar)


def test_outputs_with_a_grammar_survive_preemption(ending_engine: Engine, grammars: GrammarCompiler) -> None:
    with limited(ending_engine, num_blocks=17):
        listeners = [
            submit(ending_engine, prompt_of(15, seed), PARAMS, grammar=grammars.compile(SPECS[0])) for seed in range(6)
        ]
        assert all(listener.ended.wait(60) for listener in listeners)
    for listener in listeners:
        check_text(SPECS[0], text_of(listener.token_ids))
    assert_all_free(ending_engine)


def test_a_grammar_with_ignore_eos_is_refused(ending_engine: Engine, grammars: GrammarCompiler) -> None:
    params = replace(PARAMS, ignore_eos=True)
    with pytest.raises(RequestError, match="ignore_eos must be false with a grammar"):
        ending_engine.submit(prompt_of(3), params, Listener(), grammar=grammars.compile(SPECS[0]))
    with pytest.raises(RequestError, match="ignore_eos must be false with a grammar"):
        ending_engine.check(prompt_of(3), params, with_grammar=True)
    ending_engine.check(prompt_of(3), params)
    assert_all_free(ending_engine)


def test_a_wrong_draft_beyond_the_limits_ends_no_output(
    weights: Weights, config: MptConfig, grammars: GrammarCompiler
) -> None:
    """After 14 times "a" another one breaks a limit; n-grams draft more of them, and the output may end with "."."""
    ambiguous = " | ".join(f'x "a"? x "{char}"?' for char in "bcdefghi")
    spec = GrammarSpec("grammar", f'start: x | "a"* "."\nx: x x | "a" | {ambiguous}')
    bias = {CHARACTERS.index("a"): 40.0, CHARACTERS.index("."): 24.0, END: -40.0}
    prompt = [CHARACTERS.index("a")] * 8
    params = [replace(PARAMS, max_tokens=30, logit_bias=bias, seed=seed, temperature=8) for seed in range(24)]
    outputs = []
    for speculation in ("none", "ngram"):
        settings = SETTINGS.replace(pre_compile=False, speculation=speculation)
        with Engine(weights, config, settings, VOCAB_LIMIT, eos_token_ids=[END]) as engine:
            draft_freely(engine)
            outputs.append(outputs_of(engine, grammars, spec, params, prompt))
    assert outputs[0] == outputs[1]
    reasons = {reason for ids, reason, *_ in outputs[0] if len(ids) > 10}
    assert {"stop", "error"} <= reasons  # close to the limit, some outputs turn away and others do not


class FailingGrammar:
    """Allows everything, and fails at the fifth mask or the fifth id."""

    def __init__(self, at: str, error: Exception) -> None:
        self._at, self._error, self._calls = at, error, 0

    def start(self) -> "FailingGrammar":
        return self

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        return len(drafts)

    def fill_masks(self, drafts: Sequence[int], out: object) -> int:
        return self._count("mask", len(drafts))

    def accept(self, token_id: int) -> None:
        self._count("accept", 0)

    def _count(self, call: str, result: int) -> int:
        self._calls += call == self._at
        if self._calls == 5:
            raise self._error
        return result


@pytest.mark.parametrize("at", ["mask", "accept"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RequestError("the grammar became too complex"), "the grammar became too complex"),
        (ValueError("internal names"), "the grammar of the request failed to compute the allowed tokens"),
    ],
)
def test_a_grammar_that_fails_ends_its_own_request_and_says_why(
    weights: Weights, config: MptConfig, at: str, error: Exception, message: str
) -> None:
    settings = SETTINGS.replace(pre_compile=False)
    with Engine(weights, config, settings, VOCAB_LIMIT, eos_token_ids=[END]) as engine:
        failing, other = Listener(), Listener()
        engine.submit(prompt_of(5), replace(PARAMS, temperature=0), failing, grammar=FailingGrammar(at, error))
        engine.submit(prompt_of(6), replace(PARAMS, max_tokens=20, ignore_eos=True), other)
        assert failing.last().finish_reason == "error"
        assert failing.last().message == message
        assert other.last().finish_reason == "length"
        assert_all_free(engine)
