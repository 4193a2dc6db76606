"""Requests whose replica dies, over real engines: they end as if nothing had happened, to the last bit."""

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, Iterator
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
    "guided": SamplingParams(max_tokens=60, n=3, temperature=1.3, guide=GrammarSpec("json_schema", json.dumps(SCHEMA))),
    "bad words": SamplingParams(
        max_tokens=40, n=2, allowed_token_ids=(64, 65, 66), bad_words=((64, 65), (65, 65, 66)), logprobs=0
    ),
    "greedy": SamplingParams(max_tokens=40, temperature=0, logprobs=1, ignore_eos=True),
    "only read": SamplingParams(max_tokens=0, prompt_logprobs=3),
}


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generator]:
    """A Generator without Serve around it."""
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


def answers(generator: Generator, params: SamplingParams, deaths: dict[int, int]) -> dict[str, Any]:
    """Return all that is said about a request whose i-th stream dies after `deaths[i]` deltas."""
    numbers = itertools.count()

    def open_stream(own: SamplingParams, generated: tuple[int, ...]) -> AsyncGenerator[Delta, None]:
        return dying(next(numbers), own, generated)

    async def dying(number: int, own: SamplingParams, generated: tuple[int, ...]) -> AsyncGenerator[Delta, None]:
        stream: Any = generator.generate(PROMPT, own, f"request-{number}", generated)
        try:
            for told in itertools.count():
                if told == deaths.get(number):
                    raise RayActorError
                delta = await anext(stream, None)
                if delta is None:
                    return
                yield delta
        finally:
            await stream.aclose()

    async def collect() -> dict[str, Any]:
        said: dict[str, Any] = {"prompt": []}
        async for delta in FailoverStream(open_stream, len(PROMPT), params, "request").deltas():
            own = said.setdefault(f"choice {delta.index}", {"ids": [], "logprobs": []})
            own["ids"] += delta.token_ids
            own["logprobs"] += delta.logprobs or ()
            own["reason"] = delta.finish_reason, delta.stop_reason
            said["prompt"] += [delta.prompt_logprobs] if delta.prompt_logprobs is not None else []
        return said

    generator._mailbox = None  # each run has an event loop of its own
    return asyncio.run(collect())


@pytest.mark.parametrize("params", REQUESTS.values(), ids=REQUESTS)
def test_nothing_is_lost_repeated_or_changed(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, params: SamplingParams
) -> None:
    monkeypatch.setattr("mpt_serve.deployments.failover._MOVE_PAUSE_S", 0.0)
    params = replace(params, seed=8)
    undisturbed = answers(generator, params, {})
    assert len(undisturbed["prompt"]) == (params.prompt_logprobs is not None)
    for deaths in ({0: 0}, {0: 1}, {0: 4}, {0: 9}, {0: 5, 1: 3, 2: 7}, {0: 7, 1: 0, 2: 0}):
        assert answers(generator, params, deaths) == undisturbed
