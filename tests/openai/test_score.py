"""/v1/score and /v1/rerank."""

import math
import re
from typing import Any

import httpx
import pytest
from fake_backend import FakeBackend, likelihood
from loopback_server import serving
from test_errors import check_error, post

from mpt_serve.configuration.limits import Limits


def logprobs(backend: FakeBackend, text: str) -> list[float]:
    return [likelihood(token_id, 0).logprob for token_id in backend.tokenizer.encode(text)]


def score(http: httpx.Client, **body: Any) -> Any:
    response = http.post("/v1/score", json=body)
    assert response.status_code == 200, response.text
    return response.json()


class TestScore:
    def test_shape(self, http: httpx.Client, backend: FakeBackend) -> None:
        answer = score(http, text_1="ab", text_2=["cde", "f"], model="mpt-echo")
        assert answer.pop("id").startswith("score-")
        assert isinstance(answer.pop("created"), int)
        data = answer.pop("data")
        assert answer == {
            "object": "list",
            "model": "mpt-echo",
            "usage": {
                "prompt_tokens": 8,
                "completion_tokens": 0,
                "total_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 3},
            },
        }
        for index, (text, item) in enumerate(zip(("cde", "f"), data, strict=True)):
            own = logprobs(backend, text)
            assert item == {
                "index": index,
                "object": "score",
                "score": math.fsum(own),
                "num_tokens": len(own),
                "is_greedy": all(value == -0.1 for value in own),
            }
        assert not data[0]["is_greedy"]

    def test_a_text_of_the_likeliest_tokens_is_greedy(self, http: httpx.Client, backend: FakeBackend) -> None:
        text = next(char for char in "abc" if likelihood(backend.tokenizer.encode(char)[0], 0).rank == 1)
        assert score(http, text_1="x", text_2=text * 3)["data"][0]["is_greedy"]

    def test_the_engine_scores_what_counts_alone(self, http: httpx.Client, backend: FakeBackend) -> None:
        score(http, text_1=["abc", "x"], text_2=["d", "yz"], priority=3, cache_salt="s")
        params = [params for _, params in backend.started]
        assert [own.prompt_logprobs_start for own in params] == [3, 1]
        assert {(own.max_tokens, own.prompt_logprobs, own.priority, own.cache_salt) for own in params} == {
            (0, 0, 3, "s")
        }

    def test_the_mean_is_by_token(self, http: httpx.Client, backend: FakeBackend) -> None:
        own = logprobs(backend, "cde")
        [item] = score(http, text_1="ab", text_2="cde", normalize=True)["data"]
        assert item["score"] == math.fsum(own) / 3

    def test_where_nothing_comes_before_the_end_of_text_does(self, http: httpx.Client, backend: FakeBackend) -> None:
        [item] = score(http, text_1="", text_2="ab")["data"]
        assert item["score"] == math.fsum(logprobs(backend, "ab"))
        assert backend.started[0][1].prompt_logprobs_start == 1
        backend.tokenizer.eos_token_ids = ()
        error = check_error(post(http, "/v1/score", {"text_1": "", "text_2": "ab"}), 400)
        assert "send some text before it" in error["message"]

    def test_a_token_across_the_border_counts(self, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
        async def encode(self: FakeBackend, text: str, *_: bool) -> list[int]:
            return [64 + len(word) for word in re.findall(r" *[a-z]+| +$", text)]  # a blank belongs to the next word

        monkeypatch.setattr(FakeBackend, "encode", encode)
        items = score(http, text_1=["ab ", "a"], text_2=["cd e", " "])["data"]
        assert [item["num_tokens"] for item in items] == [2, 1]

    def test_a_text_without_tokens(self, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
        async def encode(self: FakeBackend, text: str, *_: bool) -> list[int]:
            return [64]

        monkeypatch.setattr(FakeBackend, "encode", encode)
        error = check_error(post(http, "/v1/score", {"text_1": "a", "text_2": "b"}), 400)
        assert "nothing to score" in error["message"]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "text_1"),
            ({"text_1": "a"}, "text_2"),
            ({"text_1": 1, "text_2": "a"}, "text_1"),
            ({"text_1": [], "text_2": "a"}, "text_1"),
            ({"text_1": "a", "text_2": ["b", 1]}, "text_2"),
            ({"text_1": "a", "text_2": ["b", ""]}, "text_2"),
            ({"text_1": "a", "text_2": ["b", "\ud800"]}, "text_2[1]"),
            ({"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
            ({"text_1": "a", "text_2": ["b"] * 1025}, "text_2"),
            ({"text_1": "a" * 300, "text_2": "b"}, "text_2"),
            ({"text_1": "a", "text_2": "b", "model": "other"}, "model"),
            ({"text_1": "a", "text_2": "b", "priority": 5000}, "priority"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_is_refused(self, http: httpx.Client, body: Any, param: str) -> None:
        response = post(http, "/v1/score", body)
        assert check_error(response)["param"] == param
        assert response.status_code in (400, 404)

    def test_a_pair_that_is_too_long_says_what_fits(self, http: httpx.Client) -> None:
        error = check_error(post(http, "/v1/score", {"text_1": "a" * 300, "text_2": "b"}), 400)
        assert error["message"].endswith("it has 301 tokens. Send at most 256 prompt tokens.")

    def test_pairs_of_one_request(self) -> None:
        with serving(limits=Limits(max_inputs=2)) as server, httpx.Client(base_url=server.url) as http:
            score(http, text_1="a", text_2=["b", "c"])
            error = check_error(post(http, "/v1/score", {"text_1": "a", "text_2": ["b", "c", "d"]}), 400)
        assert (error["param"], error["message"]) == ("text_2", "'text_2' must hold at most 2 texts; got 3.")

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/score", {"text_1": "a", "text_2": [f"{number}" for number in range(300)]}),
            ("/v1/rerank", {"query": "a", "documents": [f"{number}" for number in range(300)]}),
        ],
    )
    def test_some_pairs_of_a_request_wait_for_the_others(
        self, http: httpx.Client, backend: FakeBackend, path: str, body: Any
    ) -> None:
        backend.pause_s = 0.001
        answer = http.post(path, json=body).json()
        assert len(answer.get("data") or answer["results"]) == len(backend.started) == 300
        assert (backend.most_encoding, backend.most_running) == (32, 32)
        assert backend.admitted == [(32, 1)]

    def test_scores_are_no_log_probabilities_of_a_response(self) -> None:
        with serving(limits=Limits(max_prompt_logprobs=2)) as server:
            body = {"text_1": "a", "text_2": ["bcdef"] * 3}
            assert httpx.post(f"{server.url}/score", json=body).status_code == 200


class TestRerank:
    def rerank(self, http: httpx.Client, **body: Any) -> Any:
        response = http.post("/v1/rerank", json={"query": "q", **body})
        assert response.status_code == 200, response.text
        return response.json()

    @pytest.fixture(autouse=True)
    def relevance(self, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
        """A query is the likelier the more often the document has its letter."""
        inner = FakeBackend._deltas

        def deltas(self: FakeBackend, ids: Any, params: Any) -> Any:
            count = self.tokenizer.decode(ids).count("q") - 1
            [first] = inner(self, ids, params)
            known = first.prompt_logprobs[-1]
            object.__setattr__(known, "logprob", -1.0 / (1 + count))
            return [first]

        monkeypatch.setattr(FakeBackend, "_deltas", deltas)

    def test_the_most_relevant_documents_come_first(self, http: httpx.Client) -> None:
        documents = ["none", "one q", {"text": "q and q"}, "another q"]
        answer = self.rerank(http, documents=documents)
        assert answer["id"].startswith("rerank-")
        assert answer["model"] == "mpt-echo"
        assert [result["index"] for result in answer["results"]] == [2, 1, 3, 0]
        assert [result["document"]["text"] for result in answer["results"][:2]] == ["q and q", "one q"]
        assert answer["results"][0]["relevance_score"] == math.exp(-1 / 3)
        assert answer["usage"]["completion_tokens"] == 0

    def test_only_the_best_without_their_texts(self, http: httpx.Client) -> None:
        answer = self.rerank(http, documents=["a", "q"], top_n=1, return_documents=False)
        assert answer["results"] == [{"index": 1, "relevance_score": math.exp(-0.5)}]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"documents": ["a"], "query": ""}, "query"),
            ({"documents": []}, "documents"),
            ({"documents": "a"}, "documents"),
            ({"documents": ["a", ""]}, "documents[1]"),
            ({"documents": [{"text": 1}]}, "documents[0]"),
            ({"documents": ["a"], "top_n": 0}, "top_n"),
        ],
    )
    def test_what_is_refused(self, http: httpx.Client, body: Any, param: str) -> None:
        assert check_error(post(http, "/v1/rerank", {"query": "q", **body}), 400)["param"] == param
