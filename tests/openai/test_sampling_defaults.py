"""What sampling fields mean that a request leaves out: settings, the checkpoint's file, the API's defaults."""

import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_backend import MODEL, FakeBackend
from pydantic import BaseModel, ValidationError

from mpt_serve.configuration.model_folder import tokenizer_folder
from mpt_serve.configuration.problems import ConfigurationError
from mpt_serve.configuration.sampling_defaults import SamplingDefaults
from mpt_serve.openai.protocol.generation import GenerationFields

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello"},
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {**CHAT, "max_tokens": 4},
}
DEFAULTS = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5}


def sampled(http: httpx.Client, backend: FakeBackend, path: str, **fields: object) -> dict[str, float]:
    response = http.post(path, json=REQUESTS[path] | fields)
    assert response.status_code == 200, response.text
    assert "x-mpt-ignored-fields" not in response.headers
    params = backend.started[-1][1]
    return {name: getattr(params, name) for name in DEFAULTS}


@pytest.mark.parametrize("path", REQUESTS)
def test_a_request_has_the_models_defaults_for_what_it_leaves_out(
    http: httpx.Client, backend: FakeBackend, path: str
) -> None:
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    assert sampled(http, backend, path) == neutral
    backend.model = replace(MODEL, sampling_defaults=DEFAULTS)
    assert sampled(http, backend, path) == DEFAULTS
    assert sampled(http, backend, path, temperature=None, top_p=None) == DEFAULTS
    assert sampled(http, backend, path, temperature=1, top_p=1) == {**DEFAULTS, "temperature": 1, "top_p": 1}
    assert sampled(http, backend, path, temperature=0, top_k=3) == {**DEFAULTS, "temperature": 0, "top_k": 3}
    assert sampled(http, backend, path, min_p=0, top_k=0) == {**DEFAULTS, "min_p": 0, "top_k": 0}


def test_a_response_object_states_them(http: httpx.Client, backend: FakeBackend) -> None:
    backend.model = replace(MODEL, sampling_defaults=DEFAULTS)
    response = http.post("/v1/responses", json={"input": "Hello", "top_p": 0.3}).json()
    assert (response["temperature"], response["top_p"]) == (0.5, 0.3)


def written(folder: Path, content: object) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "generation_config.json").write_text(text)
    return folder


def test_settings_come_before_the_checkpoints_file(tmp_path: Path) -> None:
    assert SamplingDefaults().of_model(tmp_path) == {}
    folder = written(tmp_path, {"eos_token_id": 0, "temperature": 1, "top_k": 50, "do_sample": True, "top_p": None})
    assert SamplingDefaults().of_model(folder) == {"temperature": 1.0, "top_k": 50}
    own = SamplingDefaults(temperature=0, min_p=0.2)
    assert own.of_model(folder) == {"temperature": 0.0, "top_k": 50, "min_p": 0.2}
    assert own.replace(from_checkpoint=False).of_model(folder) == {"temperature": 0.0, "min_p": 0.2}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", wrong) for wrong in ("hot", -1, 3, True, [1])],
        *[("top_p", wrong) for wrong in (0, 1.5)],
        *[("top_k", wrong) for wrong in (0.5, -2, "7")],
        *[("min_p", wrong) for wrong in (-0.1, {})],
        *[("repetition_penalty", wrong) for wrong in (0, False, 11)],
    ],
)
def test_values_that_no_request_could_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, value: object
) -> None:
    others = {other: number for other, number in DEFAULTS.items() if other != name}
    with caplog.at_level(logging.WARNING):
        assert SamplingDefaults().of_model(written(tmp_path, {**others, name: value})) == others
    assert f"generation_config.json: {name} is no value that a request could have" in caplog.text
    if not isinstance(value, str):  # in a configuration "7" is a number
        with pytest.raises(ConfigurationError, match=name):
            SamplingDefaults(**{name: value})


@pytest.mark.parametrize("content", ["[1]", "{", "", "null", "\x00"])
def test_a_file_that_is_no_object_states_nothing(tmp_path: Path, content: str) -> None:
    assert SamplingDefaults().of_model(written(tmp_path, content)) == {}


def test_the_embedded_model_has_a_temperature() -> None:
    assert SamplingDefaults().of_model(tokenizer_folder("embedded")) == {"temperature": 0.7}


@pytest.mark.parametrize("name", DEFAULTS)
@pytest.mark.parametrize("value", [-2, -1, -0.1, 0, 0.5, 1, 1.1, 2, 2.1, 10, 10.1, 999_999])
def test_a_default_may_be_what_a_request_may_state(name: str, value: float) -> None:
    def fits(model: type[BaseModel]) -> bool:
        with contextlib.suppress(ValidationError):
            model.model_validate({name: value}, strict=True)
            return True
        return False

    assert fits(SamplingDefaults) == fits(GenerationFields)
