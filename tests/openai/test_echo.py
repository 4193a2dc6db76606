"""The prompt as the beginning of the text."""

import httpx
import pytest
from fake_backend import EOS, FakeBackend, likelihood
from test_completions import complete, stream, text_of
from test_logprobs import joined


def test_text_begins_with_the_prompt(http: httpx.Client) -> None:
    answer = complete(http, prompt=["ab", "日"], echo=True)
    assert [choice["text"] for choice in answer["choices"]] == ["abab", "日日"]
    assert answer["usage"]["completion_tokens"] == 3 + 4
    assert [text_of(stream(http, prompt=["ab", "日"], echo=True), index) for index in (0, 1)] == ["abab", "日日"]


@pytest.mark.parametrize(("max_tokens", "generated"), [(0, 0), (1, 1), (9, 4)])
def test_log_probabilities_are_of_all_tokens(
    http: httpx.Client, backend: FakeBackend, max_tokens: int, generated: int
) -> None:
    ids = backend.tokenizer.encode("abc")
    body = {"prompt": ids, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    logprobs = complete(http, **body)["choices"][0]["logprobs"]
    expected = [*ids, *[*ids, EOS][:generated]]
    assert logprobs["token_logprobs"] == [None, *(likelihood(token_id, 1).logprob for token_id in expected[1:])]
    assert logprobs["top_logprobs"][0] is None
    assert all(len(entries) == len(expected) for entries in logprobs.values())
    assert joined(stream(http, **body)) == logprobs


def test_the_end_of_text_counts_when_it_is_all_that_was_generated(http: httpx.Client, backend: FakeBackend) -> None:
    backend.outputs = [[EOS]]
    answer = complete(http, prompt="abc", echo=True, logprobs=1, max_tokens=1)
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "stop")
    assert choice["logprobs"]["tokens"] == [*"abc", "<|endoftext|>"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 1


def test_a_prompt_may_be_just_read(http: httpx.Client, backend: FakeBackend) -> None:
    answer = complete(http, prompt="a" * 256, echo=True, max_tokens=0)  # all of the context
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("a" * 256, "length")
    assert answer["usage"]["total_tokens"] == 256
    assert complete(http, prompt="ab", max_tokens=0)["choices"][0]["text"] == ""
    assert backend.started[0][1].max_tokens == 0
    response = http.post("/v1/completions", json={"prompt": "a" * 257, "max_tokens": 0})
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_what_was_cut_off_is_not_echoed(http: httpx.Client) -> None:
    body = {"prompt": "abcdef", "truncate_prompt_tokens": 2, "echo": True, "max_tokens": 0, "logprobs": 0}
    [choice] = complete(http, **body)["choices"]
    assert choice["text"] == "ef"
    assert choice["logprobs"]["tokens"] == ["e", "f"]


def test_special_tokens_of_the_prompt_are_shown(http: httpx.Client) -> None:
    [choice] = complete(http, prompt=[EOS, 64], echo=True, max_tokens=0, logprobs=0)["choices"]
    assert choice["text"].startswith("<|endoftext|>")
    assert choice["logprobs"]["text_offset"] == [0, 13]


def test_a_prompt_that_ends_inside_a_character(http: httpx.Client, backend: FakeBackend) -> None:
    ids = backend.tokenizer.encode("é")
    backend.outputs = [ids]
    [choice] = complete(http, prompt=ids[:1], echo=True, logprobs=0)["choices"]
    assert choice["text"] == "\ufffdé"
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 2]


def test_stop_strings_are_not_looked_for_in_the_prompt(http: httpx.Client) -> None:
    assert complete(http, prompt="abc", echo=True, stop="b")["choices"][0]["text"] == "abca"


def test_the_whole_prompt_comes_with_the_first_chunk(http: httpx.Client) -> None:
    [choice] = stream(http, prompt="abc", echo=True, logprobs=0)[0]["choices"]
    assert choice["text"].startswith("abc")
    assert choice["logprobs"]["tokens"][:3] == [*"abc"]


@pytest.mark.parametrize("reversed_choices", [False, True])
def test_every_choice_has_it(http: httpx.Client, backend: FakeBackend, reversed_choices: bool) -> None:
    backend.reversed_choices = reversed_choices  # then others speak before the one that has read the prompt
    body = {"prompt": ["abc", "d"], "echo": True, "logprobs": 0, "n": 3}
    whole = complete(http, **body)["choices"]
    assert [choice["text"] for choice in whole] == ["abcabc"] * 3 + ["dd"] * 3
    assert all(choice["logprobs"]["token_logprobs"][0] is None for choice in whole)
    assert [len(choice["logprobs"]["tokens"]) for choice in whole] == [7] * 3 + [3] * 3
    chunks = stream(http, **body)
    assert [text_of(chunks, index) for index in range(6)] == [choice["text"] for choice in whole]


def test_responses_about_many_tokens(http: httpx.Client) -> None:
    prompts = [letter * 200 for letter in "abcd"]
    body = {"prompt": prompts, "echo": True, "logprobs": 2, "max_tokens": 3}
    whole = complete(http, **body)["choices"]
    assert [choice["text"] for choice in whole] == [prompt + prompt[:3] for prompt in prompts]
    chunks = stream(http, **body)
    for index, choice in enumerate(whole):
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert [name for c in own for name in c["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
    numbers = complete(http, **body | {"prompt_logprobs": 3})["choices"][3]["prompt_logprobs"]
    assert len(numbers) == 200
