"""The official clients against a running server, OpenAI's and Anthropic's; MPT_SERVE_TEST_URL names another server."""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import numpy as np
import openai
import pytest
from server import ServerProcess, wait_idle
from waiting import attempts

from model.kernels.cpu.library import kernels_available

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_the_model_is_listed_with_its_context(client: openai.OpenAI, model: str) -> None:
    (listed,) = client.models.list().data
    assert (listed.object, listed.id) == ("model", model)
    assert listed.max_model_len >= 256  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/models"])
def test_every_response_has_one_request_id(server_url: str, path: str) -> None:
    own = httpx.get(server_url + path, headers={"x-request-id": "my-id_1.2"})
    assert own.headers.get_list("x-request-id") == ["my-id_1.2"]
    (new,) = httpx.get(server_url + path).headers.get_list("x-request-id")
    assert new


def test_every_stream_has_one_request_id(server_url: str, model: str) -> None:
    body = {"model": model, "prompt": "Once", "max_tokens": 2, "stream": True}
    for _ in range(10):  # its start reaches the proxy in two ways
        own = httpx.post(f"{server_url}/v1/completions", json=body, headers={"x-request-id": "my-id_1.2"})
        assert own.headers["content-type"].startswith("text/event-stream")
        assert own.headers.get_list("x-request-id") == ["my-id_1.2"]


def test_a_stream_has_the_text_of_the_whole_response(client: openai.OpenAI, model: str) -> None:
    request = {"model": model, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**request)
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.text for choice in choices) == whole.choices[0].text
    assert [c.finish_reason for c in choices if c.finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]


def test_a_chat_stream_has_the_text_of_the_whole_response(client: openai.OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    request = {"model": model, "messages": messages, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > len(["Say", "hello."])


def test_embeddings_beside_a_stream_are_those_of_the_quiet_server(client: openai.OpenAI, model: str) -> None:
    texts = [f"Text number {number}: " + "word " * number for number in range(40)]
    quiet = [item.embedding for item in client.embeddings.create(model=model, input=texts).data]
    request = {"model": model, "prompt": "Once", "max_tokens": 200, "extra_body": {"ignore_eos": True}}
    chunks = client.completions.create(**request, stream=True)
    next(chunks)
    busy = [item.embedding for item in client.embeddings.create(model=model, input=texts).data]
    assert sum(len(chunk.choices[0].text) for chunk in chunks) > 0
    np.testing.assert_allclose(busy, quiet, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(quiet, axis=1), 1, atol=1e-5)
    assert np.unique(np.round(quiet, 4), axis=0).shape == np.shape(quiet)
    tokens = client.embeddings.create(model=model, input=texts[3], extra_body={"pooling": "none"}).data[0].embedding
    last = client.embeddings.create(model=model, input=texts[3], extra_body={"pooling": "last", "normalize": False})
    np.testing.assert_allclose(tokens[-len(quiet[0]) :], last.data[0].embedding, atol=1e-5)


def test_a_response_has_the_text_of_chat(client: openai.OpenAI, model: str) -> None:
    request = {"model": model, "temperature": 0}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello."}]
    chat = client.chat.completions.create(**request, messages=messages, max_tokens=24)  # type: ignore[call-overload]
    fields = {**request, "instructions": "Be brief.", "input": "Say hello.", "max_output_tokens": 24}
    whole = client.responses.create(**fields)
    assert whole.output_text == chat.choices[0].message.content
    with client.responses.stream(**fields) as stream:
        events = list(stream)
    types = [event.type for event in events]
    assert types[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert "response.output_text.delta" in types
    assert types[-1] == f"response.{whole.status}"
    assert events[-1].response.output_text == whole.output_text  # type: ignore[union-attr]
    assert whole.usage is not None
    assert chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    assert whole.usage.output_tokens == chat.usage.completion_tokens


def test_a_message_has_the_text_of_chat(client: openai.OpenAI, server_url: str, model: str) -> None:
    hello = [{"role": "user", "content": "Say hello."}]
    request = {"model": model, "temperature": 0, "max_tokens": 24}
    messages = [{"role": "system", "content": "Be brief."}, *hello]
    chat = client.chat.completions.create(**request, messages=messages)  # type: ignore[call-overload]
    fields: Any = {"model": model, "max_tokens": 24, "system": "Be brief.", "messages": hello}
    with anthropic.Anthropic(base_url=server_url, api_key="none", max_retries=0, timeout=120) as own:
        fields["extra_body"] = {"temperature": 0}  # this client has no such argument any more
        whole = own.messages.create(**fields)
        with own.messages.stream(**fields) as stream:
            pieces = list(stream.text_stream)
            streamed = stream.get_final_message()
        count = own.messages.count_tokens(model=model, system="Be brief.", messages=hello).input_tokens
        with pytest.raises(anthropic.BadRequestError, match="'max_tokens'"):
            own.messages.create(**{**fields, "max_tokens": 0})
    text = chat.choices[0].message.content
    assert whole.content[0].text == streamed.content[0].text == "".join(pieces) == text
    assert streamed.stop_reason == whole.stop_reason
    assert count == chat.usage.prompt_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found"),
        ({"prompt": ""}, openai.BadRequestError, "invalid_value"),
        ({"prompt": [10**9]}, openai.BadRequestError, "invalid_value"),
        ({"prompt": "x" * 5000}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors_have_the_clients_own_types(
    client: openai.OpenAI, model: str, change: dict, error: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(error) as caught:
        client.completions.create(**({"model": model, "prompt": "x", "max_tokens": 4} | change))
    assert caught.value.code == code
    assert caught.value.request_id


def test_a_cancelled_stream_frees_its_blocks(client: openai.OpenAI, server_url: str, model: str) -> None:
    for _ in attempts("no stream was cancelled"):
        before = wait_idle(server_url)
        stream = client.completions.create(
            model=model, prompt="x", max_tokens=250, n=8, stream=True, extra_body={"ignore_eos": True}
        )
        next(stream)
        stream.close()
        after = wait_idle(server_url)
        assert after["free_blocks"] == before["free_blocks"]
        cancelled = after["finished"]["cancelled"] - before["finished"]["cancelled"]
        generated = after["generated_tokens"] - before["generated_tokens"]
        assert cancelled == 0 or generated < 8 * 250
        if cancelled:
            return


def lengths_of(count: int) -> Iterator[tuple[str, int, float]]:
    """Yield (prompt, max_tokens, temperature) of mixed requests, the same each time."""
    rng = random.Random(7)
    for number in range(count):
        prompt = f"Request {number}: " + "word " * rng.randrange(1, 30)
        yield prompt, rng.randrange(1, 48), rng.choice((0.0, 1.0))


async def answer(client: openai.AsyncOpenAI, model: str, number: int, request: tuple[str, int, float]) -> str:
    prompt, max_tokens, temperature = request
    stream = await client.completions.create(
        model=model, prompt=prompt, max_tokens=max_tokens, temperature=temperature, seed=number, stream=True
    )
    return "".join([chunk.choices[0].text async for chunk in stream])


def test_64_concurrent_streams_are_each_what_they_are_alone(server_url: str, model: str) -> None:
    requests = list(enumerate(lengths_of(64)))

    async def scenario() -> tuple[list[str], list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none", timeout=300) as client:
            together = await asyncio.gather(*(answer(client, model, *request) for request in requests))
            alone = [await answer(client, model, *request) for request in requests]
            return together, alone

    together, alone = asyncio.run(scenario())
    # With the native kernels no row's numbers depend on another row. Through XLA a float32 tie may fall either way.
    assert sum(a != b for a, b in zip(together, alone, strict=True)) <= (0 if kernels_available() else 2)
    assert len(set(alone)) > 32  # the texts do depend on the requests


async def vanish(http: httpx.AsyncClient, model: str, number: int) -> None:
    """Request a long stream and drop the connection: after the request, at the stream's start or in its middle."""
    body = {"model": model, "prompt": f"client {number}", "max_tokens": 480, "stream": True, "ignore_eos": True}
    if number % 4 == 0:
        await request_and_disconnect(http.base_url, json.dumps(body).encode())
        return
    async with http.stream("POST", "/v1/completions", json=body) as response:
        lines: AsyncIterator[str] = response.aiter_lines()
        for _ in range(number % 4):
            await anext(lines)


async def request_and_disconnect(url: httpx.URL, body: bytes) -> None:
    _, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {url.host}\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


def test_200_clients_that_disconnect_leave_every_block_free(client: openai.OpenAI, server_url: str, model: str) -> None:
    before = wait_idle(server_url)

    async def scenario() -> None:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server_url, limits=limits, timeout=120) as http:
            await asyncio.gather(*(vanish(http, model, number) for number in range(200)))

    asyncio.run(scenario())
    after = wait_idle(server_url)
    assert after["free_blocks"] == before["free_blocks"]
    assert after["error"] is None
    # How soon, in steps of the engine, is tested without Serve: test_disconnects.py. Here a slow machine may finish
    # some before the server knows that the client left.
    assert after["finished"]["cancelled"] > before["finished"]["cancelled"]
    assert after["finished"]["error"] == before["finished"]["error"]
    assert client.completions.create(model=model, prompt="still here", max_tokens=2).choices[0].finish_reason


def batch_line(number: int, max_tokens: int = 8) -> str:
    body = {"prompt": f"Once {number}", "max_tokens": max_tokens, "seed": number, "ignore_eos": True}
    return json.dumps({"custom_id": f"{number}", "method": "POST", "url": "/v1/completions", "body": body})


def created(client: openai.OpenAI, lines: list[str]) -> openai.types.Batch:
    file = client.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")


def wait_for(client: openai.OpenAI, batch: openai.types.Batch, *statuses: str) -> openai.types.Batch:
    while (found := client.batches.retrieve(batch.id)).status not in statuses:
        assert found.status not in ("failed", "completed", "expired", "cancelled"), found
        time.sleep(0.1)
    return found


@pytest.mark.skipif("MPT_SERVE_TEST_URL" in os.environ, reason="another server may have no folder for batches")
def test_a_batch_has_the_texts_that_its_requests_have_alone(client: openai.OpenAI, model: str) -> None:
    lines = [*map(batch_line, range(20)), "no JSON"]
    batch = wait_for(client, created(client, lines), "completed")
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 21, "completed": 20, "failed": 1}
    assert batch.output_file_id is not None
    outputs = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    texts = {record["custom_id"]: record["response"]["body"]["choices"][0]["text"] for record in outputs}
    assert len(outputs) == len(texts) == 20
    body = json.loads(lines[7])["body"]
    extra = {"ignore_eos": True}
    del body["ignore_eos"]
    assert texts["7"] == client.completions.create(model=model, extra_body=extra, **body).choices[0].text
    assert batch.id in [listed.id for listed in client.batches.list()]
    assert batch.output_file_id in [listed.id for listed in client.files.list(purpose="batch_output")]
    for _ in attempts("the batch had been completed before it was cancelled", 5):
        endless = created(client, [batch_line(number, 480) for number in range(200)])
        client.batches.cancel(endless.id)
        ended = wait_for(client, endless, "cancelled", "completed")
        if ended.status == "cancelled":
            break
    assert ended.cancelled_at is not None


@pytest.mark.exhaustive
@pytest.mark.skipif("MPT_SERVE_TEST_URL" in os.environ, reason="the processes of another server are not ours to kill")
@pytest.mark.parametrize("deployment", ["Ingress", "Generator"])
def test_a_killed_replica_costs_no_result_of_a_batch(
    client: openai.OpenAI, model: str, request: pytest.FixtureRequest, deployment: str
) -> None:
    server: ServerProcess = request.getfixturevalue("own_server")
    lines = [batch_line(number, 100) for number in range(150)]
    batch = created(client, lines)
    while (counts := client.batches.retrieve(batch.id).request_counts) is None or counts.completed < 20:
        time.sleep(0.02)
    assert counts.completed < len(lines)
    os.kill(server.replica_pid(deployment), signal.SIGKILL)
    server.wait_ready()
    patient = client.with_options(max_retries=10)
    batch = wait_for(patient, batch, "completed")
    assert batch.output_file_id is not None
    outputs = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(int(record["custom_id"]) for record in outputs) == list(range(len(lines)))
    assert batch.error_file_id is None


@pytest.mark.skipif("MPT_SERVE_TEST_URL" in os.environ, reason="the processes of another server are not ours to kill")
def test_a_killed_generator_costs_a_pause_and_not_a_token(model: str, request: pytest.FixtureRequest) -> None:
    server: ServerProcess = request.getfixturevalue("own_server")

    async def answer(client: openai.AsyncOpenAI, number: int, begun: asyncio.Event) -> str:
        stream = await client.completions.create(
            model=model,
            prompt=f"Go on with {number}",
            max_tokens=480,
            temperature=1,
            seed=number,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        text = ""
        async for chunk in stream:
            text += chunk.choices[0].text
            begun.set()
        return text

    async def scrape(ended: asyncio.Event) -> set[int]:
        statuses = set()
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            while not ended.is_set() or not statuses:
                statuses.add((await http.get("/metrics")).status_code)
                await asyncio.sleep(0.1)
        return statuses

    async def scenario(killed: int | None) -> tuple[list[str], set[int]]:
        begun, ended = asyncio.Event(), asyncio.Event()
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=300) as client:
            answers = asyncio.gather(*(answer(client, number, begun) for number in range(48)))
            await begun.wait()
            scraping = asyncio.create_task(scrape(ended))
            if killed is not None:
                os.kill(killed, signal.SIGKILL)
            texts = await answers
            ended.set()
            return texts, await scraping

    undisturbed, _ = asyncio.run(scenario(None))
    for _ in attempts("the streams had ended before the Generator was killed", 5):
        texts, statuses = asyncio.run(scenario(server.replica_pid("Generator")))
        assert texts == undisturbed
        assert statuses == {200}
        server.wait_ready()
        if "tokens; moving to another replica" in server.output():
            break
