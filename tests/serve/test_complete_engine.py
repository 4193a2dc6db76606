"""Every sampling feature against a running server; MPT_SERVE_TEST_URL names another server."""

import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import safetensors.numpy
from prometheus_client.parser import text_string_to_metric_families
from server import ServerProcess, wait_idle
from waiting import attempts, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BYTES = 256  # tokens of one byte each; the next id is the end of text
PROMPT = "A long time ago, in a place where nobody had ever been before, there was a "


@pytest.fixture(scope="module")
def own_server(ending_server: ServerProcess) -> ServerProcess:
    return ending_server


@pytest.fixture(scope="module")
def server_url(request: pytest.FixtureRequest) -> str:
    """The address of a running server: MPT_SERVE_TEST_URL, or that of `own_server`."""
    external = os.environ.get("MPT_SERVE_TEST_URL")
    if external:
        return external.rstrip("/")
    server: ServerProcess = request.getfixturevalue("own_server")
    return server.url


@pytest.fixture(scope="module")
def http(server_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=120) as http:
        yield http


def complete(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 12, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def tokens_of(http: httpx.Client, text: str) -> list[int]:
    ids: list[int] = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    return ids


def test_a_choice_ends_in_the_engine_at_its_stop_string(http: httpx.Client, server_url: str) -> None:
    body = {"n": 2, "seed": 11, "max_tokens": 420, "ignore_eos": True}
    first, second = texts(complete(http, **body))
    stop = next(
        first[i : i + 3]
        for i in range(9, 60)
        if first[i : i + 3] not in second and first[i] != "\N{REPLACEMENT CHARACTER}"
    )
    for _ in attempts("the Ingress found the string after the engine had generated the last token"):
        before = wait_idle(server_url)
        stopped = complete(http, **body, stop=stop)["choices"]
        after = wait_idle(server_url)
        assert [choice["finish_reason"] for choice in stopped] == ["stop", "length"]
        assert stopped[1]["text"] == second
        ended = after["finished"]["stop"] - before["finished"]["stop"]
        assert (after["generated_tokens"] - before["generated_tokens"] < 2 * 420) == (ended == 1)
        if ended == 1:
            break


def test_tokens_go_over_links(request: pytest.FixtureRequest, http: httpx.Client) -> None:
    if os.environ.get("MPT_SERVE_TEST_URL"):
        pytest.skip("the log of another server is not known")
    server: ServerProcess = request.getfixturevalue("own_server")
    with http.stream("POST", "/v1/completions", json={"prompt": PROMPT, "max_tokens": 4, "stream": True}) as response:
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert not any("link" in name for name in response.headers)

    def log() -> str:
        return "".join(file.read_text(errors="replace") for file in server.log_files() if file.suffix == ".log")

    wait_for(lambda: "Tokens go to the proxy at" in log() and "Tokens go to the Ingress at" in log(), log)
    complete(http, prompt=PROMPT, max_tokens=1)  # once there are links, requests come over them, too
    wait_for(lambda: "Requests to generate come over the links" in log(), log)
    assert "go through Serve" not in log()


def test_metrics_count_what_the_engine_does(http: httpx.Client) -> None:
    def read() -> dict[str, float]:
        response = http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain")
        families = text_string_to_metric_families(response.text)
        return {f"{s.name}{s.labels.get('reason', '')}": s.value for f in families for s in f.samples}

    for _ in attempts("no draft was accepted: by the steps' measured times none was worth it"):
        before = read()
        complete(http, prompt="say it again, say it again, say it again, " * 4, temperature=0, max_tokens=200)
        grown = {name: value - before[name] for name, value in read().items()}
        assert grown["mpt_serve_generated_tokens_total"] == 200
        assert grown["mpt_serve_finished_choices_totallength"] == 1
        # A model of random weights repeats itself when it is greedy.
        assert grown["mpt_serve_draft_tokens_total"] >= grown["mpt_serve_accepted_draft_tokens_total"]
        if grown["mpt_serve_accepted_draft_tokens_total"]:
            break


class TestLogprobs:
    @pytest.mark.parametrize("temperature", [0, 1.5])
    def test_logprobs_while_generating_are_those_of_the_whole_text_as_a_prompt(
        self, http: httpx.Client, temperature: float
    ) -> None:
        body = {"temperature": temperature, "seed": 3, "logprobs": 5, "return_token_ids": True, "ignore_eos": True}
        [choice] = complete(http, **body)["choices"]
        ids = choice["prompt_token_ids"] + choice["token_ids"]
        [read] = complete(http, prompt=ids, echo=True, logprobs=5, max_tokens=0)["choices"]
        generated = len(choice["token_ids"])
        assert read["logprobs"]["token_logprobs"][0] is None
        assert read["logprobs"]["token_logprobs"][-generated:] == pytest.approx(
            choice["logprobs"]["token_logprobs"], abs=1e-4
        )
        assert len(read["logprobs"]["tokens"]) == len(ids)

    def test_greedy_takes_the_likeliest_by_the_very_number(self, http: httpx.Client) -> None:
        [choice] = complete(http, temperature=0, logprobs=1)["choices"]
        for value, top in zip(choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"], strict=True):
            assert value == max(top.values())

    def test_harnesses_find_their_slice(self, http: httpx.Client) -> None:
        context, continuation = tokens_of(http, "Once upon"), tokens_of(http, " a time")
        prompts = [[*context, *continuation], [*context, *context]]
        answer = complete(http, prompt=prompts, echo=True, logprobs=1, max_tokens=1, temperature=0)
        for prompt, choice in zip(prompts, answer["choices"], strict=True):
            values = choice["logprobs"]["token_logprobs"]
            assert len(values) == len(prompt) + 1
            assert all(value <= 0 for value in values[len(context) : -1])

    @pytest.mark.parametrize("count", [0, 20])
    def test_a_cached_prompt_has_the_same(self, http: httpx.Client, count: int) -> None:
        body = {"prompt_logprobs": count, "max_tokens": 1, "prompt": PROMPT * 2}
        first, second = (complete(http, **body)["choices"][0]["prompt_logprobs"] for _ in range(2))
        for before, after in zip(first[1:], second[1:], strict=True):
            assert before.keys() == after.keys()
            for token_id, known in before.items():
                assert known["logprob"] == pytest.approx(after[token_id]["logprob"], abs=1e-4)

    def test_a_stream_has_the_same(self, http: httpx.Client) -> None:
        body = {"echo": True, "logprobs": 3, "n": 2, "seed": 1, "stop": "e"}
        whole = complete(http, **body)["choices"]
        lines = http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 12, "stream": True, **body}).text
        chunks = [json.loads(line[6:]) for line in lines.split("\n\n") if line.startswith("data: {")]
        for index, choice in enumerate(whole):
            own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            assert "".join(c["text"] for c in own) == choice["text"]
            for name, entries in choice["logprobs"].items():
                assert [entry for c in own for entry in c["logprobs"][name]] == entries


class TestChoices:
    def test_they_differ_and_are_reproduced_with_the_seed(self, http: httpx.Client) -> None:
        body = {"n": 4, "seed": 11, "temperature": 1.2}
        answer = complete(http, **body)
        assert len(set(texts(answer))) > 1
        assert texts(complete(http, **body)) == texts(answer)
        assert texts(complete(http, **body | {"n": 1})) == texts(answer)[:1]
        assert answer["usage"]["prompt_tokens"] == len(tokens_of(http, PROMPT))

    def test_the_best_are_those_of_the_highest_mean(self, http: httpx.Client) -> None:
        body = {"seed": 5, "temperature": 1.5, "logprobs": 0, "return_token_ids": True}
        everyone = complete(http, **body, n=5)["choices"]

        def mean(choice: dict[str, Any]) -> float:
            values = choice["logprobs"]["token_logprobs"]
            return float(sum(values) / len(values))

        ranking = sorted(everyone, key=mean, reverse=True)
        best = complete(http, **body, n=2, best_of=5)
        assert [choice["token_ids"] for choice in best["choices"]] == [c["token_ids"] for c in ranking[:2]]
        assert best["usage"]["completion_tokens"] == sum(len(choice["token_ids"]) for choice in everyone)

    def test_chat(self, server_url: str) -> None:
        with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none") as client:
            model = client.models.list().data[0].id
            messages: Any = [{"role": "user", "content": "Say hello."}]
            body: dict[str, Any] = {"model": model, "messages": messages, "n": 3, "seed": 1, "max_tokens": 8}
            whole = client.chat.completions.create(**body, logprobs=True, top_logprobs=2)
            streamed = ["", "", ""]
            for chunk in client.chat.completions.create(**body, stream=True):
                streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert streamed == [choice.message.content for choice in whole.choices]
        assert all(choice.logprobs and choice.logprobs.content for choice in whole.choices)


class TestConstraints:
    def test_only_allowed_tokens_are_generated(self, http: httpx.Client) -> None:
        allowed = tokens_of(http, "ab")
        [choice] = complete(http, allowed_token_ids=allowed, return_token_ids=True, seed=1)["choices"]
        assert set(choice["token_ids"]) <= set(allowed)
        assert len(choice["token_ids"]) == 12

    def test_bias_decides_and_penalties_counteract(self, http: httpx.Client) -> None:
        a, b = tokens_of(http, "ab")
        body = {"logit_bias": {str(a): 100, str(b): 80}, "temperature": 0, "max_tokens": 40, "return_token_ids": True}
        [plain] = complete(http, **body)["choices"]
        assert len(set(plain["token_ids"])) == 1
        [penalised] = complete(http, **body, frequency_penalty=2)["choices"]
        assert set(penalised["token_ids"]) == {a, b}
        [present] = complete(http, **body, prompt="zzz", repetition_penalty=2)["choices"]
        assert set(present["token_ids"]) == {a, b}

    def test_bad_words_are_never_generated(self, http: httpx.Client) -> None:
        a, b = tokens_of(http, "ab")
        body = {"allowed_token_ids": [a, b], "max_tokens": 64, "seed": 2, "logit_bias": {str(b): 2}}
        [free] = texts(complete(http, **body))
        assert "ab" in free
        assert "ab" not in texts(complete(http, **body, bad_words=["ab"]))[0]

    def test_the_shortest_output(self, http: httpx.Client) -> None:
        [stop] = tokens_of(http, "a")
        body = {"logit_bias": {str(stop): 100}, "stop_token_ids": [stop], "temperature": 0, "ignore_eos": True}
        assert complete(http, **body)["usage"]["completion_tokens"] == 1
        assert complete(http, **body, min_tokens=5)["usage"]["completion_tokens"] == 6

    def test_priorities_are_accepted(self, http: httpx.Client) -> None:
        assert texts(complete(http, priority=-5, seed=1)) == texts(complete(http, priority=5, seed=1))


class TestStructuredOutputs:
    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize(
        ("field", "value", "pattern"),
        [
            ("guided_regex", "[0-9]{3}-[a-f]+!", "[0-9]{3}-[a-f]+!"),
            ("structured_outputs", {"choice": ["red", "blue", "blueish"]}, "red|blue|blueish"),
            ("guided_grammar", 'start: "x" ("y" | "z") "x"', "x[yz]x"),
            ("guided_json", {"enum": ["red", 7]}, r'"red"|7'),
        ],
    )
    def test_outputs_match(self, http: httpx.Client, field: str, value: Any, pattern: str, n: int) -> None:
        answer = complete(http, **{field: value}, n=n, seed=4, temperature=1.5, max_tokens=200)
        for choice in answer["choices"]:
            assert choice["finish_reason"] == "length" or re.fullmatch(pattern, choice["text"].strip())

    def test_chat_generates_json(self, http: httpx.Client) -> None:
        schema = {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}
        body = {
            "messages": [{"role": "user", "content": "Two booleans."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "two", "schema": schema}},
            "max_tokens": 200,
        }
        [choice] = http.post("/v1/chat/completions", json=body).json()["choices"]
        if choice["finish_reason"] == "stop":
            value = json.loads(choice["message"]["content"])
            assert len(value) == 2
            assert all(isinstance(item, bool) for item in value)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("guided_regex", "[a"),
            ("guided_grammar", "start: nothing_of_that_name"),
            ("guided_json", {"type": "no such type"}),
        ],
    )
    def test_broken_ones_are_errors_of_their_field(self, http: httpx.Client, field: str, value: Any) -> None:
        response = http.post("/v1/completions", json={"prompt": "x", field: value})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == field


class TestPrefixCache:
    def test_a_prompt_is_cached_for_those_with_the_same_salt(self, http: httpx.Client) -> None:
        def cached(**body: Any) -> int:
            usage = complete(http, prompt=f"{salt} {PROMPT * 2}", max_tokens=1, **body)["usage"]
            return int(usage["prompt_tokens_details"]["cached_tokens"])

        salt = os.urandom(8).hex()
        assert cached(cache_salt=salt) == 0
        assert cached(cache_salt=salt) > len(PROMPT) / 2
        assert cached() == 0
        assert cached(cache_salt="another") == 0

    def test_each_prompt_counts_once(self, http: httpx.Client) -> None:
        prompt = f"{os.urandom(8).hex()} {PROMPT * 2}"
        complete(http, prompt=prompt, max_tokens=1)
        one = complete(http, prompt=prompt, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"]
        many = complete(http, prompt=[prompt] * 2, n=3, max_tokens=1)["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert many == 2 * one > 0


@pytest.mark.skipif("MPT_SERVE_TEST_URL" in os.environ, reason="the processes of another server are not ours to kill")
def test_choices_of_a_killed_generator_continue_exactly(request: pytest.FixtureRequest) -> None:
    server: ServerProcess = request.getfixturevalue("own_server")
    generator = server.replica_pid("Generator")
    body = {
        "prompt": PROMPT,
        "max_tokens": 300,
        "n": 3,
        "seed": 9,
        "ignore_eos": True,
        "frequency_penalty": 0.3,
        "repetition_penalty": 1.1,
        "echo": True,
        "logprobs": 1,
        "return_token_ids": True,
        "stream": True,
    }

    async def answer(http: httpx.AsyncClient, begun: asyncio.Event) -> tuple[list[list[int]], list[list[float]]]:
        ids: list[list[int]] = [[], [], []]
        values: list[list[float]] = [[], [], []]
        async with http.stream("POST", "/v1/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    [choice] = json.loads(line[6:])["choices"]
                    ids[choice["index"]] += choice["token_ids"]
                    values[choice["index"]] += choice["logprobs"]["token_logprobs"]
                    begun.set()
        return ids, values

    async def scenario(kill: bool) -> tuple[list[list[int]], list[list[float]]]:
        begun = asyncio.Event()
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
            task = asyncio.create_task(answer(http, begun))
            await begun.wait()
            if kill:
                os.kill(generator, signal.SIGKILL)
            return await task

    undisturbed_ids, undisturbed_values = asyncio.run(scenario(kill=False))
    ids, values = asyncio.run(scenario(kill=True))
    assert ids == undisturbed_ids
    assert [len(own) for own in ids] == [300] * 3
    for own, undisturbed in zip(values, undisturbed_values, strict=True):
        assert own[0] is None
        assert own[1:] == pytest.approx(undisturbed[1:], abs=1e-3)
    server.wait_ready()


def test_embeddings_of_a_prompt_give_what_its_text_gives(http: httpx.Client, tiny_checkpoint: Path) -> None:
    """Rows of the model's own table, in base64: equal ids and log probabilities, to the last bit."""
    table = safetensors.numpy.load_file(tiny_checkpoint / "model.safetensors")["transformer.wte.weight"]
    file = base64.b64encode(safetensors.numpy.save({"x": table[tokens_of(http, PROMPT)]})).decode()
    params = {"n": 3, "seed": 7, "temperature": 0.8, "logprobs": 2, "return_token_ids": True}
    expected, answer = complete(http, **params), complete(http, prompt=None, prompt_embeds=file, **params)
    assert answer["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"]
    for by_text, by_rows in zip(expected["choices"], answer["choices"], strict=True):
        assert by_rows == {**by_text, "prompt_token_ids": None}
