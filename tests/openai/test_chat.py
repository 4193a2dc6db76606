from dataclasses import replace
from typing import Any, ClassVar

import httpx
import openai
import pytest
from fake_backend import FakeBackend
from test_completions import events

PATH = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


def chat(http: httpx.Client, messages: Any = HI, **body: Any) -> httpx.Response:
    return http.post(PATH, json={"messages": messages, **body})


def prompt_of(http: httpx.Client, messages: Any, **body: Any) -> str:
    """Return the prompt that the backend was given; it echoes it."""
    response = chat(http, messages, **body)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_whole_response_has_exactly_the_documented_shape(http: httpx.Client) -> None:
    answer = chat(http).json()
    assert answer.pop("id").startswith("chatcmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "chat.completion",
        "model": "mpt-echo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "[user]Hi[assistant]", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "token_ids": None,
            }
        ],
        "usage": {
            "prompt_tokens": 19,
            "completion_tokens": 20,
            "total_tokens": 39,
            "prompt_tokens_details": {"cached_tokens": 9},
        },
        "prompt_logprobs": None,
        "prompt_token_ids": None,
    }


def test_stream_has_exactly_the_documented_shape(http: httpx.Client, backend: FakeBackend) -> None:
    backend.ids_per_delta = 19
    chunks = events(chat(http, stream=True, stream_options={"include_usage": True}))
    head = {"id": chunks[0]["id"], "created": chunks[0]["created"], "object": "chat.completion.chunk"}
    head |= {"model": "mpt-echo"}

    def choice(delta: dict[str, Any], **last: Any) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **last}

    text = {"content": "[user]Hi[assistant]"}
    end = {"finish_reason": "stop", "stop_reason": None}
    opening = {**head, "choices": [choice({"role": "assistant", "content": ""})], "usage": None}
    total = {**head, "choices": [], "usage": chunks[-1]["usage"]}
    apart = [choice(text), choice({}, **end)]
    together = [choice(text, **end)]
    assert total["usage"]["completion_tokens"] == 20
    assert chunks in (
        [opening, *({**head, "choices": [c], "usage": None} for c in apart), total],
        [opening, *({**head, "choices": [c], "usage": None} for c in together), total],
    )


def test_last_chunk_carries_text_and_finish_reason_together(http: httpx.Client) -> None:
    last = events(chat(http, stream=True, max_tokens=3))[-1]["choices"][0]
    assert last["finish_reason"] == "length"
    assert last["delta"]["content"].endswith("s")


def test_max_tokens_is_what_the_context_leaves(http: httpx.Client, backend: FakeBackend) -> None:
    chat(http)
    assert backend.started[0][1].max_tokens == 256 - 19


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "developer", "content": "Be"}, *HI], "[system]Be[user]Hi[assistant]"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "[user]a\nb"),
        ([{"role": "user", "content": "", "name": "me", "tool_calls": None}], "[user][assistant]"),
        ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]}], "[assistant]No[assistant]"),
        ([*HI, {"role": "assistant", "content": "x", "refusal": None, "tool_calls": []}], "[user]Hi[assistant]x"),
    ],
)
def test_messages(http: httpx.Client, messages: Any, prompt: str) -> None:
    assert prompt_of(http, messages).startswith(prompt)


def test_final_message_is_continued(http: httpx.Client) -> None:
    messages = [*HI, {"role": "assistant", "content": "Hel"}]
    assert prompt_of(http, messages, continue_final_message=True) == "[user]Hi[assistant]Hel"
    assert prompt_of(http, HI, add_generation_prompt=False) == "[user]Hi"


def test_conversation_is_cut_only_on_request(http: httpx.Client) -> None:
    assert prompt_of(http, HI, truncate_prompt_tokens=11) == "[assistant]"


def test_a_conversation_that_is_cut_to_what_fits_leaves_a_quarter_to_the_output(
    http: httpx.Client, backend: FakeBackend
) -> None:
    answer = chat(http, [{"role": "user", "content": "a" * 400}], truncate_prompt_tokens=-1).json()
    assert (answer["usage"]["prompt_tokens"], backend.started[0][1].max_tokens) == (192, 64)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "function", "content": "Hi"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}]},
            "messages[0].content[0].type",
        ),
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {"continue_final_message": True, "messages": [*HI, {"role": "assistant", "content": " "}]},
            "continue_final_message",
        ),
        (
            {
                "continue_final_message": True,
                "add_generation_prompt": True,
                "messages": [*HI, {"role": "assistant", "content": "x"}],
            },
            "continue_final_message",
        ),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal"}]}]}, "messages[0].content[0].refusal"),
        ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages[0].content[0].type"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"parse_special_tokens": True}, "parse_special_tokens"),
    ],
)
def test_bad_conversations_are_refused_by_name(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    response = http.post(PATH, json={"messages": HI, **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        {"functions": [], "function_call": "none"},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False},
        {"response_format": {"type": "text"}, "logprobs": False, "top_logprobs": 0, "n": 1},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "modalities": ["text"]},
        {"chat_template": None, "chat_template_kwargs": {}},
    ],
)
def test_neutral_values_pass(http: httpx.Client, body: dict[str, Any]) -> None:
    response = chat(http, **body)
    assert response.status_code == 200, response.text
    assert "x-mpt-ignored-fields" not in response.headers


def test_unknown_fields_of_messages_are_named(http: httpx.Client) -> None:
    response = chat(http, [{"role": "user", "content": "a", "mood": "good"}], topp=1)
    assert response.headers["x-mpt-ignored-fields"] == "topp, messages[0].mood"


def test_model_without_template_names_the_setting(http: httpx.Client, backend: FakeBackend) -> None:
    backend.model = replace(backend.model, chat_refusal="it has no chat template. Set 'chat_template' to 'chatml'")
    response = chat(http)
    assert response.status_code == 400
    assert "'chat_template'" in response.json()["error"]["message"]


def test_official_client(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="mpt-echo", messages=[{"role": "user", "content": "Hi"}])
    assert answer.choices[0].message.content == "[user]Hi[assistant]"


def test_official_client_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="mpt-echo", messages=[{"role": "user", "content": "Hi"}]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "[user]Hi[assistant]"
    assert final.choices[0].finish_reason == "stop"


class TestEcho:
    MESSAGES: ClassVar[Any] = [*HI, {"role": "assistant", "content": "Hel"}]

    def test_the_message_begins_with_the_assistants_last_one(self, http: httpx.Client) -> None:
        body = {"continue_final_message": True, "logprobs": True, "n": 2, "return_token_ids": True}
        plain = chat(http, self.MESSAGES, **body).json()["choices"]
        choices = chat(http, self.MESSAGES, echo=True, **body).json()["choices"]
        for choice, own in zip(choices, plain, strict=True):
            assert choice["message"]["content"] == "Hel" + own["message"]["content"]
            assert (choice["logprobs"], choice["token_ids"]) == (own["logprobs"], own["token_ids"])

    def test_a_stream_sends_it_after_the_role(self, http: httpx.Client) -> None:
        body = {"continue_final_message": True, "echo": True}
        whole = chat(http, self.MESSAGES, **body).json()["choices"][0]["message"]["content"]
        deltas = [chunk["choices"][0]["delta"] for chunk in events(chat(http, self.MESSAGES, stream=True, **body))]
        assert deltas[:2] == [{"role": "assistant", "content": ""}, {"content": "Hel"}]
        assert "".join(delta.get("content", "") for delta in deltas) == whole

    def test_a_question_is_not_repeated(self, http: httpx.Client) -> None:
        assert prompt_of(http, HI, echo=True) == "[user]Hi[assistant]"


def test_the_tokenizers_special_tokens_come_on_request(http: httpx.Client) -> None:
    assert prompt_of(http, HI, add_special_tokens=True) == "^[user]Hi[assistant]"
    assert prompt_of(http, HI, add_special_tokens=False) == "[user]Hi[assistant]"


def test_the_role_comes_with_no_completion_tokens(http: httpx.Client, backend: FakeBackend) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    opening, *chunks, total = events(chat(http, stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert opening["usage"]["completion_tokens"] == 0
    assert opening["usage"]["prompt_tokens"] == total["usage"]["prompt_tokens"] == 19
    assert counts == sorted(counts)
    assert 0 < counts[0] <= counts[-1] == total["usage"]["completion_tokens"] == 20
