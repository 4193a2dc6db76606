"""Embeddings in prompts: what is read of safetensors files, and what is refused before anything is made of it."""

import base64
import json
import pickle
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from fake_backend import MODEL, FakeBackend

ROWS = np.array([[1.0, -2.5, 3.0], [0.0, 4.0, -0.5]], np.float32)  # 2 tokens of the model's hidden size


@pytest.fixture
def taker(backend: FakeBackend) -> FakeBackend:
    """The server's backend, with a model that takes embeddings."""
    backend.model = replace(MODEL, prompt_embeds=True)
    return backend


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def file_of(rows: np.ndarray) -> str:
    return base64_of(safetensors.numpy.save({"prompt_embeds": rows}))


def file_with(header: Any, data: bytes = b"") -> str:
    """A file with any header, which may be bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return base64_of(len(text).to_bytes(8, "little") + text + data)


def tensor(**changes: Any) -> dict[str, Any]:
    """The header of a file with ROWS, changed."""
    return {"x": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24], **changes}}


def complete(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(http: httpx.Client, **body: Any) -> dict[str, Any]:
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 400, response.text
    return response.json()["error"]


def test_a_file_of_each_type_is_a_prompt(http: httpx.Client, taker: FakeBackend) -> None:
    brain = (ROWS.view("<u4") >> 16).astype("<u2").tobytes()  # these numbers have no bits below
    halves = {"dtype": "BF16", "data_offsets": [0, 12]}
    files = [
        file_of(ROWS),
        file_of(ROWS.astype(np.float16)),
        file_of(ROWS[None]),  # as transformers have it, a batch of one
        file_with({"__metadata__": {"format": "pt"}, **tensor(**halves)}, brain),
    ]
    for file in files:
        answer = complete(http, prompt_embeds=file, max_tokens=3)
        assert answer["usage"]["prompt_tokens"] == 2
        embeds = taker.embeds[-1]
        assert embeds is not None
        np.testing.assert_array_equal(embeds.rows, ROWS)
        assert embeds.positions.tolist() == [0, 1]


def test_several_prompts_come_before_those_of_text(http: httpx.Client, taker: FakeBackend) -> None:
    body = {"prompt_embeds": [file_of(ROWS), file_of(ROWS[:1])], "prompt": "ab", "n": 2, "return_token_ids": True}
    answer = complete(http, **body)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [None] * 4 + [[64, 65]] * 2
    assert [None if embeds is None else len(embeds.rows) for embeds in taker.embeds] == [2, 1, None]
    assert answer["usage"]["prompt_tokens"] == 5


def test_a_stream_has_no_ids_of_such_a_prompt(http: httpx.Client, taker: FakeBackend) -> None:
    body = {"prompt_embeds": file_of(ROWS), "stream": True, "return_token_ids": True, "logprobs": 1, "max_tokens": 2}
    response = http.post("/v1/completions", json=body)
    first = json.loads(response.text.split("\n\n")[0].removeprefix("data: "))["choices"][0]
    assert first["prompt_token_ids"] is None
    assert first["token_ids"] == [0]
    assert len(first["logprobs"]["token_logprobs"]) == 1


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("not base64!", "must be base64: safetensors.torch.save({'prompt_embeds': embeds}), in base64."),
        ("é", "must be base64"),
        (base64_of(pickle.dumps([1])), "is a pickle, as torch.save writes; those can run code and are not read. Send"),
        (base64_of(b"PK\x03\x04" + b"\0" * 99), "is a pickle"),
        (base64_of(b"\x93NUMPY"), "must be a safetensors file"),
        (base64_of(b""), "must be base64, at least 1 character"),
        (file_with(b"{", b""), "must be a safetensors file"),
        (file_with(b"[" * 60_000), "must be a safetensors file"),
        (file_with([]), "must be a safetensors file"),
        (file_with({}), "must hold one tensor; got 0."),
        (file_with({**tensor(), "y": {}}), "must hold one tensor; got 2."),
        (file_with({"x": 1}), "its header does not describe a tensor."),
        (file_with(tensor(shape=None)), "its header has no shape."),
        (file_with(tensor(shape=[-1, 3])), "its header has no shape."),
        (file_with(tensor(shape=[True, 3])), "its header has no shape."),
        (file_with(tensor(shape=[10**4000])), "its header has no shape."),
        (file_with(tensor(shape=[1] * 9)), "its header has no shape."),
        (file_with(tensor(dtype="I64")), "must have numbers of the type F32, F16, BF16, not I64."),
        (file_with(tensor(dtype=None)), "not None."),
        (file_with(tensor(dtype=[])), "not []."),
        (file_with(tensor(), b"\0" * 20), "is damaged: its shape takes 24 bytes, and 20 follow its header."),
        (file_with(tensor(data_offsets=[4, 28]), b"\0" * 24), "is damaged"),
        (file_of(ROWS[:, :2]), "must have the shape (tokens, 3), with this model's hidden size; got (2, 2)."),
        (file_of(ROWS[0]), "got (3,)."),
        (file_of(np.stack([ROWS, ROWS])), "got (2, 2, 3)."),
        (file_of(ROWS[:0]), "got (0, 3)."),
        (file_of(ROWS * np.nan), "prompt embeddings must be finite numbers: neither NaN nor infinite."),
        ("A" * 1_000_000, "has 1000000 characters, more than the embeddings of 256 tokens"),
    ],
    ids=range(28),
)
def test_what_is_wrong_with_a_file_is_said(http: httpx.Client, taker: FakeBackend, file: str, message: str) -> None:
    error = refusal(http, prompt_embeds=file)
    if file:
        assert message in error["message"]
    assert error["param"] == "prompt_embeds"
    assert refusal(http, prompt_embeds=[file_of(ROWS), file])["param"] == "prompt_embeds[1]"
    assert taker.started == []


def test_too_many_tokens_do_not_fit_the_context(http: httpx.Client, taker: FakeBackend) -> None:
    error = refusal(http, prompt_embeds=file_of(np.ones((256, 3), np.float32)), max_tokens=1)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt_embeds")


@pytest.mark.parametrize("field", [{"echo": True}, {"prompt_logprobs": 1}, {"truncate_prompt_tokens": 1}])
def test_what_needs_ids_is_refused(http: httpx.Client, taker: FakeBackend, field: dict[str, Any]) -> None:
    error = refusal(http, prompt_embeds=file_of(ROWS), **field)
    assert (error["code"], error["param"]) == ("unsupported_parameter", *field)
    assert "is not offered with 'prompt_embeds': such a prompt has no tokens" in error["message"]


def test_a_server_takes_none_unless_its_settings_say_so(http: httpx.Client, backend: FakeBackend) -> None:
    error = refusal(http, prompt_embeds=file_of(ROWS))
    assert (error["code"], error["param"]) == ("unsupported_parameter", "prompt_embeds")
    assert "set engine.prompt_embeds to true in its settings" in error["message"]


def test_some_prompt_is_required(http: httpx.Client, taker: FakeBackend) -> None:
    for body in ({}, {"prompt": None}):
        error = refusal(http, **body)
        assert error["param"] == "prompt"
        assert error["message"].startswith("'prompt' is required: a non-empty string, an array of such strings")


def test_both_kinds_count_as_prompts(http: httpx.Client, taker: FakeBackend) -> None:
    assert refusal(http, prompt_embeds=[file_of(ROWS)] * 128, prompt="a")["param"] == "prompt"
    assert refusal(http, prompt_embeds=[file_of(ROWS)] * 129)["param"] == "prompt_embeds"
    assert refusal(http, prompt_embeds=[])["param"] == "prompt_embeds"
