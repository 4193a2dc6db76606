"""Partition rules, and a model over eight virtual devices that computes what one device does."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from compilation import with_devices
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from tiny_model import TINY, random_weights

from model.checkpoint.save import save_checkpoint
from model.config.mpt_config import MptConfig
from model.config.partition_rules import get_partition_rules
from model.ops.alibi import alibi_slopes
from model.params.head_layout import arrange_heads, head_order, kv_head_order, restore_heads, slopes_in_layout
from model.params.sharding import (
    check_mesh,
    make_mesh,
    match_partition_rules,
    named_shardings,
    weight_shardings,
)
from model.params.weights import leaf_paths

WIDE = TINY | {"d_model": 64, "n_heads": 8, "vocab_size": 80}
GQA_ALL_BIASES = WIDE | {
    "no_bias": False,
    "tie_word_embeddings": False,
    "vocab_size": 81,  # no axis divides it
    "attn_config": {
        "alibi": True,
        "attn_type": "grouped_query_attention",
        "kv_n_heads": 4,
        "qk_ln": True,
        "clip_qkv": 0.5,
    },
    "ffn_config": {"ffn_type": "mptglu"},
}
LEARNED_POSITIONS = WIDE | {"no_bias": False, "attn_config": {"alibi": False}}
PER_HEAD_NORM_AND_ROPE = WIDE | {"attn_config": {"alibi": False, "rope": True, "qk_gn": True}}


# Configuration, and the mesh's fsdp and tensor sizes.
SHARDED = {
    "MHA": (WIDE, 1, 8),
    "GQA, qk_ln, clip, biases, GLU, untied": (GQA_ALL_BIASES, 2, 4),
    "two key heads of a shard": (GQA_ALL_BIASES, 4, 2),
    "biases, learned positions": (LEARNED_POSITIONS, 4, 2),
    "qk_gn, RoPE, fsdp alone": (PER_HEAD_NORM_AND_ROPE, 8, 1),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process with eight devices reports of all of `SHARDED`."""
    arguments: list[str] = []
    for config, fsdp, tensor in SHARDED.values():
        folder = tmp_path_factory.mktemp("sharded")
        save_checkpoint(random_weights(config), config, folder)
        arguments += [str(folder), str(fsdp), str(tensor)]
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sharded_run.py")), *arguments],
        env=with_devices(8) | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return dict(zip(SHARDED, map(json.loads, run.stdout.splitlines()), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_eight_devices_compute_what_one_does(reports: dict[str, dict[str, Any]], name: str) -> None:
    config, fsdp, tensor = SHARDED[name]
    report = reports[name]
    assert report["forward"] < 1e-5 * report["scale"]
    assert report["step"] < 1e-5 * report["scale"]
    parsed = MptConfig.from_dict(config)
    assert report["cache"] == [4, parsed.kv_n_heads // tensor, 8, 8]
    rows = (parsed.n_heads + 2 * parsed.kv_n_heads) * parsed.head_dim
    assert report["local_shapes"]["blocks/0/attn/wqkv/weight"] == [rows // tensor, 64 // fsdp]
    assert report["local_shapes"]["blocks/1/ffn/down_proj/weight"] == [64 // fsdp, 256 // tensor]
    assert report["local_shapes"]["norm_f/weight"] == [64]
    vocabulary = parsed.vocab_size if parsed.vocab_size % tensor else parsed.vocab_size // tensor
    assert report["local_shapes"]["wte"] == [vocabulary, 64 // fsdp]


@pytest.mark.parametrize("config", [WIDE, GQA_ALL_BIASES, LEARNED_POSITIONS, PER_HEAD_NORM_AND_ROPE])
def test_every_parameter_has_a_rule(config: dict[str, Any]) -> None:
    weights = random_weights(config)
    specs = leaf_paths(match_partition_rules(get_partition_rules(), weights))
    whole = leaf_paths(match_partition_rules(MptConfig.from_dict(config).get_partition_rules(fsdp=False), weights))
    assert specs.keys() == leaf_paths(weights).keys()
    assert specs["blocks/1/attn/wqkv/weight"] == PartitionSpec("tensor", "fsdp")
    assert specs["blocks/1/attn/out_proj/weight"] == PartitionSpec("fsdp", "tensor")
    assert whole["blocks/1/attn/out_proj/weight"] == PartitionSpec(None, "tensor")
    assert not any("fsdp" in spec for spec in whole.values())
    for path, leaf in leaf_paths(weights).items():
        assert ("fsdp" in specs[path]) == (leaf.ndim == 2), path


def test_rules_fit_trees_that_hold_weights() -> None:
    """An optimizer's state: moments by the weights' paths beside a counter."""
    weights = random_weights(TINY)
    state = {"count": np.zeros((), np.int32), "moments": (weights, weights)}
    specs = match_partition_rules(get_partition_rules(), state)
    assert specs["count"] == PartitionSpec()
    assert specs["moments"][1].wte == PartitionSpec("tensor", "fsdp")


def test_first_rule_counts_and_none_is_an_error() -> None:
    rules = ((r"^wte$", PartitionSpec("tensor")), (r"wte", PartitionSpec("fsdp")))
    assert match_partition_rules(rules, {"wte": np.zeros(2)}) == {"wte": PartitionSpec("tensor")}
    with pytest.raises(ValueError, match=r"no partition rule matches the parameter 'blocks/0/new' \(2, 3\)"):
        match_partition_rules(get_partition_rules(), {"blocks": [{"new": np.zeros((2, 3))}]})
    with pytest.raises(ValueError, match=r"'wte' has 2 axes, the parameter 1: \(5,\)"):
        match_partition_rules(get_partition_rules(), {"wte": np.zeros(5)})


def test_mesh() -> None:
    mesh = make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"fsdp": 1, "tensor": 1}
    for sizes in ({"tensor": 2}, {"fsdp": 2}, {"fsdp": 0}, {"tensor": 0}):
        with pytest.raises(ValueError, match=r"needs [0-9]+ devices, there are 1"):
            make_mesh(**sizes, devices=jax.devices()[:1])
    other = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=r"axes \('data',\); 'fsdp' and 'tensor'"):
        weight_shardings(MptConfig.from_dict(TINY), other)


def test_heads_that_cannot_be_split() -> None:
    config = MptConfig.from_dict(TINY | {"attn_config": {"alibi": True, "attn_type": "multiquery_attention"}})
    mesh: Any = SimpleNamespace(axis_names=("fsdp", "tensor"), shape={"fsdp": 1, "tensor": 4})
    with pytest.raises(ValueError, match=r"1 key/value heads cannot be split over tensor = 4 .*; use one of \[1\]"):
        check_mesh(config, mesh)


def test_shards_travel_with_the_shardings() -> None:
    shardings = weight_shardings(MptConfig.from_dict(TINY), make_mesh(devices=jax.devices()[:1]))
    assert shardings.blocks[0].attn.shards == 1
    placed = named_shardings(make_mesh(devices=jax.devices()[:1]), get_partition_rules(), random_weights(TINY))
    assert jax.tree.structure(placed) == jax.tree.structure(shardings)


def attention_config(n_heads: int, kv_heads: int, alibi: bool = True) -> MptConfig:
    attention = {"alibi": alibi, "attn_type": "grouped_query_attention", "kv_n_heads": kv_heads, "qk_ln": True}
    return MptConfig.from_dict(TINY | {"d_model": 2 * n_heads, "n_heads": n_heads, "attn_config": attention})


HEADS = st.sampled_from([(4, 4), (8, 4), (8, 8), (12, 4), (24, 8)])


@given(heads=HEADS, shards=st.sampled_from([1, 2, 4]), bias=st.booleans(), alibi=st.booleans())
def test_each_shard_gets_its_heads(heads: tuple[int, int], shards: int, bias: bool, alibi: bool) -> None:
    n_heads, kv_heads = heads
    config = attention_config(n_heads, kv_heads, alibi)
    labels = [
        f"{part}{h}" for part, count in zip("qkv", (n_heads, kv_heads, kv_heads), strict=True) for h in range(count)
    ]
    rows = np.repeat(labels, 2)  # a head's two rows carry its name
    path = "blocks/0/attn/wqkv/bias" if bias else "blocks/0/attn/wqkv/weight"
    fused = rows if bias else np.stack([rows] * 3, axis=1)
    arranged = arrange_heads(path, fused, config, shards)
    keys = np.split(kv_head_order(config, shards), shards)
    for own, run in zip(keys, np.split(arranged if bias else arranged[:, 0], shards), strict=True):
        group = n_heads // kv_heads
        queries = [head * group + g for head in own for g in range(group)]
        names = [f"q{h}" for h in queries] + [f"k{h}" for h in own] + [f"v{h}" for h in own]
        assert list(run) == [name for name in names for _ in range(2)]
    np.testing.assert_array_equal(restore_heads(path, arranged, config, shards), fused)


@given(heads=HEADS, shards=st.sampled_from([1, 2, 4]))
def test_parameters_of_heads_are_arranged_with_them(heads: tuple[int, int], shards: int) -> None:
    config = attention_config(*heads)
    order, keys = head_order(config, shards), kv_head_order(config, shards)
    columns = np.repeat(np.arange(config.n_heads), 2)[None]  # out_proj's, named by their heads
    arranged = arrange_heads("blocks/0/attn/out_proj/weight", columns, config, shards)
    np.testing.assert_array_equal(arranged[0, ::2], order)
    np.testing.assert_array_equal(restore_heads("blocks/0/attn/out_proj/weight", arranged, config, shards), columns)
    np.testing.assert_array_equal(arrange_heads("blocks/0/attn/q_norm/bias", columns[0], config, shards)[::2], order)
    k_norm = np.repeat(np.arange(config.kv_n_heads), 2)
    np.testing.assert_array_equal(arrange_heads("blocks/0/attn/k_norm/weight", k_norm, config, shards)[::2], keys)
    other = np.arange(5)
    assert arrange_heads("blocks/0/attn/out_proj/bias", other, config, shards) is other
    slopes = slopes_in_layout(config, shards)
    assert (slopes is None) == (shards == 1)
    if slopes is not None:
        np.testing.assert_array_equal(slopes, alibi_slopes(config.n_heads)[order])


@pytest.mark.parametrize(("heads", "shards"), [((32, 32), 2), ((32, 32), 8), ((64, 64), 4), ((24, 8), 2)])
def test_every_shard_sees_as_far_as_the_others(heads: tuple[int, int], shards: int) -> None:
    """A head reads keys in proportion to 1 / slope, up to the context length; in plain order one shard reads most."""
    config = attention_config(*heads)
    slopes = alibi_slopes(config.n_heads)

    def largest_part(order: np.ndarray) -> float:
        reads = np.minimum(25 / slopes[order], 8192).reshape(shards, -1).sum(axis=1)
        return float(reads.max() / reads.sum() * shards)

    arranged, plain = largest_part(head_order(config, shards)), largest_part(np.arange(config.n_heads))
    assert arranged < 1.5
    assert arranged < 0.85 * plain
