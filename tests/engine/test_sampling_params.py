"""Sampling parameters refuse what makes no sense, by name."""

import enum
import re
from typing import Any

import pytest

from mpt_serve.engine import EngineConfig, SamplingParams, sampling_params


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", 2**64),
        ("seed", -(2**63) - 1),
        ("seed", 1.0),
        ("choice_index", -1),
        ("prompt_logprobs_start", -1),
        ("prompt_logprobs_start", 1.0),
        ("pooling", "max"),
        ("pooling", True),
        ("normalize", 1),
        ("stop_token_ids", "12"),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", None),
        ("stop_token_ids", 5),
        ("allowed_token_ids", ()),
        ("logprob_token_ids", ()),
        ("logprob_token_ids", (3, 3)),
        ("logprob_token_ids", tuple(range(129))),
        ("bad_words", None),
        ("logit_bias", None),
        ("logit_bias", 5),
        ("logit_bias", [1, 2]),
        ("logit_bias", "ab"),
        ("logit_bias", [[[1], 2.0]]),
        ("logit_bias", {-1: 2.0}),
        ("logit_bias", {1: "2"}),
        ("logit_bias", {1: float("inf")}),
        ("logit_bias", {1: 10**400}),
        ("temperature", 10**400),
        ("min_p", -(10**400)),
        ("ignore_eos", 1),
    ],
    ids=lambda given: repr(given)[:20],
)
def test_a_bad_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be .*got {re.escape(repr(value))}"):
        SamplingParams(**{field: value})


def test_biases_are_stored_as_pairs() -> None:
    assert SamplingParams(logit_bias={1: 2.0, 3: -1}).biases == ((1, 2.0), (3, -1))
    assert SamplingParams(logit_bias=[[1, 2.0]]).biases == ((1, 2.0),)  # type: ignore[arg-type]


def test_lists_of_stop_ids_are_stored_as_tuples() -> None:
    params = SamplingParams(stop_token_ids=[1, 2])  # type: ignore[arg-type]
    assert params.stop_token_ids == (1, 2)
    assert hash(params) == hash(SamplingParams(stop_token_ids=(1, 2)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 31),
        ("max_num_batched_tokens", 32),
        ("block_size", -1),
        ("num_blocks", 0),
        ("kv_cache_memory", 0.5),
        ("max_model_len", 1),
        ("cache_dtype", "int3"),
    ],
)
def test_a_bad_engine_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        EngineConfig(**{field: value})


def test_long_lists_of_ids_are_not_checked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    is_integer = sampling_params.is_integer
    monkeypatch.setattr(sampling_params, "is_integer", lambda value: checked.append(value) or is_integer(value))
    counts = []
    for length in (1, 10_000):
        checked.clear()
        ids = list(range(length))
        SamplingParams(allowed_token_ids=ids, stop_token_ids=ids, bad_words=[ids])
        counts.append(len(checked))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("wrong", [True, -1, 2**31, 1.0, "1", None, [1]])
def test_one_wrong_id_among_many_is_found(wrong: object) -> None:
    ids = [*range(1_000), wrong, *range(1_000)]
    for field in ("allowed_token_ids", "stop_token_ids"):
        with pytest.raises(ValueError, match=f"{field} must be a list of token ids"):
            SamplingParams(**{field: ids})  # type: ignore[arg-type]


def test_numbers_of_other_integer_types_are_ids() -> None:
    class Id(enum.IntEnum):
        PAD = 1

    assert SamplingParams(allowed_token_ids=[Id.PAD, 2]).allowed_token_ids == (1, 2)
