import json
import logging
import time
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_backend import MODEL, FakeBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_server import serving

from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.ids import request_id_from
from mpt_serve.openai.reference import render_reference

DOCS = Path(__file__).parents[2] / "docs"


class TestModels:
    def test_list(self, http: httpx.Client) -> None:
        model = {
            "id": "mpt-echo",
            "object": "model",
            "created": 1_700_000_000,
            "owned_by": "mpt_serve",
            "root": "mpt-echo",
            "parent": None,
            "max_model_len": 256,
        }
        assert http.get("/v1/models").json() == {"object": "list", "data": [model]}
        assert http.get("/v1/models/mpt-echo").json() == model

    def test_ids_may_have_slashes(self) -> None:
        with serving(FakeBackend(replace(MODEL, id="mosaicml/mpt-7b", root="mpt-7b"))) as server:
            assert httpx.get(f"{server.url}/v1/models/mosaicml/mpt-7b").json()["root"] == "mpt-7b"

    def test_unknown_id(self, http: httpx.Client) -> None:
        response = http.get("/v1/models/gpt-4")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"

    def test_official_client(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["mpt-echo"]
        assert client.models.retrieve("mpt-echo").owned_by == "mpt_serve"


class TestTokenize:
    def test_text(self, http: httpx.Client, backend: FakeBackend) -> None:
        answer = http.post("/tokenize", json={"prompt": "aé", "model": "mpt-echo"}).json()
        ids = backend.tokenizer.encode("aé")
        assert answer == {"count": 3, "max_model_len": 256, "tokens": ids, "token_strs": None}

    def test_tokens_as_the_vocabulary_writes_them(self, http: httpx.Client) -> None:
        answer = http.post("/tokenize", json={"prompt": "a é<|endoftext|>", "return_token_strs": True}).json()
        assert answer["token_strs"] == ["a", "Ġ", "Ã", "©", "<|endoftext|>"]
        body = {"messages": [{"role": "user", "content": "a"}], "return_token_strs": True, "add_special_tokens": True}
        answer = http.post("/tokenize", json=body).json()
        assert "".join(answer["token_strs"]) == "^[user]a[assistant]"
        assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])

    def test_empty_text(self, http: httpx.Client) -> None:
        assert http.post("/tokenize", json={"prompt": ""}).json()["tokens"] == []

    def test_conversation(self, http: httpx.Client, backend: FakeBackend) -> None:
        body = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": False}
        assert http.post("/tokenize", json=body).json()["tokens"] == backend.tokenizer.encode("[user]a")

    @pytest.mark.parametrize("body", [{}, {"prompt": 1}, {"prompt": ["a"]}, {"prompt": None}])
    def test_bad_prompts(self, http: httpx.Client, body: Any) -> None:
        response = http.post("/tokenize", json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")

    def test_unknown_fields_are_named(self, http: httpx.Client) -> None:
        response = http.post("/tokenize", json={"prompt": "a", "x": 1})
        assert response.headers["x-mpt-ignored-fields"] == "x"

    def test_control_tokens_are_parsed_unless_the_request_says_otherwise(self, shared_http: httpx.Client) -> None:
        body = {"prompt": "a<|endoftext|>", "parse_special_tokens": False}
        assert shared_http.post("/tokenize", json={**body, "parse_special_tokens": True}).json()["count"] == 2
        assert shared_http.post("/tokenize", json=body).json()["count"] == 14
        completion = shared_http.post("/v1/completions", json=body).json()
        assert completion["usage"]["prompt_tokens"] == 14
        assert completion["choices"][0]["text"] == "a<|endoftext|>"

    @settings(max_examples=30)
    @given(text=st.text(max_size=50))
    def test_detokenize_is_the_way_back(self, shared_http: httpx.Client, text: str) -> None:
        tokens = shared_http.post("/tokenize", json={"prompt": text}).json()["tokens"]
        assert shared_http.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}

    @pytest.mark.parametrize("tokens", [None, "a", 1, [-1], [257], [True], [1.5], ["1"], [2**64], [[1]]], ids=repr)
    def test_bad_tokens(self, http: httpx.Client, tokens: Any) -> None:
        response = http.post("/detokenize", json={"tokens": tokens})
        assert response.status_code == 400
        assert response.json()["error"]["param"].startswith("tokens")


def test_health_ready_version(http: httpx.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}
    assert http.get("/version").json() == {"version": version("mpt-serve")}


def test_load(http: httpx.Client, backend: FakeBackend) -> None:
    assert http.get("/load").json() == {"server_load": 0}
    backend.reserved = 3
    assert http.get("/load").json() == {"server_load": 3}


class TestTokenizerInfo:
    def test_without_a_template(self, http: httpx.Client) -> None:
        assert http.get("/tokenizer_info").json() == {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "vocab_size": 257,
            "model_max_length": 256,
            "bos_token": None,
            "eos_token": "<|endoftext|>",
            "unk_token": None,
            "pad_token": None,
            "all_special_tokens": ["<|endoftext|>"],
            "chat_template": None,
        }

    def test_tokens_have_the_names_of_the_checkpoint(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.tokenizer.special_tokens = {"bos_token": "<|endoftext|>", "eos_token": "a"}
        backend.model = replace(backend.model, chat_template="{{ messages }}", max_model_len=0)
        info = http.get("/tokenizer_info").json()
        assert (info["bos_token"], info["eos_token"]) == ("<|endoftext|>", "a")
        assert (info["chat_template"], info["model_max_length"]) == ("{{ messages }}", None)


@pytest.mark.parametrize("path", ["/completions", "/chat/completions", "/models", "/models/mpt-echo"])
def test_paths_without_v1_are_the_same(http: httpx.Client, path: str) -> None:
    bodies: dict[str, Any] = {
        "/completions": {"prompt": "a"},
        "/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    }
    method = "POST" if path in bodies else "GET"
    both = [http.request(method, prefix + path, json=bodies.get(path)) for prefix in ("", "/v1")]
    assert [answer.status_code for answer in both] == [200, 200]
    plain, versioned = (answer.json() for answer in both)
    assert plain.keys() == versioned.keys()
    assert plain.get("choices") == versioned.get("choices")
    assert plain.get("object") == versioned.get("object")


def test_version_of_a_tree_that_is_not_installed(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("mpt_serve.openai.health.version", missing)
    assert http.get("/version").json() == {"version": "unknown"}


class TestRequestId:
    @pytest.mark.parametrize("request_id", ["a b", "<b>", "a" * 129, "é", "a;b", "", "a\r\nset-cookie: b", "a\n"])
    def test_harmful_ids_are_replaced(self, request_id: str) -> None:
        assert request_id_from(request_id).startswith("req-")
        assert request_id_from("my-id_1.2") == "my-id_1.2"

    def test_the_proxy_in_front_returns_it(self, http: httpx.Client) -> None:
        assert "x-request-id" not in http.get("/health", headers={"x-request-id": "mine"}).headers

    def test_engine_knows_the_request_by_it(self, http: httpx.Client, backend: FakeBackend) -> None:
        for prompt in ("a", ["a", "b"]):
            http.post("/v1/completions", json={"prompt": prompt}, headers={"x-request-id": "mine"})
        assert [request_id for request_id, _ in backend.started] == ["mine", "mine-0", "mine-1"]


def test_each_unknown_field_is_logged_once_and_no_value_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first has a warning without its name, which is a client's text."""
    with serving() as server, caplog.at_level(logging.DEBUG, logger="mpt_serve"):
        for field in ("twice", "twice", "other"):
            body = {"prompt": "\x1b[31msecret", "user": "secret", "once\x1b": 1, field: 1}
            httpx.post(f"{server.url}/v1/completions", json=body, timeout=30)
    logged = [(r.levelno, r.getMessage()) for r in caplog.records if r.name.endswith("server_context")]
    warning = "A request has unknown fields, which have no effect; its response's x-mpt-ignored-fields names them"
    names = [(logging.DEBUG, f"unknown fields: {name}") for name in ("twice", "other")]
    assert logged == [(logging.WARNING, warning), *names]
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "temperatur": 1}, "temperatur"),
        ("/v1/completions", {"prompt": "a", "stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a", "mood": "b"}]}, "messages[0].mood"),
        ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "a"}], "mood": "a"}, "mood"),
        ("/v1/responses", {"input": "a", "temperatur": 1}, "temperatur"),
        ("/v1/embeddings", {"input": "a", "temperatur": 1}, "temperatur"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "temperatur": 1}, "temperatur"),
        ("/tokenize", {"prompt": "a", "temperatur": 1}, "temperatur"),
        ("/v1/completions", {"prompt": "a", "\x1b[31m": 1}, None),
    ],
)
def test_unknown_fields_are_refused_where_the_settings_say_so(
    path: str, body: dict[str, Any], param: str | None
) -> None:
    with serving(limits=Limits(unknown_fields="refuse")) as server:
        response = httpx.post(server.url + path, json=body, timeout=30)
        assert response.status_code == 400
        error = response.json()["error"]
        assert (f"'{param}'" if param else "A field") in error["message"]
        assert "'limits.unknown_fields'" in error["message"]
        if not path.endswith("/messages"):  # whose errors have other members
            assert (error["code"], error["param"]) == ("unsupported_parameter", param)
        assert server.backend.started == []


def test_each_request_but_polls_has_one_line(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mpt_serve"):
        http.post("/v1/completions", json={"prompt": "secret"}, headers={"x-request-id": "mine"})
        http.post("/v1/completions", json={"prompt": 1}, headers={"x-request-id": "bad"})
        http.get("/secret?secret", headers={"x-request-id": "lost"})
        http.request("PROPFIND", "/v1/models", headers={"x-request-id": "odd"})
        for poll in ("/health", "/ready", "/version"):
            http.get(poll, headers={"x-request-id": "poll"})
        http.get("/v1/models", headers={"x-request-id": "last"})

        def lines() -> list[str]:  # those of this test's requests: a line may follow its response
            ids = ("mine", "bad", "lost", "odd", "poll", "last")
            messages = [record.getMessage().rsplit(" in ", 1)[0] for record in caplog.records]
            return sorted(message for message in messages if message.startswith(ids))

        deadline = time.monotonic() + 30
        while len(lines()) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert lines() == [
        "bad: POST /v1/completions 400",
        "last: GET /v1/models 200",
        "lost: GET (other path) 404",
        "mine: POST /v1/completions 200",
        "odd: (other method) /v1/models 405",
    ]


def test_docs_are_what_the_tables_say() -> None:
    assert (DOCS / "api.md").read_text(encoding="utf-8") == render_reference()


def test_docs_name_every_route_and_parse_as_tables() -> None:
    text = render_reference()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") >= 3 and line.endswith("|") for line in rows)
    assert json.dumps("left") in text
