"""Requests whose replica dies, over real engines: their outputs are the same to the last bit."""

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayActorError
from tiny_checkpoint import write_tiny_checkpoint

from mpt_serve.configuration.settings import Settings
from mpt_serve.deployments.failover import FailoverStream
from mpt_serve.deployments.generator import Generator
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import GenerationRequest, OnDelta
from mpt_serve.structured_outputs.spec import GrammarSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROMPT = list(range(64, 90)) + list(range(64, 84))
SCHEMA = {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 3, "maxItems": 9}
REQUESTS = {
    "penalised": SamplingParams(
        max_tokens=40,
        n=3,
        frequency_penalty=0.4,
        presence_penalty=0.3,
        repetition_penalty=1.2,
        logprobs=2,
        prompt_logprobs=1,
        ignore_eos=True,
    ),
    "at least 20 tokens": SamplingParams(max_tokens=40, n=2, min_tokens=20, stop_token_ids=tuple(range(64, 80))),
    "grammar": SamplingParams(max_tokens=60, n=3, temperature=1.3),
    "bad words": SamplingParams(
        max_tokens=40, n=2, allowed_token_ids=(64, 65, 66), bad_words=((64, 65), (65, 65, 66)), logprobs=0
    ),
    "greedy": SamplingParams(max_tokens=40, temperature=0, logprobs=1, ignore_eos=True),
    "only read": SamplingParams(max_tokens=0, prompt_logprobs=3),
}


SPECS = {"grammar": GrammarSpec("json_schema", json.dumps(SCHEMA))}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    """A Generator outside Serve."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("ending"))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 256}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mpt_serve.deployments.generator._check_accelerator", lambda: None)  # asks a running Ray
        generator = Generator(settings_of(folder))
    yield generator
    generator._engine.close()


def settings_of(folder: Path) -> Settings:
    engine = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "num_blocks": 64, "pre_compile": False}
    return Settings.from_mapping({"model": str(folder), "engine": engine})


def output_of(generator: Generator, request: GenerationRequest, deaths: dict[int, int]) -> dict[str, Any]:
    """Return all that is reported of a request whose i-th segment dies after `deaths[i]` deltas."""
    numbers = itertools.count()
    output: dict[str, Any] = {"prompt": []}

    async def run_segment(own: GenerationRequest, generated: tuple[int, ...], on_delta: OnDelta) -> None:
        number = next(numbers)
        stream: Any = generator.generate(own.ids, own.params, f"request-{number}", generated, own.grammar)
        try:
            for count in itertools.count():
                if count == deaths.get(number):
                    raise RayActorError
                delta = await anext(stream, None)
                if delta is None:
                    return
                on_delta(delta)
        finally:
            await stream.aclose()

    def on_delta(delta: Delta) -> None:
        own = output.setdefault(f"choice {delta.index}", {"ids": [], "logprobs": []})
        own["ids"] += delta.token_ids
        own["logprobs"] += delta.logprobs or ()
        own["reason"] = delta.finish_reason, delta.stop_reason
        output["prompt"] += [delta.prompt_logprobs] if delta.prompt_logprobs is not None else []

    generator._mailbox = None  # each run has its own event loop
    asyncio.run(FailoverStream(run_segment, request, on_delta).run())
    return output


@pytest.mark.parametrize("name", REQUESTS)
def test_nothing_is_lost_repeated_or_changed(generator: Generator, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("mpt_serve.deployments.failover._MOVE_PAUSE_S", 0.0)
    params = replace(REQUESTS[name], seed=8)
    request = GenerationRequest(PROMPT, params, SPECS.get(name), "request")
    undisturbed = output_of(generator, request, {})
    assert len(undisturbed["prompt"]) == (params.prompt_logprobs is not None)
    for deaths in ({0: 0}, {0: 1}, {0: 4}, {0: 9}, {0: 5, 1: 3, 2: 7}, {0: 7, 1: 0, 2: 0}):
        assert output_of(generator, request, deaths) == undisturbed
