"""A smaller model that drafts: outputs are those of the model alone, and the draft model keeps track of them."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import draft_freely, generate
from small_engine import SETTINGS, VOCAB_LIMIT

from model.config.mpt_config import MptConfig
from model.params.kv_cache import kv_bytes_per_token
from model.params.weights import Weights, init_weights
from mpt_serve.engine import Engine, EngineConfig, SamplingParams
from mpt_serve.engine.request import Request
from mpt_serve.engine.speculative import DraftModel, ModelDrafter, model_drafter

DRAFTING = SETTINGS.replace(speculation="draft", num_draft_tokens=5, pre_compile=False)

MIXED = (
    SamplingParams(temperature=0, max_tokens=24),
    SamplingParams(seed=1, max_tokens=24, temperature=0.8),
    SamplingParams(seed=2, max_tokens=24, top_k=8),
    SamplingParams(seed=3, max_tokens=24, top_p=0.9, min_p=0.02),
)


MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine(weights: Weights, config: MptConfig) -> Iterator[MakeEngine]:
    engines = []

    def make(draft: Weights, settings: EngineConfig = DRAFTING, cost_share: float = 0.0) -> Engine:
        engine = Engine(weights, config, settings, VOCAB_LIMIT, draft=DraftModel(draft, config))
        drafter = engine._drafter
        assert isinstance(drafter, ModelDrafter)
        draft_freely(engine)
        drafter._shares.append(cost_share)
        drafter._shares.popleft()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def prompts(count: int) -> list[list[int]]:
    random = np.random.default_rng(1)
    return [random.integers(0, VOCAB_LIMIT, size=5 + 3 * i).tolist() for i in range(count)]


def similar(weights: Weights) -> Weights:
    """Weights that often choose the same id."""
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(weights))))
    return jax.tree.map(lambda leaf: leaf + 0.02 * jax.random.normal(next(keys), leaf.shape, leaf.dtype), weights)


@pytest.fixture(scope="module")
def plain(weights: Weights, config: MptConfig) -> Iterator[Engine]:
    with Engine(weights, config, SETTINGS.replace(speculation="none", pre_compile=False), VOCAB_LIMIT) as engine:
        yield engine


def test_outputs_are_those_without_drafts(make_engine: MakeEngine, plain: Engine, weights: Weights) -> None:
    engine = make_engine(similar(weights))
    params = [
        *MIXED,
        SamplingParams(seed=4, max_tokens=20, presence_penalty=0.5),
        SamplingParams(temperature=0, max_tokens=20, logit_bias={7: 2.0, 8: -3.0}),
        SamplingParams(seed=5, max_tokens=20, min_tokens=10, stop_token_ids=tuple(range(30))),
        SamplingParams(temperature=0, max_tokens=20, bad_words=((5, 6), (9,))),
    ]
    assert generate(engine, prompts(8), params) == generate(plain, prompts(8), params)
    stats = engine.stats()
    assert 0 < stats.accepted_tokens < stats.drafted_tokens
    assert stats.free_blocks == stats.total_blocks


def test_a_model_that_drafts_for_itself_is_always_right(make_engine: MakeEngine, weights: Weights) -> None:
    """Sampled or greedy: it draws with the same numbers, from the same distribution, if it has read the same."""
    engine = make_engine(weights)
    for params in MIXED:
        generate(engine, prompts(1), params)
    generate(engine, prompts(4), MIXED)
    stats = engine.stats()
    assert stats.accepted_tokens == stats.drafted_tokens > 4 * 24


def test_preemption_and_found_blocks_do_not_lead_it_astray(
    make_engine: MakeEngine, plain: Engine, weights: Weights
) -> None:
    engine = make_engine(weights, DRAFTING.replace(num_blocks=16))
    asked = [*prompts(6), *prompts(6)]  # the second half finds blocks of the first
    params = [replace(MIXED[i % 4], seed=i, max_tokens=30) for i in range(12)]
    assert generate(engine, asked, params) == generate(plain, asked, params)
    stats = engine.stats()
    assert stats.preemptions > 0
    assert stats.accepted_tokens == stats.drafted_tokens > 0
    engine._scheduler.check_integrity()


@pytest.mark.parametrize("length", [5, 50, 57, 58])
def test_drafts_go_on_to_the_end_of_the_context(
    make_engine: MakeEngine, plain: Engine, weights: Weights, length: int
) -> None:
    engine = make_engine(weights)
    prompt, params = list(range(length)), SamplingParams(temperature=0, max_tokens=100)
    (completion,) = generate(engine, [prompt], params)
    assert len(completion.token_ids) == 64 - length
    assert [completion] == generate(plain, [prompt], params)
    stats = engine.stats()
    assert stats.accepted_tokens == stats.drafted_tokens > 0


def test_choices_of_one_prompt(make_engine: MakeEngine, weights: Weights) -> None:
    engine = make_engine(weights)
    generate(engine, prompts(1), SamplingParams(seed=9, n=3, max_tokens=20))
    stats = engine.stats()
    assert stats.accepted_tokens == stats.drafted_tokens > 0


def test_drafts_end_with_a_draft_model_that_is_mostly_wrong(
    make_engine: MakeEngine, config: MptConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = init_weights(config, jax.random.key(5), scale=0.4)
    monkeypatch.setattr(model_drafter, "_FORGET_AFTER", 30)
    params = SamplingParams(temperature=0, max_tokens=50)
    engine = make_engine(stranger, cost_share=0.3)
    generate(engine, [[1, 2, 3]], replace(params, max_tokens=28))
    first = engine.stats().drafted_tokens
    assert 0 < first < 28
    generate(engine, [[1, 2, 3]], params)
    assert engine.stats().drafted_tokens > 2 * first  # it was tried again after 30 ids without


def test_a_long_unread_prompt_is_not_worth_a_short_output(make_engine: MakeEngine, weights: Weights) -> None:
    engine = make_engine(weights)
    generate(engine, [list(range(60))], SamplingParams(temperature=0, max_tokens=2))
    assert engine.stats().drafted_tokens == 0


def test_a_request_may_end_while_it_is_drafted_for(make_engine: MakeEngine, weights: Weights) -> None:
    drafter = make_engine(weights)._drafter
    request = Request("r", (1, 2, 3), SamplingParams(), 0, 10, blocks=[0], slot=0)
    assert drafter.plan([request], 1)[0] > 0
    drafter.forget(request)
    assert len(drafter.draft([request], [3])[0]) > 0
    drafter.observe(request, 3, 1)
    assert not drafter._sequences


def test_the_memory_for_the_cache_is_for_both(make_engine: MakeEngine, weights: Weights, config: MptConfig) -> None:
    per_block = kv_bytes_per_token(config, jnp.float32) * SETTINGS.block_size
    engine = make_engine(weights, DRAFTING.replace(num_blocks=None, kv_cache_memory=30 * per_block))
    assert engine.num_blocks == 15


def test_another_vocabulary_is_refused(weights: Weights, config: MptConfig) -> None:
    other = replace(config, vocab_size=128)
    with pytest.raises(ValueError, match="vocabulary of 128 ids, the model one of 96"):
        Engine(weights, config, DRAFTING, draft=DraftModel(weights, other))


def test_a_draft_model_and_the_setting_belong_together(weights: Weights, config: MptConfig) -> None:
    with pytest.raises(ValueError, match="takes a draft model"):
        Engine(weights, config, DRAFTING)
    with pytest.raises(ValueError, match="takes no draft model"):
        Engine(weights, config, SETTINGS, draft=DraftModel(weights, config))
