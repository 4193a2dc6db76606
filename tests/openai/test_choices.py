"""Several choices for a prompt, and the best of several."""

from typing import Any

import httpx
import openai
import pytest
from fake_backend import EOS, FakeBackend, likelihood
from loopback_server import serving
from test_completions import complete, events, stream, text_of

from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.request import Delta
from mpt_serve.openai.output_choice import ChoicePart
from mpt_serve.openai.streaming import best

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def words(backend: FakeBackend) -> list[str]:
    """What the choices of each prompt are."""
    words = ["one", "two#", "three"]
    backend.outputs = [backend.tokenizer.encode(word) for word in words]
    return words


@pytest.mark.parametrize("ids_per_delta", [1, 4])
def test_choices_are_numbered_prompt_by_prompt(
    http: httpx.Client, backend: FakeBackend, words: list[str], ids_per_delta: int
) -> None:
    backend.ids_per_delta = ids_per_delta
    answer = complete(http, prompt=["ab", "cdef"], n=3)
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert [choice["text"] for choice in answer["choices"]] == words * 2
    assert answer["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 2 * sum(len(word) + 1 for word in words),
        "total_tokens": 6 + 2 * 15,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    chunks = stream(http, prompt=["ab", "cdef"], n=3)
    assert [text_of(chunks, index) for index in range(6)] == words * 2
    ends = [c["index"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert sorted(ends) == list(range(6))


def test_a_prompt_is_one_request_in_the_engine(http: httpx.Client, backend: FakeBackend) -> None:
    complete(http, prompt=["ab", "c"], n=4, temperature=0)
    assert [params.n for _, params in backend.started] == [4, 4]
    assert backend.admitted == [(2, 4)]


def test_a_choice_that_stops_does_not_end_the_others(http: httpx.Client, words: list[str]) -> None:
    answer = complete(http, prompt="x", n=3, stop="#", max_tokens=4)
    assert [(c["text"], c["finish_reason"], c["stop_reason"]) for c in answer["choices"]] == [
        ("one", "stop", None),
        ("two", "stop", "#"),
        ("thre", "length", None),
    ]
    assert answer["usage"]["completion_tokens"] == 4 + 4 + 4


def test_the_engine_learns_which_choices_have_stopped(
    http: httpx.Client, backend: FakeBackend, words: list[str]
) -> None:
    answer = complete(http, prompt="x", n=3, stop="w", max_tokens=9)
    assert [choice["text"] for choice in answer["choices"]] == ["one", "t", "three"]
    assert backend.stopped_choices == {1}  # the others were ended by the engine itself


def test_all_stopped_ends_the_request_in_the_engine(http: httpx.Client, backend: FakeBackend) -> None:
    backend.hang_after = 6
    answer = complete(http, prompt="abcdef", n=2, stop="c")
    assert [choice["text"] for choice in answer["choices"]] == ["ab", "ab"]
    assert len(backend.cancelled) == 1


def test_one_that_fails_fails_the_response(http: httpx.Client, backend: FakeBackend) -> None:
    backend.fail_after = 3
    backend.failure = Delta((), "error", None, 1, index=1)
    response = http.post("/v1/completions", json={"prompt": "abcdef", "n": 2})
    assert response.status_code == 500
    assert len(backend.cancelled) == 1


class TestChat:
    def test_whole(self, http: httpx.Client, words: list[str]) -> None:
        answer = http.post(CHAT, json={"messages": HI, "n": 3}).json()
        assert [choice["message"]["content"] for choice in answer["choices"]] == words
        assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
        assert answer["usage"]["completion_tokens"] == 15

    def test_stream(self, http: httpx.Client, words: list[str]) -> None:
        body = {"messages": HI, "n": 3, "stream": True, "return_token_ids": True}
        chunks = events(http.post(CHAT, json=body))
        assert [chunk["choices"][0]["index"] for chunk in chunks[:3]] == [0, 1, 2]
        assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in chunks[:3])
        assert ["prompt_token_ids" in chunk for chunk in chunks[:4]] == [True, False, False, False]
        texts = ["", "", ""]
        for chunk in chunks[3:]:
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content", "")
        assert texts == words

    def test_official_client(self, client: openai.OpenAI, words: list[str]) -> None:
        messages: Any = HI
        with client.chat.completions.stream(model="mpt-echo", messages=messages, n=3) as chunks:
            final = chunks.get_final_completion()
        assert [choice.message.content for choice in final.choices] == words


class TestBestOf:
    def scores(self, backend: FakeBackend, words: list[str]) -> list[float]:
        def mean(word: str) -> float:
            ids = [*backend.tokenizer.encode(word), EOS]
            return sum(likelihood(token_id, 0).logprob for token_id in ids) / len(ids)

        return [mean(word) for word in words]

    @pytest.mark.parametrize("n", [1, 2])
    def test_the_likeliest_come_first(self, http: httpx.Client, backend: FakeBackend, words: list[str], n: int) -> None:
        words.reverse()
        backend.outputs.reverse()
        scores = self.scores(backend, words)
        ranking = sorted(range(3), key=lambda index: -scores[index])
        assert ranking != [0, 1, 2]
        answer = complete(http, prompt=["ab", "c"], best_of=3, n=n)
        assert [choice["text"] for choice in answer["choices"]] == [words[index] for index in ranking[:n]] * 2
        assert [choice["index"] for choice in answer["choices"]] == list(range(2 * n))
        assert all(choice["logprobs"] is None for choice in answer["choices"])
        assert answer["usage"]["completion_tokens"] == 2 * 15  # those that nobody sees are work, too

    def test_equal_ones_keep_their_order(self) -> None:
        parts = [ChoicePart(index, f"{index}", "stop") for index in range(6)]
        scores = [-1.0, -1.0, -0.5, float("nan"), -2.0, -2.0]
        assert [(part.index, part.text) for part in best(parts, scores, best_of=3, n=2)] == [
            *((0, "2"), (1, "0")),
            *((2, "4"), (3, "5")),
        ]

    def test_as_many_as_are_wanted_are_left_in_order(self, http: httpx.Client, words: list[str]) -> None:
        answer = complete(http, prompt="ab", best_of=3, n=3)
        assert [choice["text"] for choice in answer["choices"]] == words
        assert text_of(stream(http, prompt="ab", best_of=3, n=3), 1) == words[1]

    def test_prompts_keep_their_own(self, http: httpx.Client, words: list[str]) -> None:
        body = {"prompt": ["ab", "c"], "best_of": 3, "return_token_ids": True, "echo": True, "prompt_logprobs": 0}
        first, second = complete(http, **body)["choices"]
        assert first["text"].startswith("ab")
        assert len(first["prompt_token_ids"]) == len(first["prompt_logprobs"]) == 2
        assert second["text"].startswith("c")
        assert len(second["prompt_token_ids"]) == len(second["prompt_logprobs"]) == 1

    @pytest.mark.parametrize(
        "body", [{"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}, {"best_of": 0}, {"best_of": 129}]
    )
    def test_what_cannot_be(self, http: httpx.Client, body: dict[str, Any]) -> None:
        response = http.post("/v1/completions", json={"prompt": "a", **body})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "best_of")


def test_choices_are_bounded_over_all_prompts() -> None:
    with serving(limits=Limits(max_choices=6)) as server:

        def ask(path: str = "/v1/completions", **body: Any) -> tuple[int, str | None]:
            response = httpx.post(server.url + path, json=body)
            return response.status_code, response.json().get("error", {}).get("param")

        assert ask(prompt=["a"] * 2, n=3) == (200, None)
        assert ask(prompt=["a"] * 2, n=4) == (400, "n")
        assert ask(prompt=["a"] * 2, best_of=4) == (400, "best_of")
        assert ask(CHAT, messages=HI, n=7) == (400, "n")
