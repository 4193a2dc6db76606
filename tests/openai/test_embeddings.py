"""/v1/embeddings."""

import base64
import json
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from fake_backend import MODEL, FakeBackend, byte_tokenizer, hidden_states
from loopback_server import serving
from test_errors import check_error, post

from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.request import NO_STATES_MESSAGE, Delta
from mpt_serve.engine.sampling_params import SamplingParams

RAW = SamplingParams(max_tokens=0, pooling="none")
TOKENIZER = byte_tokenizer()
AB = TOKENIZER.encode("ab")
MEAN = replace(RAW, pooling="mean", normalize=True)


def embed(http: httpx.Client, **body: Any) -> Any:
    response = http.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()


def states(text: str, params: SamplingParams) -> bytes:
    found = hidden_states(TOKENIZER.encode(text), params)
    assert found is not None
    return found


def numbers(text: str, params: SamplingParams) -> list[float]:
    return np.frombuffer(states(text, params), "<f4").tolist()


class TestResponse:
    def test_shape(self, http: httpx.Client, backend: FakeBackend) -> None:
        answer = embed(http, input=["ab", "cde"], model="mpt-echo")
        assert answer.pop("id").startswith("embd-")
        assert isinstance(answer.pop("created"), int)
        assert answer == {
            "object": "list",
            "model": "mpt-echo",
            "data": [
                {"object": "embedding", "index": 0, "embedding": numbers("ab", MEAN)},
                {"object": "embedding", "index": 1, "embedding": numbers("cde", MEAN)},
            ],
            "usage": {
                "prompt_tokens": 5,
                "completion_tokens": 0,
                "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 2},
            },
        }

    @pytest.mark.parametrize("given", ["ab", ["ab"], AB, [AB]], ids=repr)
    def test_four_shapes_of_inputs(self, http: httpx.Client, given: Any) -> None:
        [item] = embed(http, input=given)["data"]
        assert item["embedding"] == numbers("ab", MEAN)

    def test_the_official_client_asks_for_base64(self, client: openai.OpenAI, backend: FakeBackend) -> None:
        texts = ["ab", "cde", "f"]
        response = client.embeddings.create(model="mpt-echo", input=texts)
        assert [item.index for item in response.data] == [0, 1, 2]
        for item, text in zip(response.data, texts, strict=True):
            np.testing.assert_array_equal(item.embedding, numbers(text, MEAN))
            assert np.linalg.norm(item.embedding) == pytest.approx(1)
        assert response.usage.prompt_tokens == response.usage.total_tokens == 6
        plain = client.embeddings.create(model="mpt-echo", input=texts, encoding_format="float")
        assert [item.embedding for item in plain.data] == [item.embedding for item in response.data]

    def test_base64_is_float32(self, http: httpx.Client) -> None:
        [item] = embed(http, input="abc", encoding_format="base64")["data"]
        assert base64.b64decode(item["embedding"]) == states("abc", MEAN)

    def test_a_vector_of_each_token(self, http: httpx.Client, client: openai.OpenAI) -> None:
        [item] = embed(http, input="abc", pooling="none")["data"]
        assert [number for vector in item["embedding"] for number in vector] == numbers("abc", RAW)
        assert [len(vector) for vector in item["embedding"]] == [3, 3, 3]
        response = client.embeddings.create(model="mpt-echo", input="abc", extra_body={"pooling": "none"})
        assert response.data[0].embedding == numbers("abc", RAW)

    @pytest.mark.parametrize(
        ("body", "setting", "expected"),
        [
            ({}, "mean", ("mean", True)),
            ({}, "last", ("last", True)),
            ({"pooling": "mean"}, "last", ("mean", True)),
            ({"pooling": "last", "normalize": False}, "mean", ("last", False)),
            ({"pooling": "none"}, "mean", ("none", False)),
            ({"pooling": "none", "normalize": True}, "mean", ("none", True)),
        ],
    )
    def test_what_the_engine_is_asked_for(
        self, http: httpx.Client, backend: FakeBackend, body: Any, setting: Any, expected: tuple[str, bool]
    ) -> None:
        backend.model = replace(MODEL, embedding_pooling=setting)
        embed(http, input="ab", priority=3, cache_salt="s", **body)
        [(_, params)] = backend.started
        assert (params.pooling, params.normalize) == expected
        assert (params.max_tokens, params.priority, params.cache_salt) == (0, 3, "s")

    def test_large_responses_are_the_same(self, http: httpx.Client) -> None:
        """They are built on a thread."""
        texts = ["xyz" * 80] * 60
        for format in ("float", "base64"):
            items = embed(http, input=texts, pooling="none", encoding_format=format)["data"]
            assert [item["index"] for item in items] == list(range(60))
            assert len({json.dumps(item["embedding"]) for item in items}) == 1
        assert base64.b64decode(items[0]["embedding"]) == states(texts[0], RAW)

    def test_the_route_without_its_version(self, http: httpx.Client) -> None:
        assert http.post("/embeddings", json={"input": "a"}).status_code == 200


class TestInputs:
    @pytest.mark.parametrize(
        ("body", "kept"),
        [
            ({"truncate_prompt_tokens": 2}, "ef"),
            ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, "ab"),
            ({"truncate_prompt_tokens": -1}, "abcdef"),
        ],
    )
    def test_they_are_cut_on_request(self, http: httpx.Client, body: Any, kept: str) -> None:
        answer = embed(http, input="abcdef", pooling="none", **body)
        assert len(answer["data"][0]["embedding"]) == answer["usage"]["prompt_tokens"] == len(kept)
        assert answer["data"][0]["embedding"] == embed(http, input=kept, pooling="none")["data"][0]["embedding"]

    def test_the_whole_context_may_be_used(self, http: httpx.Client) -> None:
        assert embed(http, input="a" * 256)["usage"]["prompt_tokens"] == 256
        assert embed(http, input="a" * 300, truncate_prompt_tokens=-1)["usage"]["prompt_tokens"] == 256

    @pytest.mark.parametrize("given", ["a" * 257, [97] * 257, ["a", "a" * 257]], ids=["text", "ids", "second"])
    def test_what_is_too_long_says_what_fits(self, http: httpx.Client, given: Any) -> None:
        error = check_error(post(http, "/v1/embeddings", {"input": given}), 400, "context_length_exceeded")
        assert error["param"] == "input"
        assert error["message"].startswith("This model's maximum context length is 256 tokens")
        assert "prompt is too long" in error["message"]
        assert "Send at most 256 prompt tokens, which truncate_prompt_tokens cuts a prompt to." in error["message"]

    def test_special_tokens_in_texts(self, http: httpx.Client) -> None:
        assert embed(http, input="<|endoftext|>")["usage"]["prompt_tokens"] == 1
        assert embed(http, input="<|endoftext|>", parse_special_tokens=False)["usage"]["prompt_tokens"] == 13

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "input"),
            ({"input": ""}, "input"),
            ({"input": []}, "input"),
            ({"input": ["a", ""]}, "input"),
            ({"input": [[]]}, "input"),
            ({"input": ["a", 1]}, "input"),
            ({"input": [257]}, "input"),
            ({"input": [-1]}, "input"),
            ({"input": "\ud800"}, "input"),
            ({"input": {"a": 1}}, "input"),
            ({"input": "a", "model": "other"}, "model"),
            ({"input": "a", "pooling": "max"}, "pooling"),
            ({"input": "a", "normalize": 1}, "normalize"),
            ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
            ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_is_refused(self, http: httpx.Client, body: Any, param: str) -> None:
        assert check_error(post(http, "/v1/embeddings", body))["param"] == param

    @pytest.mark.parametrize(
        ("field", "value", "reason"),
        [
            ("dimensions", 2, "a part of a vector"),
            ("messages", [{"role": "user", "content": "a"}], "as `input`"),
            ("embd_normalize", 1, "`normalize`"),
            ("embed_dtype", "float16", "float32"),
        ],
    )
    def test_what_is_refused_by_name(self, http: httpx.Client, field: str, value: Any, reason: str) -> None:
        error = check_error(post(http, "/v1/embeddings", {"input": "a", field: value}), 400, "unsupported_parameter")
        assert error["param"] == field
        assert reason in error["message"]

    def test_the_official_client_sees_why_dimensions_are_refused(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="not offered") as refusal:
            client.embeddings.create(model="mpt-echo", input="a", dimensions=2)
        assert refusal.value.param == "dimensions"


class TestBounds:
    def test_inputs_of_one_request(self) -> None:
        with serving(limits=Limits(max_inputs=2)) as server, httpx.Client(base_url=server.url) as http:
            embed(http, input=["a", "b"])
            error = check_error(post(http, "/v1/embeddings", {"input": ["a", "b", "c"]}), 400)
        assert (error["param"], error["message"]) == ("input", "'input' must hold at most 2 inputs; got 3.")

    def test_numbers_of_one_response(self) -> None:
        with serving(limits=Limits(max_embedding_numbers=9)) as server, httpx.Client(base_url=server.url) as http:
            embed(http, input=["abcd"] * 3)
            embed(http, input="abc", pooling="none")
            embed(http, input="abcd", pooling="none", truncate_prompt_tokens=3)
            error = check_error(post(http, "/v1/embeddings", {"input": ["a"] * 4}), 400)
            assert "at most 9 numbers. Send at most 3 inputs in one request." in error["message"]
            error = check_error(post(http, "/v1/embeddings", {"input": ["ab"] * 2, "pooling": "none"}), 400)
            assert "4 tokens, each with a vector of 3 numbers" in error["message"]

    def test_some_inputs_of_a_request_wait_for_the_others(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.pause_s = 0.001
        answer = embed(http, input=[f"{number}" for number in range(100)])
        assert len(answer["data"]) == len(backend.started) == 100
        assert (backend.most_encoding, backend.most_running) == (32, 32)
        assert backend.admitted == [(32, 1)]

    def test_an_engine_that_fails_is_a_500(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.fail_after = 0
        backend.failure = Delta((), "error", None, 0, message=NO_STATES_MESSAGE)
        error = check_error(post(http, "/v1/embeddings", {"input": "a"}), 500)
        assert error["message"].startswith("The model's hidden states")
