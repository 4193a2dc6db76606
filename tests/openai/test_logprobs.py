"""Log probabilities in responses and streams: the shapes, exactness, and which tokens come with which text."""

from typing import Any

import httpx
import openai
import pytest
from fake_backend import EOS, FakeBackend, likelihood
from hypothesis import given
from hypothesis import strategies as st
from loopback_server import serving
from test_completions import complete, events, stream

from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.request import TokenLogprobs

TEXT = "a日#"
CHAT = "/v1/chat/completions"


def ids_of(backend: FakeBackend, text: str) -> list[int]:
    return backend.tokenizer.encode(text)


def joined(chunks: list[Any]) -> dict[str, list[Any]]:
    """Return the log probabilities of a stream's first choice as one."""
    pieces = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == 0]
    return {name: [entry for piece in pieces for entry in piece[name]] for name in pieces[0]}


def test_completion_has_exactly_the_documented_shape(http: httpx.Client, backend: FakeBackend) -> None:
    a, b = ids_of(backend, "ab")
    [choice] = complete(http, prompt="ab", logprobs=1)["choices"]
    values = {token_id: likelihood(token_id, 1) for token_id in (a, b, EOS)}
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "<|endoftext|>"],
        "token_logprobs": [value.logprob for value in values.values()],
        "top_logprobs": [
            {backend_name(backend, i): lp for i, lp in [(own, value.logprob), *value.top]}
            for own, value in values.items()
        ],
        "text_offset": [0, 1, 2],
    }
    assert choice["prompt_logprobs"] is None


def backend_name(backend: FakeBackend, token_id: int) -> str:
    data = backend.tokenizer.token_bytes(token_id)
    return data.decode() if data.isascii() else f"bytes:\\x{data[0]:02x}"


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_the_token_itself_is_among_the_likeliest_with_the_same_number(http: httpx.Client, count: int) -> None:
    [choice] = complete(http, prompt="any text", logprobs=count)["choices"]
    logprobs = choice["logprobs"]
    for name, value, top in zip(*(logprobs[key] for key in ("tokens", "token_logprobs", "top_logprobs")), strict=True):
        assert top[name] == value
        assert count <= len(top) <= count + 1
        if count:
            assert (value == max(top.values())) == (value == -0.1)  # how evaluation harnesses ask for greedy


def test_bytes_of_a_character_are_named_and_placed(http: httpx.Client) -> None:
    [choice] = complete(http, prompt=TEXT, logprobs=0)["choices"]
    assert choice["logprobs"]["tokens"] == [*"a", r"bytes:\xe6", r"bytes:\x97", r"bytes:\xa5", "#", "<|endoftext|>"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2, 3]


@pytest.mark.parametrize("ids_per_delta", [1, 2, 3, 100])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stop": "日#"},
        {"stop": "##"},
        {"stop": "\U0001f389"},
        {"stop": "日", "include_stop_str_in_output": True},
        {"stop": "日", "min_tokens": 5},
        {"max_tokens": 2},
        {"max_tokens": 3},
        {"echo": True},
        {"echo": True, "stop": "#"},
        {"ignore_eos": True, "skip_special_tokens": False, "max_tokens": 12},
        {"return_tokens_as_token_ids": True},
    ],
    ids=str,
)
def test_a_stream_says_what_the_whole_response_says(
    http: httpx.Client, backend: FakeBackend, ids_per_delta: int, fields: dict[str, Any]
) -> None:
    backend.ids_per_delta = ids_per_delta
    body = {"prompt": TEXT, "logprobs": 2, "return_token_ids": True, **fields}
    [choice] = complete(http, **body)["choices"]
    chunks = stream(http, **body)
    parts = [chunk["choices"][0] for chunk in chunks]
    assert "".join(part["text"] for part in parts) == choice["text"]
    assert joined(chunks) == choice["logprobs"]
    assert [token_id for part in parts for token_id in part["token_ids"]] == choice["token_ids"]
    assert [part.get("prompt_token_ids") for part in parts] == [choice["prompt_token_ids"], *[None] * (len(parts) - 1)]
    assert all(part["text"] for part in parts[:-1])


def test_tokens_wait_for_their_text(http: httpx.Client, backend: FakeBackend) -> None:
    backend.pause_s = 0.003
    chunks = stream(http, prompt="a日b##c", stop="##!", logprobs=0)
    sent = ""
    for chunk in chunks:
        [choice] = chunk["choices"]
        sent += choice["text"]
        assert all(offset < len(sent) for offset in choice["logprobs"]["text_offset"]) or choice["finish_reason"]
    pieces = {choice["text"]: choice["logprobs"]["tokens"] for chunk in chunks for choice in chunk["choices"]}
    if "日" in pieces:  # chunks that came while the client was behind are one
        assert pieces["日"] == [r"bytes:\xe6", r"bytes:\x97", r"bytes:\xa5"]
    if "##c" in pieces:
        assert pieces["##c"] == ["#", "#", "c"]


@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [("#", "a日", 4), ("日", "a", 1), ("a", "", 0), ("日#", "a", 1), ("<|", TEXT, 6)],
)
def test_a_stop_string_ends_the_tokens_with_the_text(http: httpx.Client, stop: str, text: str, tokens: int) -> None:
    answer = complete(http, prompt=TEXT, stop=stop, logprobs=0, return_token_ids=True)
    [choice] = answer["choices"]
    assert choice["text"] == text
    assert len(choice["logprobs"]["tokens"]) == len(choice["token_ids"]) == tokens
    assert answer["usage"]["completion_tokens"] >= tokens


def test_special_tokens_that_are_not_shown_are_there(http: httpx.Client, backend: FakeBackend) -> None:
    ids = [*ids_of(backend, "a"), EOS, *ids_of(backend, "b")]
    [choice] = complete(http, prompt=ids, ignore_eos=True, max_tokens=3, logprobs=0)["choices"]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["tokens"] == ["a", "<|endoftext|>", "b"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1]


def test_tokens_may_be_named_by_their_ids(http: httpx.Client, backend: FakeBackend) -> None:
    [a] = ids_of(backend, "a")
    [choice] = complete(http, prompt="a", max_tokens=1, logprobs=1, return_tokens_as_token_ids=True)["choices"]
    assert choice["logprobs"]["tokens"] == [f"token_id:{a}"]
    assert set(choice["logprobs"]["top_logprobs"][0]) == {f"token_id:{i}" for i in (a, likelihood(a, 1).top[0][0])}


def test_minus_infinity_is_a_number(http: httpx.Client, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = TokenLogprobs(float("-inf"), 257, ((1, float("-inf")),))
    monkeypatch.setattr("fake_backend.likelihood", lambda *_: impossible)
    [choice] = complete(http, prompt="a", logprobs=1, prompt_logprobs=1)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0, -9999.0]


class TestPromptLogprobs:
    @pytest.mark.parametrize("count", [0, 2])
    def test_completions(self, http: httpx.Client, backend: FakeBackend, count: int) -> None:
        [b] = ids_of(backend, "b")
        answer = complete(http, prompt=["ab", "a"], prompt_logprobs=count)
        first, second = answer["choices"]
        known = likelihood(b, count)
        ranks = {other: rank for rank, (other, _) in enumerate(known.top, 1)} | {b: known.rank}
        assert first["prompt_logprobs"] == [
            None,
            {
                str(i): {"logprob": lp, "rank": ranks[i], "decoded_token": backend_name(backend, i)}
                for i, lp in [(b, known.logprob), *known.top]
            },
        ]
        assert second["prompt_logprobs"] == [None]

    def test_chat(self, http: httpx.Client) -> None:
        body = {"messages": [{"role": "user", "content": "Hi"}], "prompt_logprobs": 1}
        answer = http.post(CHAT, json=body).json()
        assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
        assert "prompt_logprobs" not in answer["choices"][0]

    def test_with_an_echo_that_asks_for_another_number(self, http: httpx.Client) -> None:
        [choice] = complete(http, prompt="abc", echo=True, logprobs=1, prompt_logprobs=4, max_tokens=0)["choices"]
        assert all(len(top) <= 2 for top in choice["logprobs"]["top_logprobs"][1:])
        assert all(len(entry) >= 4 for entry in choice["prompt_logprobs"][1:])

    def test_each_choice_has_those_of_its_prompt(self, http: httpx.Client) -> None:
        choices = complete(http, prompt=["ab", "abc"], n=2, prompt_logprobs=0)["choices"]
        assert [len(choice["prompt_logprobs"]) for choice in choices] == [2, 2, 3, 3]
        assert choices[2]["prompt_logprobs"] == choices[3]["prompt_logprobs"]

    @pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
    def test_minus_one_stands_for_the_most(self, http: httpx.Client, field: str) -> None:
        body = {"prompt": "ab", "echo": True}
        all_of_them = complete(http, **body, **{field: -1})["choices"]
        assert all_of_them == complete(http, **body, **{field: 20})["choices"]

    @pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
    def test_their_number_is_bounded(self, field: str) -> None:
        with serving(limits=Limits(max_prompt_logprobs=20)) as server:
            body = {"prompt": "abcdef", "echo": True, field: 1}  # 12 numbers for each choice
            assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
            response = httpx.post(f"{server.url}/v1/completions", json=body | {"n": 2})
            assert (response.status_code, response.json()["error"]["param"]) == (400, field)


class TestChat:
    def ask(self, http: httpx.Client, **body: Any) -> httpx.Response:
        return http.post(CHAT, json={"messages": [{"role": "user", "content": "é"}], **body})

    def test_whole_response(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.outputs = [ids_of(backend, "é")]
        [choice] = self.ask(http, logprobs=True, top_logprobs=1).json()["choices"]
        assert choice["logprobs"]["refusal"] is None
        entries = choice["logprobs"]["content"]
        assert [entry["token"] for entry in entries] == [r"bytes:\xc3", r"bytes:\xa9"]
        assert [entry["bytes"] for entry in entries] == [[0xC3], [0xA9]]
        for entry in entries:
            alone = {name: entry[name] for name in ("token", "logprob", "bytes")}
            assert alone in entry["top_logprobs"]
            values = [top["logprob"] for top in entry["top_logprobs"]]
            assert values == sorted(values, reverse=True)
            assert len(values) == (1 if entry["logprob"] == -0.1 else 2)

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"max_tokens": 4},
            {"stop_token_ids": [72]},
            {"stop_token_ids": [72], "include_stop_str_in_output": True},
            {"ignore_eos": True, "max_tokens": 30},
            {"ignore_eos": True, "max_tokens": 30, "skip_special_tokens": False},
            {"include_stop_str_in_output": True, "skip_special_tokens": False},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("stream", [False, True])
    def test_the_tokens_are_those_of_the_content(
        self, http: httpx.Client, backend: FakeBackend, body: dict[str, Any], stream: bool
    ) -> None:
        backend.outputs = [[*ids_of(backend, "aé"), EOS, *ids_of(backend, "bi")]]
        response = self.ask(http, logprobs=True, stream=stream, **body)
        if stream:
            choices = [chunk["choices"][0] for chunk in events(response)]
            content = "".join(choice["delta"].get("content", "") for choice in choices)
        else:
            choices = response.json()["choices"]
            content = choices[0]["message"]["content"]
        entries = [entry for choice in choices if choice["logprobs"] for entry in choice["logprobs"]["content"]]
        assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == content

    def test_no_alternatives_unasked(self, http: httpx.Client) -> None:
        [choice] = self.ask(http, logprobs=True).json()["choices"]
        assert all(entry["top_logprobs"] == [] for entry in choice["logprobs"]["content"])
        assert self.ask(http, logprobs=False).json()["choices"][0]["logprobs"] is None

    def test_stream(self, http: httpx.Client) -> None:
        body = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}
        whole = self.ask(http, **body).json()
        opening, *chunks = events(self.ask(http, stream=True, **body))
        assert opening["prompt_token_ids"] == whole["prompt_token_ids"]
        assert opening["choices"][0]["logprobs"] is None
        entries = [entry for chunk in chunks for entry in chunk["choices"][0]["logprobs"]["content"]]
        assert entries == whole["choices"][0]["logprobs"]["content"]
        ids = [token_id for chunk in chunks for token_id in chunk["choices"][0]["token_ids"]]
        assert ids == whole["choices"][0]["token_ids"]
        assert ids[-1] == EOS

    def test_official_client(self, client: openai.OpenAI) -> None:
        messages: Any = [{"role": "user", "content": "Hi"}]
        answer = client.chat.completions.create(model="mpt-echo", messages=messages, logprobs=True, top_logprobs=2)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert logprobs.content[0].token == "["
        assert logprobs.content[0].top_logprobs[0].bytes
        stream = client.chat.completions.create(model="mpt-echo", messages=messages, logprobs=True, stream=True)
        entries = [e for c in stream if c.choices[0].logprobs for e in c.choices[0].logprobs.content or ()]
        assert [entry.token for entry in entries] == [entry.token for entry in logprobs.content]


def test_official_client(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="mpt-echo", prompt="hi", logprobs=1, echo=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [*"hihi", "<|endoftext|>"]
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    chunks = list(client.completions.create(model="mpt-echo", prompt="hi", logprobs=1, echo=True, stream=True))
    assert [t for c in chunks for t in c.choices[0].logprobs.tokens or ()] == logprobs.tokens  # type: ignore[union-attr]


@given(text=st.text(min_size=1, max_size=12), count=st.integers(0, 3), stop=st.text("ab#é", min_size=1, max_size=2))
def test_offsets_are_the_places_of_the_tokens(shared_http: httpx.Client, text: str, count: int, stop: str) -> None:
    [choice] = complete(shared_http, prompt=text, logprobs=count, max_tokens=60, echo=True, stop=stop)["choices"]
    logprobs = choice["logprobs"]
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    for name, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not name.startswith("bytes:") and name != "<|endoftext|>":
            assert choice["text"][offset : offset + len(name)] == name


def test_ids_that_a_request_names_stand_in_place_of_the_likeliest(http: httpx.Client, backend: FakeBackend) -> None:
    a, b = ids_of(backend, "ab")
    x, y = ids_of(backend, "xy")
    [choice] = complete(http, prompt="ab", logprob_token_ids=[y, a, x], max_tokens=2)["choices"]
    ((_, params),) = backend.started
    assert (params.logprobs, params.logprob_token_ids) == (0, (y, a, x))
    named = {"y": -y / 8, "a": -a / 8, "x": -x / 8}
    own = [likelihood(token_id, 0).logprob for token_id in (a, b)]
    assert choice["logprobs"]["token_logprobs"] == own
    assert choice["logprobs"]["top_logprobs"] == [{**named, "a": own[0]}, {"b": own[1], **named}]
    [echoed] = complete(http, prompt="ab", logprob_token_ids=[x], echo=True, logprobs=3, max_tokens=1)["choices"]
    assert [len(top or {}) for top in echoed["logprobs"]["top_logprobs"]] == [0, 1, 2]  # none of a prompt's tokens

    body = {
        "messages": [{"role": "user", "content": "ab"}],
        "logprobs": True,
        "logprob_token_ids": [x],
        "max_tokens": 1,
    }
    [entry] = http.post(CHAT, json=body).json()["choices"][0]["logprobs"]["content"]
    assert [top["token"] for top in entry["top_logprobs"]] == [entry["token"], "x"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"logprob_token_ids": []}),
        ("/v1/completions", {"logprob_token_ids": [257]}),
        ("/v1/completions", {"logprob_token_ids": [3, 3]}),
        ("/v1/completions", {"logprob_token_ids": list(range(129))}),
        (CHAT, {"logprob_token_ids": [3]}),  # without logprobs
        ("/v1/responses", {"logprob_token_ids": [3]}),
    ],
)
def test_wrong_names_of_ids_are_refused(http: httpx.Client, path: str, fields: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "ab"}]
    prompt = {CHAT: {"messages": messages}, "/v1/responses": {"input": "a"}}.get(path, {"prompt": "a"})
    response = http.post(path, json={**prompt, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logprob_token_ids"
