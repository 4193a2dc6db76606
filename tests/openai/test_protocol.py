"""The models of requests and responses: their JSON Schemas, and that they say what the server does."""

from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend
from jsonschema import Draft202012Validator
from pydantic import ConfigDict, TypeAdapter, with_config
from test_completions import stream
from test_errors import BOOLEANS, GOOD, INTEGERS, NUMBERS, OBJECTS, PENALTIES, STRINGS, check_error, post
from test_tools import CALL, TOOLS

from mpt_serve.openai.protocol import anthropic_bodies, response_bodies, responses
from mpt_serve.openai.protocol.anthropic_request import CountTokensRequest, MessagesRequest
from mpt_serve.openai.protocol.chat import ChatCompletionRequest
from mpt_serve.openai.protocol.completions import CompletionRequest
from mpt_serve.openai.protocol.embeddings import EmbeddingRequest
from mpt_serve.openai.protocol.request_model import RequestModel, json_schema
from mpt_serve.openai.protocol.response_request import ResponseRequest
from mpt_serve.openai.protocol.schema_words import subschema
from mpt_serve.openai.protocol.scoring import RerankRequest, ScoreRequest
from mpt_serve.openai.protocol.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeRequest

REQUESTS: dict[str, type[RequestModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatCompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/score": ScoreRequest,
    "/v1/rerank": RerankRequest,
    "/v1/responses": ResponseRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
}
MODELS = [*REQUESTS.values(), TokenizeChatRequest]
BODIES = (responses, response_bodies, anthropic_bodies)
REPORTS = {"prompt_logprobs": 1, "return_token_ids": True}
USAGE = {"include_usage": True, "continuous_usage_stats": True}


def check_type(kind: Any, body: Any) -> None:
    """Check a body against a type of the protocol, members that the type does not have included."""
    strict = ConfigDict(extra="forbid", strict=True)
    for nested in (value for module in BODIES for value in vars(module).values()):
        if isinstance(nested, type) and issubclass(nested, dict):
            with_config(strict)(nested)
    TypeAdapter(kind).validate_python(body)


class TestSchemas:
    @pytest.mark.parametrize("model", MODELS)
    def test_they_are_schemas(self, model: type[RequestModel]) -> None:
        Draft202012Validator.check_schema(json_schema(model))

    @pytest.mark.parametrize("model", MODELS)
    def test_every_field_of_a_request_has_a_description(self, model: type[RequestModel]) -> None:
        assert [name for name, field in json_schema(model)["properties"].items() if "description" not in field] == []

    @pytest.mark.parametrize("path", REQUESTS)
    def test_good_requests_are_valid(self, path: str) -> None:
        Draft202012Validator(json_schema(REQUESTS[path])).validate(GOOD[path])

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
    @pytest.mark.parametrize("field", [*INTEGERS, *NUMBERS, *PENALTIES, *BOOLEANS, *STRINGS, *OBJECTS, "stop"])
    def test_they_accept_what_the_server_accepts(self, http: httpx.Client, path: str, field: str) -> None:
        validator = Draft202012Validator(json_schema(REQUESTS[path]))
        values = [None, True, -2, -1, 0, 1, 0.5, 3, 500, 10**12, 2**70, "", "left", "x" * 2000, [], ["a"], [1], {}]
        if field not in REQUESTS[path].field_order():
            return
        for value in [*values, {"type": "text"}, {"type": "x"}, {"1": 1}, {"01": 1}, {"regex": "a"}, {"x": 1}]:
            body = {**GOOD[path], field: value}
            model = REQUESTS[path]
            accepted = post(http, path, body).status_code == 200
            assert accepted <= validator.is_valid(body), value
            if field in (*NUMBERS, *PENALTIES, *BOOLEANS, *STRINGS, "top_k", "seed", "priority", "stop"):
                assert accepted == validator.is_valid(body), (model, value)


class TestResponses:
    @pytest.mark.parametrize("fields", [{}, {"logprobs": 2, "echo": True, **REPORTS}])
    def test_completion(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        response = post(http, "/v1/completions", {"prompt": ["ab", "c"], "n": 2, **fields})
        check_type(responses.Completion, response.json())

    @pytest.mark.parametrize("fields", [{"logprobs": True, "top_logprobs": 2, **REPORTS}, {}])
    def test_chat(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        response = post(http, "/v1/chat/completions", {**GOOD["/v1/chat/completions"], "n": 2, **fields})
        check_type(responses.ChatCompletion, response.json())

    def test_chat_with_calls(self, http: httpx.Client, backend: FakeBackend) -> None:
        backend.outputs = [list(f"Hi{CALL}\n{CALL}".encode())]
        body = {**GOOD["/v1/chat/completions"], "tools": TOOLS}
        check_type(responses.ChatCompletion, post(http, "/v1/chat/completions", body).json())
        for chunk in stream(http, "/v1/chat/completions", **body):
            check_type(responses.ChatCompletionChunk, chunk)

    @pytest.mark.parametrize("fields", [{}, {"logprobs": 2, "return_token_ids": True, "stream_options": USAGE}])
    def test_completion_chunks(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        for chunk in stream(http, prompt="ab", **fields):
            check_type(responses.CompletionChunk, chunk)

    @pytest.mark.parametrize("fields", [{}, {"logprobs": True, "return_token_ids": True, "stream_options": USAGE}])
    def test_chat_chunks(self, http: httpx.Client, fields: dict[str, Any]) -> None:
        for chunk in stream(http, "/v1/chat/completions", **GOOD["/v1/chat/completions"], **fields):
            check_type(responses.ChatCompletionChunk, chunk)

    @pytest.mark.parametrize(
        ("method", "path", "kind"),
        [
            ("GET", "/v1/models", responses.ModelList),
            ("GET", "/v1/models/mpt-echo", responses.ModelBody),
            ("GET", "/health", responses.Status),
            ("GET", "/ready", responses.Status),
            ("GET", "/version", responses.Version),
            ("POST", "/tokenize", responses.TokenizeResponse),
            ("POST", "/detokenize", responses.DetokenizeResponse),
            ("POST", "/v1/embeddings", responses.Embeddings),
            ("POST", "/v1/score", responses.Scores),
            ("POST", "/v1/rerank", responses.Rerank),
            ("POST", "/v1/responses", response_bodies.ResponseBody),
            ("POST", "/v1/messages", anthropic_bodies.MessageBody),
            ("POST", "/v1/messages/count_tokens", anthropic_bodies.TokenCount),
            ("GET", "/v1/messages", anthropic_bodies.AnthropicError),
            ("GET", "/nowhere", responses.ErrorBody),
        ],
    )
    def test_others(self, http: httpx.Client, method: str, path: str, kind: Any) -> None:
        check_type(kind, http.request(method, path, json=GOOD.get(path)).json())

    def test_a_member_too_many_is_found(self) -> None:
        with pytest.raises(ValueError, match="Extra inputs"):
            check_type(responses.Status, {"status": "ok", "more": 1})


class TestErrors:
    @pytest.mark.parametrize(
        ("body", "param", "message"),
        [
            ({"temperature": "hot"}, "temperature", "'temperature' must be a number from 0 to 2; got a string."),
            ({"temperature": True}, "temperature", "'temperature' must be a number from 0 to 2; got a boolean."),
            ({"top_p": 0}, "top_p", "'top_p' must be a number above 0, up to 1; got another number."),
            ({"n": 1.0}, "n", "'n' must be an integer from 1 to 128; got another number."),
            ({"seed": 2**63}, "seed", "'seed' must be an integer from -2^63 to 2^63 - 1; got another number."),
            (
                {"truncation_side": "up"},
                "truncation_side",
                '\'truncation_side\' must be "left" or "right"; got another',
            ),
            ({"user": "x" * 1025}, "user", "'user' must be a string of at most 1024 characters; got 1025 characters."),
            ({"user": "\ud800"}, "user", "'user' contains half of a surrogate pair, which is not text."),
            ({"stop": ""}, "stop", "or an array of at most 16 of them; got 0 characters."),
            ({"stop": ["a", ""]}, "stop[1]", "'stop[1]' must be a non-empty string of at most 256 characters; got 0"),
            ({"stop_token_ids": [0, -1]}, "stop_token_ids[1]", "must be an integer from 0 to 2^31 - 1; got another"),
            ({"stop_token_ids": [0] * 200}, "stop_token_ids", "each an integer from 0 to 2^31 - 1; got 200 items."),
            ({"logit_bias": {"7": True}}, "logit_bias.7", "must be a number from -100 to 100; got a boolean."),
            ({"logit_bias": {"x": 1}}, "logit_bias", 'got a member whose name is not a token id: "x".'),
            ({"logit_bias": {"1": 1, "x" * 40: 1}}, "logit_bias", "not a token id: one of 40 characters."),
            ({"logit_bias": {"300": 1}}, "logit_bias", "must have ids of the tokenizer, from 0 to 256; got 300."),
            ({"metadata": 5}, "metadata", "'metadata' must be an object; got another number."),
            ({"best_of": 2, "n": 3}, "best_of", "'best_of' must not be below 'n', here 3."),
            ({"n": 0, "temperature": 9, "tools": 1}, "n", "'n' must be an integer from 1 to 128; got another number."),
        ],
    )
    def test_messages_name_the_field_what_came_and_what_is_accepted(
        self, http: httpx.Client, body: dict[str, Any], param: str, message: str
    ) -> None:
        error = check_error(post(http, "/v1/completions", {"prompt": "a", **body}), 400, "invalid_value")
        assert error["param"] == param
        assert message in error["message"]

    def test_required_fields(self, http: httpx.Client) -> None:
        error = check_error(post(http, "/v1/chat/completions", {"messages": [{"role": "user"}]}), 400)
        assert error["message"].startswith("'messages[0].content' is required: a string or an array of parts")

    @pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
    def test_unpaired_surrogates_are_refused_in_every_text(self, http: httpx.Client, text: str) -> None:
        assert check_error(post(http, "/tokenize", {"prompt": text}), 400)["param"] == "prompt"
        message = {"role": "user", "content": "a", "refusal": text}
        error = check_error(post(http, "/v1/chat/completions", {"messages": [message]}), 400)
        assert error["param"] == "messages[0].refusal"
        part = {"role": "user", "content": [{"type": "text", "text": text}]}
        error = check_error(post(http, "/tokenize", {"messages": [part]}), 400)
        assert error["param"] == "messages[0].content[0].text"


def test_parts_of_a_value_have_the_schemas_of_their_places() -> None:
    text = {"type": "string"}
    root = {"$defs": {"a": {"properties": {"b": text}}}}
    assert subschema({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}, root, "b") == text
    assert subschema({"items": text}, root, 3) == text
    assert subschema({"patternProperties": {".*": text}}, root, "any") == text
    assert subschema(text, root, "b") == {}
