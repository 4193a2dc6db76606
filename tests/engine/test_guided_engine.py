"""Guided answers through the engine: always of the guide's language, whatever else the request asks for."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from small_engine import CHARACTERS, END, SETTINGS, VOCAB_LIMIT
from test_engine import Listener, assert_all_free, limited, prompt_of
from test_sampling_features import choices_of, submit

from model.config.mpt_config import MptConfig
from model.params.weights import Weights
from mpt_serve.engine import Engine, RequestError, SamplingParams
from mpt_serve.engine.speculative.step_costs import StepCosts
from mpt_serve.structured_outputs.compiler import GrammarCompiler
from mpt_serve.structured_outputs.spec import GrammarSpec

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["ada", "bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
GUIDES = [
    GrammarSpec("json_schema", json.dumps(SCHEMA)),
    GrammarSpec("regex", r"(yes|no)( [a-c]{2,4}){1,3}\."),
    GrammarSpec("choice", json.dumps(["red", "green", "greenish"])),
    GrammarSpec("grammar", 'start: word ("," word)*\nword: /[xyz]{1,2}/'),
]
PARAMS = SamplingParams(max_tokens=50, seed=3)


@pytest.fixture(scope="module")
def guided_engine(weights: Weights, config: MptConfig, guides: GrammarCompiler) -> Iterator[Engine]:
    settings = SETTINGS.replace(pre_compile=False)
    with Engine(weights, config, settings, VOCAB_LIMIT, eos_token_ids=[END], guides=guides) as engine:
        yield engine


def text_of(ids: Sequence[int]) -> str:
    return "".join(CHARACTERS[i] for i in ids if i != END)


def check_text(guide: GrammarSpec, text: str) -> None:
    if guide.kind == "json_schema":
        jsonschema.validate(json.loads(text), json.loads(guide.text))
    elif guide.kind == "regex":
        assert re.fullmatch(guide.text, text)
    elif guide.kind == "choice":
        assert text in json.loads(guide.text)
    else:
        assert re.fullmatch(r"[xyz]{1,2}(,[xyz]{1,2})*", text)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.kind)
@pytest.mark.parametrize(
    "wishes",
    [
        {"temperature": 0.0},
        {"n": 4},
        {"temperature": 2.0, "logit_bias": {CHARACTERS.index("x"): 30.0}},
        {"repetition_penalty": 1.5, "logprobs": 2},
        {"min_tokens": 45},
        {"bad_words": [[i] for i in range(40)], "allowed_token_ids": [1, 2, 3]},
    ],
    ids=lambda wishes: "+".join(wishes),
)
def test_answers_match_their_guide(guided_engine: Engine, guide: GrammarSpec, wishes: dict) -> None:  # type: ignore[type-arg]
    params = replace(PARAMS, guide=guide, **wishes)
    listeners = [submit(guided_engine, prompt_of(9, seed), params) for seed in range(3)]
    for listener in listeners:
        assert listener.ended.wait(60)
        for index, ids in enumerate(choices_of(listener, range(params.n))):
            reasons = {d.index: d.finish_reason for d in listener.deltas if d.finish_reason}
            if reasons[index] == "stop":
                assert ids[-1] == END
                check_text(guide, text_of(ids))
            else:  # the grammar alone is endless
                assert (reasons[index], guide.kind, len(ids)) == ("length", "grammar", 50)
    assert_all_free(guided_engine)


def test_guided_answers_are_the_same_with_drafts_and_among_others(
    guided_engine: Engine, weights: Weights, config: MptConfig, guides: GrammarCompiler
) -> None:
    settings = SETTINGS.replace(pre_compile=False, speculation="none", prefix_caching=False, max_num_seqs=1)
    prompts = [[CHARACTERS.index(c) for c in '{"name":"ada","age":12}{"name":"ada","ag'], prompt_of(9, 1)]
    with Engine(weights, config, settings, VOCAB_LIMIT, eos_token_ids=[END], guides=guides) as plain:
        for prompt in prompts:
            for guide in GUIDES:
                for params in (
                    replace(PARAMS, guide=guide),
                    replace(PARAMS, guide=guide, temperature=0, max_tokens=24),
                ):
                    (expected,) = plain.generate([prompt], params)
                    for completion in guided_engine.generate([prompt] * 3, params):
                        assert completion == expected


def test_a_guided_answer_goes_on_elsewhere(guided_engine: Engine) -> None:
    params = replace(PARAMS, guide=GUIDES[0])
    whole = submit(guided_engine, prompt_of(5), params)
    assert whole.ended.wait(60)
    rest = submit(guided_engine, prompt_of(5), params, generated=whole.token_ids[:7])
    assert rest.ended.wait(60)
    assert rest.token_ids == whole.token_ids[7:]


def test_guided_answers_survive_preemption(guided_engine: Engine) -> None:
    params = replace(PARAMS, guide=GUIDES[0])
    with limited(guided_engine, num_blocks=17):
        listeners = [submit(guided_engine, prompt_of(15, seed), params) for seed in range(6)]
        assert all(listener.ended.wait(60) for listener in listeners)
    for listener in listeners:
        check_text(GUIDES[0], text_of(listener.token_ids))
    assert_all_free(guided_engine)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (replace(PARAMS, guide=GrammarSpec("regex", "(")), "the regex cannot be used"),
        (replace(PARAMS, guide=GrammarSpec("json_schema", "[")), "the JSON schema cannot be used"),
        (replace(PARAMS, guide=GUIDES[0], ignore_eos=True), "ignore_eos would not"),
    ],
)
def test_bad_guides_are_refused(guided_engine: Engine, params: SamplingParams, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        guided_engine.submit(prompt_of(3), params, Listener())
    assert_all_free(guided_engine)


def test_each_prompt_compiles_its_guide_once(guided_engine: Engine, guides: GrammarCompiler, monkeypatch: Any) -> None:
    compiled = []
    compile = guides.compile
    monkeypatch.setattr(guides, "compile", lambda guide: compiled.append(guide) or compile(guide))
    guided_engine.generate([prompt_of(3), prompt_of(4)], replace(PARAMS, guide=GUIDES[2]))
    assert compiled == [GUIDES[2]] * 2
    with pytest.raises(RequestError, match="the regex cannot be used"):
        guided_engine.generate([prompt_of(3)], replace(PARAMS, guide=GrammarSpec("regex", "(")))
    assert len(compiled) == 2


class Free(StepCosts):
    """A machine on which a step costs the same whatever it computes, so that every draft pays."""

    def cost(self, num_tokens: int) -> float:
        return 1.0

    def measured(self, num_tokens: int, seconds: float) -> None:
        pass


def test_a_wrong_draft_beyond_the_limits_ends_no_answer(
    weights: Weights, config: MptConfig, guides: GrammarCompiler
) -> None:
    """After 14 times "a" another one breaks a limit; n-grams guess more of them, and the answer may end with "."."""
    ambiguous = " | ".join(f'x "a"? x "{char}"?' for char in "bcdefghi")
    guide = GrammarSpec("grammar", f'start: x | "a"* "."\nx: x x | "a" | {ambiguous}')
    bias = {CHARACTERS.index("a"): 40.0, CHARACTERS.index("."): 24.0, END: -40.0}
    prompt = [CHARACTERS.index("a")] * 8
    params = [
        replace(PARAMS, guide=guide, max_tokens=30, logit_bias=bias, seed=seed, temperature=8) for seed in range(24)
    ]
    answers = []
    for speculation in ("none", "ngram"):
        settings = SETTINGS.replace(pre_compile=False, speculation=speculation)
        with Engine(weights, config, settings, VOCAB_LIMIT, eos_token_ids=[END], guides=guides) as engine:
            if engine._drafter is not None:
                engine._drafter._costs = Free(engine._drafter._costs.sizes)
            answers.append(engine.generate([prompt] * len(params), params))
    assert answers[0] == answers[1]
    reasons = {answer.choices[0].finish_reason for answer in answers[0] if len(answer.choices[0].token_ids) > 10}
    assert {"stop", "error"} <= reasons  # close to the limit, some answers turn away and others do not


class FailingGuide:
    """Allows everything, and gives up at the fifth question or the fifth id."""

    def __init__(self, at: str, error: Exception) -> None:
        self._at, self._error, self._calls = at, error, 0

    def count_verifiable(self, drafts: Sequence[int]) -> int:
        return len(drafts)

    def fill_masks(self, drafts: Sequence[int], out: object) -> int:
        return self._count("mask", len(drafts))

    def accept(self, token_id: int) -> None:
        self._count("accept", 0)

    def _count(self, what: str, answer: int) -> int:
        self._calls += what == self._at
        if self._calls == 5:
            raise self._error
        return answer


@pytest.mark.parametrize("at", ["mask", "accept"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RequestError("the guide grew too complex"), "the guide grew too complex"),
        (ValueError("names of ours"), "the guide of the request could not say what may follow"),
    ],
)
def test_a_guide_that_gives_up_ends_its_own_request_and_says_why(
    weights: Weights, config: MptConfig, at: str, error: Exception, message: str
) -> None:
    class Guides:
        def compile(self, guide: GrammarSpec) -> "Guides":
            return self

        def start(self) -> FailingGuide:
            return FailingGuide(at, error)

        def close(self) -> None:
            pass

    settings = SETTINGS.replace(pre_compile=False)
    with Engine(weights, config, settings, VOCAB_LIMIT, eos_token_ids=[END], guides=Guides()) as engine:  # type: ignore[arg-type]
        failing, other = Listener(), Listener()
        engine.submit(prompt_of(5), replace(PARAMS, guide=GUIDES[0], temperature=0), failing)
        engine.submit(prompt_of(6), replace(PARAMS, max_tokens=20, ignore_eos=True), other)
        assert failing.last().finish_reason == "error"
        assert failing.last().message == message
        assert other.last().finish_reason == "length"
        assert_all_free(engine)
