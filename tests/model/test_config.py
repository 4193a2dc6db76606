"""Configs as they are published, and what is refused. What each accepted key computes is in test_golden.py."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.config.mpt_config import MptConfig
from model.config.strict_reader import ConfigError

SHAPE: dict[str, Any] = {"model_type": "mpt", "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 256}


def read(attn: dict[str, Any] | None = None, ffn: dict[str, Any] | None = None, **keys: Any) -> MptConfig:
    sections: dict[str, Any] = {}
    if attn is not None:
        sections["attn_config"] = attn
    if ffn is not None:
        sections["ffn_config"] = ffn
    return MptConfig.from_dict({**SHAPE, **sections, **keys})


def test_storywriter() -> None:
    """Integers where floats are expected, as published; transformers 5 refuses this config."""
    config = read({"alibi": True, "alibi_bias_max": 16, "clip_qkv": 6, "attn_pdrop": 0.0}, max_seq_len=65536)
    assert (config.alibi_bias_max, config.clip_qkv, config.max_seq_len) == (16.0, 6.0, 65536)
    assert config.length_limit is None  # ALiBi extrapolates


def test_krutrim() -> None:
    """48 heads of 96 in groups of six."""
    sizes = {"d_model": 4608, "n_heads": 48, "n_layers": 32, "vocab_size": 70400, "max_seq_len": 4096}
    attention = {"alibi": True, "attn_type": "grouped_query_attention", "kv_n_heads": 8, "attn_impl": "triton"}
    config = read(attention, **sizes)
    assert (config.head_dim, config.kv_n_heads, config.ffn_hidden_size) == (96, 8, 18432)


def test_floats_where_integers_are_expected() -> None:
    config = read({"alibi": True}, d_model=64.0, expansion_ratio=4.0, logit_scale=1, embedding_fraction=1)
    assert (config.d_model, config.ffn_hidden_size, config.logit_scale) == (64, 256, 1.0)


def test_learned_positions_yield_to_alibi_and_rope() -> None:
    assert read({}, learned_pos_emb=True).learned_positions
    assert not read({"alibi": True}, learned_pos_emb=True).learned_positions
    assert not read({"rope": True}, learned_pos_emb=True).learned_positions


def test_lengths_that_positions_allow() -> None:
    assert read({}, max_seq_len=64).length_limit == 64
    assert read({"rope": True}, max_seq_len=64).length_limit is None
    dynamic = {"rope": True, "rope_impl": "hf", "rope_hf_config": {"type": "dynamic", "factor": 2.0}}
    assert read(dynamic, max_seq_len=64).length_limit == 64


def test_zero_clip_is_none() -> None:
    """llm-foundry tests `if clip_qkv`."""
    assert read({"clip_qkv": 0}).clip_qkv is None


def test_logit_scale_by_name() -> None:
    assert read(logit_scale="inv_sqrt_d_model").logit_scale == 1 / math.sqrt(64)


def test_mosaic_gpt_keys_find_their_places() -> None:
    flat = {**SHAPE, "model_type": "mosaic_gpt", "alibi": True, "attn_qk_ln": True, "attn_clip_qkv": 8, "mlp_ratio": 2}
    config = MptConfig.from_dict({**flat, "low_precision_layernorm": True, "max_seq_len": 128})
    assert (config.alibi, config.qk_norm, config.clip_qkv, config.ffn_hidden_size) == (True, "ln", 8.0, 128)


def test_transformers_calls_eps_by_another_name() -> None:
    assert read(layer_norm_epsilon=1e-3).norm_eps == 1e-3
    with pytest.raises(ConfigError, match=r"'layer_norm_epsilon' is 0\.001; norm_eps is 1e-05"):
        read(layer_norm_epsilon=1e-3, norm_eps=1e-5)


def test_transformers_leaves_out_its_own_defaults() -> None:
    """As transformers 4 saved it: ALiBi and no biases are defaults there, and not in llm-foundry."""
    config = MptConfig.from_dict({**SHAPE, "initializer_range": 0.02, "attn_config": {"model_type": ""}})
    assert (config.alibi, config.bias, config.learned_positions) == (True, False, False)
    config = MptConfig.from_dict({**SHAPE, "attn_config": {}})
    assert (config.alibi, config.bias, config.learned_positions) == (False, True, True)


def test_transformers_own_names_are_read() -> None:
    """Alone or beside the family's."""
    theirs = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config = read(**theirs)
    assert config == MptConfig.from_dict({"model_type": "mpt", "vocab_size": 256, **theirs})
    assert (config.d_model, config.n_heads, config.n_layers, config.max_seq_len) == (64, 4, 2, 512)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_integers_that_are_dequantised_are_no_reason_to_refuse(method: str) -> None:
    assert read(quantization_config={"quant_method": method, "bits": 4}) == read()


@pytest.mark.parametrize("key", ["rope_scaling", "quantization_config", "sliding_window", "unheard_of"])
def test_what_is_null_is_absent(key: str) -> None:
    assert read(**{key: None}) == read()
    assert read({key: None}) == read({})


def test_pointers_of_git_lfs_are_no_configs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1234\n")
    with pytest.raises(ConfigError, match=r"config\.json is a Git LFS pointer.*1,234 bytes.*git lfs pull"):
        MptConfig.from_file(tmp_path)


def test_hidden_size_given_outright() -> None:
    """llm-foundry ignores the ratio then."""
    assert read(ffn={"ffn_hidden_size": 171}, expansion_ratio=2.67).ffn_hidden_size == 171


def test_auto_map_is_data(tmp_path: Path) -> None:
    """A config names Python files, which are neither imported nor run."""
    marker = tmp_path / "ran"
    (tmp_path / "modeling_mpt.py").write_text(f"open({str(marker)!r}, 'w')")
    auto_map = {"AutoConfig": "modeling_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"}
    (tmp_path / "config.json").write_text(json.dumps({**SHAPE, "auto_map": auto_map}))
    assert MptConfig.from_file(tmp_path).d_model == 64
    assert not marker.exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"attn": {"prefix_lm": True}},
            "'attn_config.prefix_lm' is True; prefix language models, which attend to all of a prompt in both"
            " directions, are not supported, and ignoring it would change the model's output. No published MPT has"
            " it, and llm-foundry removed the key in 0.7; run this one with llm-foundry 0.6",
        ),
        (
            {"block_overrides": {"order": [{"name": "default"}]}},
            "'block_overrides' is {'order': [{'name': 'default'}]}; blocks that differ from each other are not"
            " supported, and ignoring it would change the model's output. No published MPT has it; run this"
            " one with llm-foundry, or train it without the key",
        ),
        (
            {"head_dim": 24},
            "'head_dim' is 24; heads of another width than d_model / n_heads (16) are not supported, and ignoring it"
            " would change the model's output. No published MPT has it, and llm-foundry has had the key only since"
            " 0.22; run this one with llm-foundry, or train it without the key",
        ),
        ({"attn": {"clip_qkw": 6}}, "'attn_config.clip_qkw' is 6; unknown key; did you mean 'attn_config.clip_qkv'?"),
        ({"attn": {"clip_qkv": "6"}}, "'attn_config.clip_qkv' is '6'; it must be a finite number"),
        ({"attn": {"clip_qkv": -1}}, "'attn_config.clip_qkv' is -1.0; it must be a number above 0"),
        ({"attn": {"alibi": "yes"}}, "'attn_config.alibi' is 'yes'; it must be true or false"),
        ({"attn": {"kv_n_heads": 2}}, "'attn_config.kv_n_heads' is 2; multihead_attention has 4"),
        ({"attn": {"attn_type": "grouped_query_attention"}}, "'attn_config.kv_n_heads' is missing"),
        ({"attn": {"attn_type": "grouped_query_attention", "kv_n_heads": 3}}, "kv_n_heads (3) must divide n_heads (4)"),
        ({"attn": {"attn_type": "linear"}}, "'attn_config.attn_type' is 'linear'; this package runs grouped"),
        ({"attn": {"qk_ln": True, "qk_gn": True}}, "'attn_config.qk_gn' is True; qk_ln is true as well"),
        ({"attn": {"reuse_kv_layer_idx": -1}}, "'attn_config.reuse_kv_layer_idx' is -1"),
        (
            {"attn": {"rope": True, "rope_dail_config": {"type": "xpos"}}},
            "'attn_config.rope_dail_config.type' is 'xpos'; xPos is not supported, and ignoring it would change the"
            " model's output. No published MPT has it; run this one with llm-foundry, or train it without the key",
        ),
        (
            {"attn": {"rope": True, "rope_dail_config": {"type": "ypos"}}},
            "'attn_config.rope_dail_config.type' is 'ypos'; this package runs original",
        ),
        (
            {"attn": {"rope": True, "rope_impl": "hf", "rope_hf_config": {"type": "yarn"}}},
            "rope_hf_config.type' is 'yarn'",
        ),
        ({"attn": {"sliding_window_size": -2}}, "'attn_config.sliding_window_size' is -2"),
        ({"ffn": {"ffn_type": "mb_moe"}}, "'ffn_config.ffn_type' is 'mb_moe'; this package runs mptglu, mptmlp"),
        ({"ffn": {"moe_num_experts": 4}}, "'ffn_config.moe_num_experts' is 4; unknown key"),
        ({"ffn": {"ffn_act_fn": {"name": "gelo"}}}, "'ffn_config.ffn_act_fn' is {'name': 'gelo'}"),
        ({"ffn": {"ffn_act_fn": {"name": "relu", "slope": 1}}}, "'ffn_config.ffn_act_fn.slope' is 1; relu takes no"),
        ({"norm_type": "groupnorm"}, "'norm_type' is 'groupnorm'; this package runs layernorm"),
        ({"d_model": 65}, "d_model (65) must be a multiple of n_heads (4)"),
        ({"d_model": None}, "'d_model' is missing"),
        ({"n_layers": 2.5}, "'n_layers' is 2.5; it must be an integer of at least 1"),
        ({"n_heads": True}, "'n_heads' is True; it must be an integer"),
        ({"expansion_ratio": 0.01}, "'expansion_ratio' gives 0.64 feed-forward features"),
        ({"pruned_heads": {"0": [1]}}, "'pruned_heads' is {'0': [1]}"),
        ({"vocab_size": 10**400}, "'vocab_size' is 1000"),
        ({"ffn": {"ffn_act_fn": {"name": ["gelu"]}}}, "'ffn_config.ffn_act_fn' is {'name': ['gelu']}"),
        ({"ffn": {"ffn_act_fn": {"name": "elu", "alpha": None}}}, "'ffn_config.ffn_act_fn.alpha' is None"),
        ({"logit_scale": "inv_sqrt"}, "'logit_scale' is 'inv_sqrt'; it must be a number or 'inv_sqrt_d_model'"),
        ({"block_overrides": {"order": []}}, "'block_overrides' is {'order': []}"),
        ({"head_dim": 32}, "'head_dim' is 32; heads of another width"),
        ({"model_type": "llama"}, "'model_type' is 'llama'; this package runs 'mpt' and 'mosaic_gpt'"),
        ({"n_layer": 2}, "'n_layer' is 2; unknown key; did you mean 'n_layers'?"),
        ({"nheads": 2}, "'nheads' is 2; unknown key; did you mean 'n_heads'?"),
        ({"moe_config": {}}, "'moe_config' is {}; unknown key; no MPT model is known to have it"),
        ({"x" * 500: 1}, "' is 1; unknown key; no MPT model"),
        ({"hidden_size": 32}, "'hidden_size' is 32; d_model is 64, and both mean the same; keep the right one"),
        (
            {"quantization_config": {"quant_method": "eetq", "bits": 8}},
            "'quantization_config' says that the weights are quantised (8-bit eetq), which is not read; load the",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "quantised (bitsandbytes)"),
        ({"quantization_config": "awq"}, "the weights are quantised (method not named)"),
    ],
)
def test_refusals_name_key_value_and_fix(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(**keys)
    assert message in str(refusal.value)


def test_files_that_are_not_configs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        MptConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        MptConfig.from_file(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="of type list"):
        MptConfig.from_file(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ["n_heads", "expansion_ratio", "attn_config", "ffn_config", "norm_type", "logit_scale", "eos_token_id", "dtype"]
ATTN = ["attn_type", "clip_qkv", "rope", "rope_hf_config", "sliding_window_size", "softmax_scale", "kv_n_heads"]


@given(st.dictionaries(st.sampled_from(KEYS), json_values), st.dictionaries(st.sampled_from(ATTN), json_values))
def test_any_json_is_read_or_refused_shortly(keys: dict[str, Any], attn: dict[str, Any]) -> None:
    refusal = ""
    try:
        hash(MptConfig.from_dict({**SHAPE, "attn_config": attn, **keys}))
    except ConfigError as error:
        refusal = str(error)
    assert len(refusal) < 600
