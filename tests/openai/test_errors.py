import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from fake_backend import FakeBackend
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_server import Server, serving
from starlette.exceptions import HTTPException

from mpt_serve.configuration.limits import Limits
from mpt_serve.errors import BusyError, EngineClosedError, RequestError
from mpt_serve.openai.backend import Readiness
from mpt_serve.openai.error_forms import error_response
from mpt_serve.openai.errors import ERROR_KINDS, InvalidValueError, NotReadyError, as_api_error
from mpt_serve.text.chat_template import ChatTemplateError

POSTS = [
    *("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/v1/score", "/v1/rerank"),
    *("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/v1/embeddings"),
]
GOOD = {
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [64]},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/v1/embeddings": {"input": ["a", "bc"]},
    "/v1/rerank": {"query": "a", "documents": ["b", {"text": "c"}]},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 30},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "a"}]},
}
LEAKS = re.compile(r'0x[0-9a-f]{4}|File "|Traceback|/(?:srv|home|root|usr|work|tmp)/')


def check_error(response: httpx.Response, status: int | None = None, code: str | None = None) -> dict[str, Any]:
    """Check the whole contract that every error keeps."""
    if status is not None:
        assert response.status_code == status, response.text
    assert response.status_code >= 400
    assert response.status_code != 422
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) <= 4096
    assert not LEAKS.search(response.text)
    body = response.json()
    error: dict[str, Any] = body["error"]
    if "/messages" in response.url.path:
        assert list(body) == ["type", "error", "request_id"]
        assert body["type"] == "error"
        assert list(error) == ["type", "message", "param", "code"]
    else:
        assert list(body) == ["error"]
        assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert code is None or error["code"] == code
    assert ("retry-after" in response.headers) == (response.status_code in (429, 503))
    return error


def post(http: httpx.Client, path: str, body: Any) -> httpx.Response:
    """Post JSON in ASCII, so that halves of surrogate pairs can travel."""
    return http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


def post_raw(http: httpx.Client, path: str, content: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
    return http.post(path, content=content, headers={"content-type": "application/json", **headers})


class TestRoutes:
    @pytest.mark.parametrize(
        "path", ["/v1", "/v1/models/", "//v1/models", "/v1/completions/", "/v1/images", "/%2e%2e/etc/passwd"]
    )
    def test_unknown_paths(self, http: httpx.Client, path: str) -> None:
        url = http.base_url.copy_with(raw_path=path.encode())  # the client itself would normalise the path
        error = check_error(http.get(url), 404)
        assert error["type"] == "not_found_error"

    @pytest.mark.parametrize("path", POSTS)
    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
    def test_wrong_methods(self, http: httpx.Client, path: str, method: str) -> None:
        response = http.request(method, path)
        check_error(response, 405, "method_not_allowed")
        assert response.headers["allow"] == "POST"

    def test_head_of_a_post_route(self, http: httpx.Client) -> None:
        assert http.head("/v1/completions").status_code == 405

    @pytest.mark.parametrize("path", ["/v1/models", "/health", "/ready", "/version"])
    def test_get_routes_take_head(self, http: httpx.Client, path: str) -> None:
        assert http.head(path).status_code == 200
        response = http.post(path)
        check_error(response, 405)
        assert "GET" in response.headers["allow"]


class TestModel:
    @pytest.mark.parametrize("path", POSTS)
    def test_unknown_model_lists_the_known_one(self, http: httpx.Client, path: str) -> None:
        error = check_error(post(http, path, {**GOOD[path], "model": "/etc/passwd"}), 404, "model_not_found")
        assert "'mpt-echo'" in error["message"]
        assert error["param"] == "model"

    @pytest.mark.parametrize("path", POSTS)
    @pytest.mark.parametrize("model", [1, True, [], {}, "x" * 300])
    def test_wrong_model(self, http: httpx.Client, path: str, model: Any) -> None:
        assert check_error(post(http, path, {**GOOD[path], "model": model}), 400)["param"] == "model"

    @pytest.mark.parametrize("path", POSTS)
    def test_model_is_optional(self, http: httpx.Client, path: str) -> None:
        assert post(http, path, GOOD[path]).status_code == 200
        assert post(http, path, {**GOOD[path], "model": None}).status_code == 200


@pytest.mark.parametrize("path", POSTS)
class TestBody:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"nonsense",
            b"[]",
            b'"x"',
            b"1",
            b"null",
            b"true",
            b"\xff\xfe",
            b'{"prompt": "\xff"}',
            b'{"a": 1}{"b": 2}',
            '{"prompt": "a"}'.encode("utf-16"),
            b'\xef\xbb\xbf\xef\xbb\xbf{"prompt": "a"}',
            b'{"temperature": NaN}',
            b'{"temperature": Infinity}',
            b'{"temperature": -Infinity}',
            b'{"temperature": 1e309}',
            b'{"temperature": -1e999}',
            b'{"seed": ' + b"9" * 5000 + b"}",
            b"[" * 100_000,
            b'{"a":' * 50 + b"1" + b"}" * 50,
            b'{"a": [' + b"0," * 300_000 + b"0]}",
            b'"' + b'\\"' * 500_000,
            b"1]" * 500_000,
            b'"' * 2_000_000,
            b"{" + b"}" * 500_000,
            b'{"a":[' + b'{"a":1},' * 40_000 + b"0]}",
        ],
    )
    def test_bad_bodies(self, http: httpx.Client, path: str, content: bytes) -> None:
        assert check_error(post_raw(http, path, content), 400)["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        ("content", "param"),
        [
            (b'{"temperature": NaN}', "temperature"),
            (b'{"user": "NaN", "logit_bias": {"1": 1e309}, "metadata": {"a": {}}}', "logit_bias"),
            (b'{"seed": 1, "stop": [[1.5, {}], [-Infinity]]}', "stop"),
            (b'{"seed": ' + b"9" * 5000 + b"}", "seed"),
            (b'{"a b": NaN}', None),
            (b"[NaN]", None),
            (b'{"temperature": NaN', None),
        ],
    )
    def test_the_field_with_a_number_that_is_refused_is_named(
        self, http: httpx.Client, path: str, content: bytes, param: str | None
    ) -> None:
        assert check_error(post_raw(http, path, content), 400)["param"] == param

    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (b'{"prompt": "a", "max_tokens": 1, "prompt": "b"}', "the member 'prompt'"),
            (b'{"metadata": {"a": {"x.y": 1, "x.y": 1}}}', "the member 'x.y'"),
            (b'{"\\u001b": 1, "\\u001b": 1}', "a member"),
        ],
    )
    def test_a_member_that_comes_twice_is_refused(
        self, http: httpx.Client, path: str, content: bytes, what: str
    ) -> None:
        assert check_error(post_raw(http, path, content), 400)["message"] == f"The body has {what} twice."

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
    def test_other_media_types(self, http: httpx.Client, path: str, kind: str) -> None:
        check_error(http.post(path, content=b"{}", headers={"content-type": kind}), 415, "unsupported_media_type")

    def test_other_encodings(self, http: httpx.Client, path: str) -> None:
        check_error(post_raw(http, path, b"{}", **{"content-encoding": "gzip"}), 415)
        check_error(http.post(path, content=b"{}", headers={"content-type": "application/json; charset=latin-1"}), 415)
        check_error(http.post(path, content=b"{}", headers={"content-type": "application/json; charset=utf-16"}), 415)

    @pytest.mark.parametrize("charset", ["UTF-8", "utf8", '"utf-8"', " Utf-8 ; x=y"])
    def test_charset_may_be_named(self, http: httpx.Client, path: str, charset: str) -> None:
        content = json.dumps(GOOD[path]).encode()
        headers = {"content-type": f"Application/JSON; charset={charset}"}
        assert http.post(path, content=content, headers=headers).status_code == 200

    def test_a_byte_order_mark_is_skipped(self, http: httpx.Client, path: str) -> None:
        assert post_raw(http, path, b"\xef\xbb\xbf" + json.dumps(GOOD[path]).encode()).status_code == 200

    def test_brackets_in_strings_are_text(self, http: httpx.Client, path: str) -> None:
        body = {**GOOD[path], "user": '[[[[{{{{"\\' * 20, "other": "," * 300_000}
        assert post(http, path, body).status_code == 200


@pytest.fixture(scope="module")
def small() -> Iterator[Server]:
    """A server with small bounds."""
    with serving(limits=Limits(max_body_bytes=1000, max_header_bytes=4000, max_headers=50)) as server:
        yield server


class TestSizes:
    @pytest.mark.parametrize("path", POSTS)
    def test_declared_length(self, small: Server, path: str) -> None:
        response = httpx.post(small.url + path, json={"prompt": "a" * 1000})
        check_error(response, 413, "request_too_large")

    @pytest.mark.parametrize("path", POSTS)
    def test_chunked_bodies_are_counted_while_read(self, small: Server, path: str) -> None:
        chunks = (b" " * 100 for _ in range(20))
        with httpx.Client(base_url=small.url) as http:
            check_error(post_raw(http, path, chunks), 413, "request_too_large")

    @pytest.mark.parametrize("size", [2_000, 20_000_000])
    def test_client_that_is_still_sending_gets_the_response(self, small: Server, size: int) -> None:
        body = b'"' + b"a" * size
        with httpx.Client(base_url=small.url) as http:
            check_error(post_raw(http, "/tokenize", body), 413)
            check_error(post_raw(http, "/tokenize", iter([body[: size // 2], body[size // 2 :]])), 413)

    def test_length_that_lies_about_its_digits(self, small: Server) -> None:
        port = int(small.url.rpartition(":")[2])
        head = "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: "
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(f"{head}{'9' * 19}\r\n\r\n".encode())
            assert connection.recv(4096).startswith((b"HTTP/1.1 413", b"HTTP/1.1 400"))

    def test_headers(self, small: Server) -> None:
        check_error(httpx.get(small.url + "/health", headers={"x-long": "a" * 5000}), 431, "headers_too_large")
        check_error(httpx.get(small.url + "/health", headers={f"x-{i}": "a" for i in range(60)}), 431)


INTEGERS = [
    *("max_tokens", "max_completion_tokens", "top_k", "seed", "min_tokens", "truncate_prompt_tokens", "n", "best_of"),
    *("prompt_logprobs", "priority", "top_logprobs"),
]
NUMBERS = ["temperature", "top_p", "min_p"]
PENALTIES = ["repetition_penalty", "presence_penalty", "frequency_penalty"]
BOOLEANS = [
    *("stream", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens", "store", "echo"),
    *("return_token_ids", "return_tokens_as_token_ids"),
]
LISTS = ["stop_token_ids", "allowed_token_ids", "bad_words"]
STRINGS = ["truncation_side", "user", "cache_salt"]
OBJECTS = ["stream_options", "metadata", "logit_bias", "response_format", "structured_outputs"]


@pytest.mark.parametrize("path", POSTS[:2])
class TestValues:
    def refused(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        response = post(http, path, {**GOOD[path], field: value})
        assert check_error(response, 400)["param"].startswith(field)

    @pytest.mark.parametrize("field", INTEGERS)
    @pytest.mark.parametrize("value", [-(2**63) - 1, 2**64, 10**40, 1.5, True, "1", [1], {"a": 1}])
    def test_integers(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        self.refused(http, path, field, value)

    @pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "min_tokens"])
    def test_negative_counts(self, http: httpx.Client, path: str, field: str) -> None:
        self.refused(http, path, field, -1)

    @pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "truncate_prompt_tokens"])
    def test_zero_counts(self, http: httpx.Client, path: str, field: str) -> None:
        if path != "/v1/completions" or field == "truncate_prompt_tokens":  # a completion may just read its prompt
            self.refused(http, path, field, 0)

    @pytest.mark.parametrize("field", PENALTIES)
    @pytest.mark.parametrize("value", [-2.01, 10.5, 10**400, "1", True, [], {}])
    def test_penalties(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        self.refused(http, path, field, value)

    @pytest.mark.parametrize("field", NUMBERS)
    @pytest.mark.parametrize("value", [-1, 2.5, 10**400, -(10**30), "1", True, [], {}])
    def test_numbers(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        self.refused(http, path, field, value)

    @pytest.mark.parametrize("field", ["top_p", "repetition_penalty"])
    def test_numbers_that_are_not_zero(self, http: httpx.Client, path: str, field: str) -> None:
        self.refused(http, path, field, 0)
        self.refused(http, path, field, -0.0)

    @pytest.mark.parametrize("field", BOOLEANS)
    @pytest.mark.parametrize("value", [0, 1, "true", [], {}])
    def test_booleans(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        self.refused(http, path, field, value)

    @pytest.mark.parametrize("field", STRINGS)
    @pytest.mark.parametrize("value", [0, True, [], {}, "x" * 2000, "\ud800"])
    def test_strings(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        self.refused(http, path, field, value)

    @pytest.mark.parametrize("field", OBJECTS)
    @pytest.mark.parametrize("value", [0, True, [], "x"])
    def test_objects(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        self.refused(http, path, field, value)

    @pytest.mark.parametrize("value", ["x", 1, {}, [-1], [1.0], [True], [257], [None]])
    @pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids"])
    def test_lists_of_ids(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        self.refused(http, path, field, value)

    def test_too_many_stop_ids(self, http: httpx.Client, path: str) -> None:
        self.refused(http, path, "stop_token_ids", [1] * 129)

    def test_nothing_allowed(self, http: httpx.Client, path: str) -> None:
        self.refused(http, path, "allowed_token_ids", [])

    @pytest.mark.parametrize("value", ["a", 1, {}, [1], [None], [""], [" "], ["a"] * 129, ["a" * 257], ["\udfff"]])
    def test_bad_words(self, http: httpx.Client, path: str, value: Any) -> None:
        self.refused(http, path, "bad_words", value)

    @pytest.mark.parametrize(
        "value",
        [
            *({"a": 1}, {"": 1}, {"-1": 1}, {"01": 1}, {"1.0": 1}, {" 1": 1}, {"\u0661": 1}, {"1" * 5000: 1}),
            *({"257": 1}, {str(2**31): 1}, {"9" * 10: 1}),
            *({"1": 100.5}, {"1": -101}, {"1": "1"}, {"1": True}, {"1": None}, {"1": [1]}),
            {str(number): 0 for number in range(1025)},
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_logit_bias(self, http: httpx.Client, path: str, value: Any) -> None:
        self.refused(http, path, "logit_bias", value)

    @pytest.mark.parametrize("value", [-1001, 1001])
    def test_priorities(self, http: httpx.Client, path: str, value: int) -> None:
        self.refused(http, path, "priority", value)

    @pytest.mark.parametrize("value", [-2, 21, 10**10])
    @pytest.mark.parametrize("field", ["logprobs", "top_logprobs", "prompt_logprobs"])
    def test_numbers_of_log_probabilities(self, http: httpx.Client, path: str, field: str, value: int) -> None:
        self.refused(http, path, field, value)

    def test_log_probabilities_of_the_prompt_in_a_stream(self, http: httpx.Client, path: str) -> None:
        error = check_error(post(http, path, {**GOOD[path], "stream": True, "prompt_logprobs": 0}), 400)
        assert error["param"] == "prompt_logprobs"

    def test_an_empty_salt(self, http: httpx.Client, path: str) -> None:
        self.refused(http, path, "cache_salt", "")

    @pytest.mark.parametrize("value", ["", [""], ["a", ""], 1, [1], [None], {}, ["a"] * 17, "a" * 257, "\udfff"])
    def test_stop(self, http: httpx.Client, path: str, value: Any) -> None:
        self.refused(http, path, "stop", value)

    @pytest.mark.parametrize("value", [{"include_usage": 1}, {"include_usage": "x"}, {"continuous_usage_stats": []}])
    def test_stream_options(self, http: httpx.Client, path: str, value: Any) -> None:
        response = post(http, path, {**GOOD[path], "stream": True, "stream_options": value})
        assert check_error(response, 400)["param"].startswith("stream_options.")

    def test_stream_options_without_stream(self, http: httpx.Client, path: str) -> None:
        self.refused(http, path, "stream_options", {"include_usage": True})

    def test_min_tokens_above_max_tokens(self, http: httpx.Client, path: str) -> None:
        response = post(http, path, {**GOOD[path], "max_tokens": 3, "min_tokens": 4})
        assert check_error(response, 400)["param"] == "min_tokens"

    def test_two_names_that_differ(self, http: httpx.Client, path: str) -> None:
        response = post(http, path, {**GOOD[path], "max_tokens": 3, "max_completion_tokens": 4})
        assert check_error(response, 400)["param"] == "max_completion_tokens"

    @pytest.mark.parametrize("value", [10**6, 2**63, -1, 0, True, 1.5, "1"])
    def test_several_choices(self, http: httpx.Client, path: str, value: Any) -> None:
        self.refused(http, path, "n", value)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("logits_processors", ["x"]),
            ("use_beam_search", True),
            ("length_penalty", 2),
            ("spaces_between_special_tokens", False),
            ("guided_whitespace_pattern", " "),
            ("guided_decoding_backend", "outlines"),
            ("top_n_sigma", 1.0),
            ("xtc_probability", 0.5),
            ("dry_multiplier", 0.8),
            ("stop_regex", "a+"),
            ("n_predict", 5),
            ("typical_p", 0.5),
            ("mirostat", 2),
            ("repeat_penalty", 1.1),
        ],
    )
    def test_fields_that_are_not_offered(self, http: httpx.Client, path: str, field: str, value: Any) -> None:
        error = check_error(post(http, path, {**GOOD[path], field: value}), 400, "unsupported_parameter")
        assert error["param"] == field

    def test_fields_of_other_servers_that_ask_for_nothing(self, http: httpx.Client, path: str) -> None:
        nothing = {"typical_p": 1.0, "mirostat": 0, "repeat_penalty": 1, "no_stop_trim": False, "regex": None}
        assert post(http, path, {**GOOD[path], **nothing}).status_code == 200


class TestPrompt:
    @pytest.mark.parametrize(
        "prompt",
        [
            None,
            "",
            [],
            [[]],
            [""],
            ["a", ""],
            [[64], []],
            ["a", 1],
            [1, "a"],
            [[64], "a"],
            [True],
            [1.0],
            [None],
            [-1],
            [257],
            [2**64],
            [[-1]],
            [[[1]]],
            1,
            True,
            {},
            {"a": 1},
            "\ud800",
            ["a"] * 129,
        ],
        ids=repr,
    )
    def test_bad_prompts(self, http: httpx.Client, prompt: Any) -> None:
        error = check_error(post(http, "/v1/completions", {"prompt": prompt}), 400, "invalid_value")
        assert error["param"] == "prompt"

    def test_missing_prompt(self, http: httpx.Client) -> None:
        assert check_error(post(http, "/v1/completions", {}), 400)["param"] == "prompt"

    @pytest.mark.parametrize("prompt", [" ", "\n", "\x00", "\x1b[31mred\r\n", "<|endoftext|>"])
    def test_odd_prompts_are_prompts(self, http: httpx.Client, prompt: str) -> None:
        assert post(http, "/v1/completions", {"prompt": prompt}).status_code == 200

    @pytest.mark.parametrize("stream", [True, False])
    def test_context_too_long_gives_the_numbers(self, http: httpx.Client, stream: bool) -> None:
        body = {"prompt": "a" * 250, "max_tokens": 7, "stream": stream}
        error = check_error(post(http, "/v1/completions", body), 400, "context_length_exceeded")
        assert "This model's maximum context length is 256 tokens" in error["message"]  # client libraries look for
        assert "prompt is too long" in error["message"]  # these two
        assert "has 250 tokens, and max_tokens = 7 are" in error["message"]
        assert "Send at most 249 prompt tokens" in error["message"]
        assert "or max_tokens of at most 6." in error["message"]
        assert error["param"] == "prompt"
        body["max_tokens"] = 6
        assert post(http, "/v1/completions", body).status_code == 200

    def test_prompt_that_fills_the_context(self, http: httpx.Client) -> None:
        check_error(post(http, "/v1/completions", {"prompt": "a" * 256}), 400, "context_length_exceeded")
        check_error(post(http, "/v1/completions", {"prompt": [64] * 300}), 400, "context_length_exceeded")

    @pytest.mark.parametrize(
        ("prompt_tokens", "max_tokens", "advice"),
        [
            (3, 256, "Send max_tokens of at most 253."),
            (256, 1, "Send at most 255 prompt tokens, which truncate_prompt_tokens cuts a prompt to."),
            (300, 256, "Send a shorter prompt and a smaller max_tokens, together at most 256."),
            (257, 0, "Send at most 256 prompt tokens, which"),
            (256, None, "at least 1 token is to be generated after it. Send at most 255 prompt tokens, which"),
        ],
    )
    def test_the_advice_can_be_followed(
        self, http: httpx.Client, prompt_tokens: int, max_tokens: int | None, advice: str
    ) -> None:
        body = {"prompt": [64] * prompt_tokens, "max_tokens": max_tokens}
        error = check_error(post(http, "/v1/completions", body), 400, "context_length_exceeded")
        assert advice in error["message"]

    def test_chat_too_long(self, http: httpx.Client) -> None:
        messages = [{"role": "user", "content": "a" * 300}]
        error = check_error(post(http, "/v1/chat/completions", {"messages": messages}), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")

    def test_hopeless_prompts_are_not_tokenized(
        self, http: httpx.Client, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(FakeBackend, "encode", None)
        text = "a" * 10_000
        error = check_error(post(http, "/v1/completions", {"prompt": ["a", text]}), 400, "context_length_exceeded")
        assert "This model's maximum context length is 256 tokens, and the prompt is too long" in error["message"]
        body = {"messages": [{"role": "user", "content": text}]}
        check_error(post(http, "/v1/chat/completions", body), 400, "context_length_exceeded")

    def test_text_without_tokens(
        self, http: httpx.Client, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def nothing(*_: Any) -> list[int]:
            return []

        monkeypatch.setattr(FakeBackend, "encode", nothing)
        assert check_error(post(http, "/v1/completions", {"prompt": "\u200b"}), 400)["param"] == "prompt"

    def test_many_odd_values_make_a_small_response(self, http: httpx.Client) -> None:
        body = {"prompt": "a", "stop": ["\ud800" * 200] * 16, "x" * 5000: 1, **{f"f{i}": 1 for i in range(5000)}}
        check_error(post(http, "/v1/completions", body), 400)
        del body["stop"]
        response = post(http, "/v1/completions", body)
        assert response.status_code == 200
        assert len(response.headers["x-mpt-ignored-fields"]) < 200


class TestReadiness:
    def test_how_far_a_model_is_that_loads(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.state = Readiness(ready=False, reason="It loads.", stage="loading weights", progress=0.42)
        body = http.get("/ready").json()
        assert body["loading"] == {"stage": "loading weights", "progress": 0.42}
        assert (body["error"]["message"], body["error"]["code"]) == ("It loads.", "loading")
        backend.state = Readiness(ready=False)
        assert http.get("/ready").json().keys() == {"error"}

    @pytest.mark.parametrize("path", [*POSTS, "/ready"])
    @pytest.mark.parametrize("code", ["loading", "overloaded", "shutting_down"])
    def test_503_says_when_to_ask_again(self, http: httpx.Client, backend: FakeBackend, path: str, code: str) -> None:
        backend.state = Readiness(ready=False, reason="Not now.", code=code, retry_after_s=7)
        response = http.get(path) if path == "/ready" else post(http, path, GOOD[path])
        assert check_error(response, 503, code)["message"] == "Not now."
        assert response.headers["retry-after"] == "7"

    @pytest.mark.parametrize("path", POSTS[:2])
    def test_nothing_is_too_long_before_the_context_is_known(
        self, http: httpx.Client, backend: FakeBackend, path: str
    ) -> None:
        backend.state = Readiness(ready=False)
        backend.model = replace(backend.model, max_model_len=0)
        check_error(post(http, path, GOOD[path]), 503, "loading")
        assert http.get("/v1/models").json()["data"][0]["max_model_len"] is None

    def test_health_and_models_respond_all_the_same(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.state = Readiness(ready=False)
        assert http.get("/health").status_code == 200
        assert http.get("/v1/models").status_code == 200

    def test_official_client_retries(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        server.backend.state = Readiness(ready=False, retry_after_s=1)
        answered: list[float] = []
        sleep, own_thread = time.sleep, threading.current_thread()

        def back_up(seconds: float) -> None:
            if threading.current_thread() is not own_thread:
                sleep(seconds)
                return
            answered.append(seconds)
            server.backend.state = Readiness(ready=True)

        monkeypatch.setattr("time.sleep", back_up)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=1) as client:
            assert client.completions.create(model="mpt-echo", prompt="a").choices[0].text == "a"
        assert answered == [1.0]


@pytest.mark.parametrize("seconds", [0, 0.2, 5, 1000])
def test_retry_after_is_what_clients_honour(seconds: float) -> None:
    assert 1 <= int(NotReadyError("Full.", retry_after_s=seconds).headers["retry-after"]) <= 120


def test_every_kind_of_error_is_listed() -> None:
    assert len({(kind.status, kind.code) for kind in ERROR_KINDS}) == len(ERROR_KINDS)


@pytest.mark.parametrize("char", ["a", "é", "🎉", "\x00", '"'])
@pytest.mark.parametrize("path", POSTS)
def test_error_bodies_stay_small(path: str, char: str) -> None:
    scope = {"path": path, "headers": [], "state": {"request_id": "x" * 128}}
    assert len(error_response(InvalidValueError(char * 100_000), scope).body) <= 4096


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["a", "user", "system", "text", "json_object", "mpt-echo"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [
        *(*INTEGERS, *NUMBERS, *BOOLEANS, *LISTS, *STRINGS, *OBJECTS),
        *("prompt", "messages", "model", "stop", "n", "tokens", "tools", "tool_choice"),
        *("input", "instructions", "text", "include", "system", "stop_sequences", "output_config"),
        *("add_generation_prompt", "continue_final_message", "response_format", "chat_template", "logprobs"),
        *(*PENALTIES, "guided_json", "guided_choice"),
    ]
)


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=40)
@given(fields=st.dictionaries(NAMES | st.text(max_size=5), JSON, max_size=6), good=st.booleans())
def test_any_json_gets_a_response_or_an_error_of_the_contract(
    shared_http: httpx.Client, path: str, fields: dict[str, Any], good: bool
) -> None:
    response = post(shared_http, path, {**GOOD[path], **fields} if good else fields)
    if response.status_code != 200:
        check_error(response)
        assert response.status_code < 500


@pytest.mark.parametrize(
    ("error", "status", "param"),
    [
        (EngineClosedError("closed"), 503, None),
        (BusyError("too many grammars"), 503, None),
        (ChatTemplateError("roles must alternate"), 400, "messages"),
        (RequestError("the prompt is empty"), 400, None),
        (RuntimeError("a secret"), 500, None),
        (HTTPException(405, headers={"Allow": "GET"}), 405, None),
        (HTTPException(404), 404, None),
    ],
)
def test_errors_of_other_packages_have_their_status(error: Exception, status: int, param: str | None) -> None:
    found = as_api_error(error)
    assert (found.status, found.param) == (status, param)
    assert "secret" not in found.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the model's file /srv/models/mpt/x.jinja is not UTF-8", "The model's file ... is not UTF-8."),
        ('failed in File "/usr/lib/python/x.py", line 3', "Failed in ..., line 3."),
        ("<function f at 0x7f00aa12> is not text", "<function f...> is not text."),
        ("use /v1/completions, /tokenize or a/b/c", "Use /v1/completions, /tokenize or a/b/c."),
        ("see https://json-schema.org/draft/2020", "See https://json-schema.org/draft/2020."),
    ],
)
def test_messages_hold_no_paths_and_addresses(text: str, message: str) -> None:
    assert as_api_error(RequestError(text)).message == message
