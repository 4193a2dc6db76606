import json
from typing import Any

import httpx
import openai
import pytest
from fake_backend import EOS, FakeBackend


def complete(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def events(response: httpx.Response) -> list[Any]:
    """Return the JSON of each event, having checked the frame around them."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2] if not block.startswith(":")]


def stream(http: httpx.Client, path: str = "/v1/completions", **body: Any) -> list[Any]:
    return events(http.post(path, json={"stream": True, **body}))


def text_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == index)


def test_whole_response_has_exactly_the_documented_shape(http: httpx.Client) -> None:
    answer = complete(http, model="mpt-echo", prompt="abcd")
    assert answer.pop("id").startswith("cmpl-")
    assert isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "text_completion",
        "model": "mpt-echo",
        "choices": [
            {
                "index": 0,
                "text": "abcd",
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "token_ids": None,
            }
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 5,
            "total_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


def test_stream_has_exactly_the_documented_shape(http: httpx.Client) -> None:
    chunks = stream(http, prompt="ab", max_tokens=2)
    ids = {chunk.pop("id") for chunk in chunks}
    created = {chunk.pop("created") for chunk in chunks}
    assert (len(ids), len(created)) == (1, 1)
    head = {"object": "text_completion", "model": "mpt-echo"}
    first = {"index": 0, "text": "a", "logprobs": None, "finish_reason": None}
    last = {"index": 0, "text": "b", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    whole = {**last, "text": "ab"}
    # Tokens that come while the client is behind share a chunk.
    assert chunks in ([{**head, "choices": [first]}, {**head, "choices": [last]}], [{**head, "choices": [whole]}])


@pytest.mark.parametrize(
    "prompt",
    ["ab", ["ab", "c"], [64, 65], [[64], [65, 66]]],
    ids=["text", "texts", "ids", "lists of ids"],
)
def test_four_shapes_of_prompt(http: httpx.Client, backend: FakeBackend, prompt: Any) -> None:
    prompts = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    texts = [item if isinstance(item, str) else backend.tokenizer.decode(item) for item in prompts]
    answer = complete(http, prompt=prompt)
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    chunks = stream(http, prompt=prompt)
    assert [text_of(chunks, index) for index in range(len(texts))] == texts


def test_usage_sums_over_prompts(http: httpx.Client) -> None:
    usage = complete(http, prompt=["abcd", "ef"])["usage"]
    assert usage == {
        "prompt_tokens": 6,
        "completion_tokens": 8,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 3},
    }


def test_many_prompts_of_one_request(http: httpx.Client, backend: FakeBackend) -> None:
    prompts = [f"prompt {i}" for i in range(128)]
    assert [choice["text"] for choice in complete(http, prompt=prompts)["choices"]] == prompts
    assert len({request_id for request_id, _ in backend.started}) == 128


@pytest.mark.parametrize("ids_per_delta", [1, 2, 5, 100])
def test_characters_stay_whole(http: httpx.Client, backend: FakeBackend, ids_per_delta: int) -> None:
    backend.ids_per_delta = ids_per_delta
    text = "naïve 日本 🎉!"
    chunks = stream(http, prompt=text, max_tokens=100)
    assert text_of(chunks) == text
    assert all("\ufffd" not in chunk["choices"][0]["text"] for chunk in chunks)
    assert all(chunk["choices"][0]["text"] for chunk in chunks[:-1])


def test_character_cut_by_max_tokens_shows_as_replacement(http: httpx.Client) -> None:
    assert complete(http, prompt="a🎉", max_tokens=3)["choices"][0]["text"] == "a\ufffd"
    assert text_of(stream(http, prompt="a🎉", max_tokens=3)) == "a\ufffd"


@pytest.mark.parametrize("ids_per_delta", [1, 3, 100])
class TestStopStrings:
    @pytest.fixture(autouse=True)
    def chunked(self, backend: FakeBackend, ids_per_delta: int) -> None:
        backend.ids_per_delta = ids_per_delta

    @pytest.mark.parametrize(
        ("fields", "text", "reason"),
        [
            ({"stop": "cd"}, "ab", "cd"),
            ({"stop": ["zz", "cd", "bc"]}, "a", "bc"),
            ({"stop": "cd", "include_stop_str_in_output": True}, "abcd", "cd"),
            ({"stop": "é日"}, "abcdef", "é日"),
            ({"stop": "cd", "min_tokens": 4}, "abcdefé日g", None),
            ({"stop": "fx"}, "abcdefé日g", None),
            ({"stop": []}, "abcdefé日g", None),
            ({"stop": None}, "abcdefé日g", None),
        ],
    )
    def test_text_ends_there(self, http: httpx.Client, fields: dict[str, Any], text: str, reason: str | None) -> None:
        body = {"prompt": "abcdefé日g", "max_tokens": 50, **fields}
        [choice] = complete(http, **body)["choices"]
        assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text, "stop", reason)
        chunks = stream(http, **body)
        assert text_of(chunks) == text
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["choices"][0]["stop_reason"] == reason

    def test_each_prompt_stops_by_itself(self, http: httpx.Client) -> None:
        answer = complete(http, prompt=["ab.cd", "efg"], stop=".")
        assert [choice["text"] for choice in answer["choices"]] == ["ab", "efg"]

    def test_held_text_comes_with_the_end(self, http: httpx.Client) -> None:
        chunks = stream(http, prompt="ab#", stop="##")
        assert text_of(chunks) == "ab#"
        assert chunks[-1]["choices"][0]["text"].endswith("#")


def test_stop_string_ends_the_request_in_the_engine(http: httpx.Client, backend: FakeBackend) -> None:
    backend.hang_after = 3
    assert complete(http, prompt="abcdef", stop="c")["choices"][0]["text"] == "ab"
    assert len(backend.cancelled) == 1
    assert not backend.running


def test_stop_ids_are_left_out_unless_asked_for(http: httpx.Client, backend: FakeBackend) -> None:
    [stop_id] = backend.tokenizer.encode("c")
    [choice] = complete(http, prompt="abcd", stop_token_ids=[stop_id])["choices"]
    assert (choice["text"], choice["stop_reason"]) == ("ab", stop_id)
    [choice] = complete(http, prompt="abcd", stop_token_ids=[stop_id], include_stop_str_in_output=True)["choices"]
    assert (choice["text"], choice["stop_reason"]) == ("abc", stop_id)


def test_special_tokens_show_on_request(http: httpx.Client) -> None:
    [choice] = complete(http, prompt=[64, EOS, 65], ignore_eos=True, skip_special_tokens=False)["choices"]
    assert "<|endoftext|>" in choice["text"]
    [choice] = complete(http, prompt=[64, EOS, 65], ignore_eos=True)["choices"]
    assert "<|endoftext|>" not in choice["text"]


def test_usage_in_a_stream(http: httpx.Client, backend: FakeBackend) -> None:
    chunks = stream(http, prompt="abc", stream_options={"include_usage": True, "include_obfuscation": False})
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 7


def test_usage_so_far_in_each_chunk(http: httpx.Client, backend: FakeBackend) -> None:
    backend.pause_s = 0.002
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = stream(http, prompt="abc", stream_options=options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 4


@pytest.mark.parametrize("options", [None, {}, {"continuous_usage_stats": True}, {"include_usage": None}])
def test_no_usage_chunk_unasked(http: httpx.Client, options: Any) -> None:
    chunks = stream(http, prompt="abc", stream_options=options)
    assert all("usage" not in chunk and len(chunk["choices"]) == 1 for chunk in chunks)


def test_parameters_reach_the_engine(http: httpx.Client, backend: FakeBackend) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": -3, "min_tokens": 2}
    complete(http, prompt="abc", max_tokens=9, ignore_eos=True, stop_token_ids=[5], **sampling)
    [(_, params)] = backend.started
    assert {name: getattr(params, name) for name in sampling} == sampling
    assert (params.max_tokens, params.ignore_eos, params.stop_token_ids) == (9, True, (5,))


@pytest.mark.parametrize(
    ("field", "value", "meant"),
    [
        ("top_k", -1, ("top_k", 0)),
        ("temperature", -0.0, ("temperature", 0.0)),
        ("temperature", 1e-320, ("temperature", 0.0)),
        ("temperature", None, ("temperature", 1.0)),
        ("temperature", 1, ("temperature", 1.0)),
        ("max_tokens", None, ("max_tokens", 16)),
        ("max_completion_tokens", 3, ("max_tokens", 3)),
        ("seed", 2**63 - 1, ("seed", 2**63 - 1)),
    ],
)
def test_values_that_stand_for_others(
    http: httpx.Client, backend: FakeBackend, field: str, value: Any, meant: tuple[str, Any]
) -> None:
    complete(http, prompt="abc", **{field: value})
    [(_, params)] = backend.started
    assert getattr(params, meant[0]) == meant[1]


def test_omitted_max_tokens_is_what_the_context_leaves_when_that_is_less(
    http: httpx.Client, backend: FakeBackend
) -> None:
    complete(http, prompt="a" * 250)
    assert backend.started[0][1].max_tokens == 6


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncate_prompt_tokens": 2}, "ef"),
        ({"truncate_prompt_tokens": 2, "truncation_side": "right"}, "ab"),
        ({"truncate_prompt_tokens": 100}, "abcdef"),
        ({"truncate_prompt_tokens": -1, "max_tokens": 253}, "def"),
    ],
)
def test_prompt_is_cut_only_on_request(http: httpx.Client, fields: dict[str, Any], kept: str) -> None:
    answer = complete(http, prompt="abcdef", **fields)
    assert answer["choices"][0]["text"] == kept
    assert answer["usage"]["prompt_tokens"] == len(kept)


def test_a_prompt_that_is_cut_to_what_fits_leaves_capacity_for_the_output(
    http: httpx.Client, backend: FakeBackend
) -> None:
    answer = complete(http, prompt="a" * 400, truncate_prompt_tokens=-1)
    assert (answer["usage"]["prompt_tokens"], backend.started[0][1].max_tokens) == (240, 16)


def test_unknown_fields_are_named(http: httpx.Client) -> None:
    body = {"prompt": "a", "temperatur": 1, "x\r\ny": 1, "stream_options": None}
    response = http.post("/v1/completions", json=body)
    assert response.headers["x-mpt-ignored-fields"] == "temperatur, ..."
    response = http.post(
        "/v1/completions", json={"prompt": "a", "stream": True, "nonsense": 1, "stream_options": {"other": 1}}
    )
    assert response.headers["x-mpt-ignored-fields"] == "nonsense, stream_options.other"


def test_known_fields_are_not_named(http: httpx.Client) -> None:
    response = http.post("/v1/completions", json={"prompt": "a", "user": "me", "store": True, "metadata": {"a": "b"}})
    assert response.status_code == 200
    assert "x-mpt-ignored-fields" not in response.headers


def test_official_client(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="mpt-echo", prompt="hello", max_tokens=20)
    assert answer.choices[0].text == "hello"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 11


def test_official_client_streams(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="mpt-echo", prompt="hello", max_tokens=20, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hello"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_bad_words_reach_the_engine_in_both_spellings(http: httpx.Client, backend: FakeBackend) -> None:
    complete(http, prompt="a", bad_words=["no"])
    assert [backend.tokenizer.decode(list(ids)) for ids in backend.started[0][1].bad_words] == ["no", " no"]
