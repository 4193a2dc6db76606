"""Make and check the golden cases: tiny MPT checkpoints with the logits that llm-foundry 0.22.0's own code gives.

This script is a development tool; the tests only read the folders it writes. It needs an environment of its own
(Python 3.11), because llm-foundry 0.22 wants an old transformers:

    python3.11 -m venv lf && . lf/bin/activate
    pip install torch==2.13.0 numpy safetensors transformers==4.51.3 einops packaging catalogue tabulate \
        triton setuptools wheel psutil ninja
    pip install --no-deps llm-foundry==0.22.0
    FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE FLASH_ATTENTION_FORCE_BUILD=TRUE \
        pip install --no-deps --no-build-isolation flash-attn==2.7.4.post1
    python make_golden.py make                # write every case beside this file
    python make_golden.py make rope-dail ...  # or only the named ones
    python make_golden.py check               # recompute every llm-foundry case and compare

and a second one for the two cases in the form transformers 5 saves (`make` must have run first):

    python3.11 -m venv t5 && . t5/bin/activate && pip install torch==2.13.0 numpy safetensors transformers==5.23.0
    python make_golden.py make-transformers

No composer, streaming, megablocks or CUDA is needed: llm-foundry's package `__init__`s, which import all of them, are
replaced by empty package shells, and `composer` by two placeholders that the forward pass never touches. The modelling
code (`llmfoundry/models/mpt`, `llmfoundry/models/layers`) runs unmodified, in eval mode, attn_impl torch, on CPU.

flash-attn supplies the `dail` rotary embedding and the `triton_rmsnorm` function. Its `RotaryEmbedding` class (which
computes the angles) is used as it is; the two Triton kernels need a GPU, so the package's own PyTorch reference
functions (`apply_rotary_emb_torch`, `rms_norm_ref`) take their place. (Run through Triton's interpreter, the rotary
kernel gave exactly the reference function's numbers.)
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import io
import json
import logging
import math
import os
import pickle
import sys
import tempfile
import types
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
GREEDY = 24
MARGIN = 0.01  # the least gap between the best and the second logit at every greedy step: another order of sums is safe

# ---------------------------------------------------------------------------------------------------------------------
# llm-foundry without its heavy dependencies


def _shell(name: str, path: Path | None = None, **attrs: Any) -> types.ModuleType:
    """Put an empty module (a package where `path` is given) into sys.modules."""
    module = types.ModuleType(name)
    if path is not None:
        module.__path__ = [str(path)]  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=path is not None)
    for key, value in attrs.items():
        setattr(module, key, value)
    sys.modules[name] = module
    return module


def import_llm_foundry() -> Any:
    """Import llm-foundry's unmodified MPT modelling module and return it."""
    found = importlib.util.find_spec("llmfoundry")
    assert found is not None, "llm-foundry is not installed; see this file's docstring"
    assert found.submodule_search_locations
    root = Path(found.submodule_search_locations[0])
    for name in ("llmfoundry", "llmfoundry.models", "llmfoundry.utils"):
        _shell(name, root.joinpath(*name.split(".")[1:]))
    _shell("composer", Path("/nonexistent"))
    _shell("composer.models", HuggingFaceModel=torch.nn.Module)
    _shell("composer.utils", dist=types.SimpleNamespace(get_local_rank=lambda: 0))

    found = importlib.util.find_spec("flash_attn")
    assert found is not None, "flash-attn is not installed; see this file's docstring"
    assert found.submodule_search_locations
    flash = Path(found.submodule_search_locations[0])
    _shell("flash_attn", flash, __version__="2.7.4.post1")
    _shell("flash_attn.bert_padding", unpad_input=None, pad_input=None)

    # The real modules, imported with the Triton kernels out of reach: only their PyTorch reference functions are used.
    real = torch.cuda.current_device, torch.cuda.get_device_properties
    torch.cuda.current_device = lambda: 0  # layer_norm.py asks for the warp size at import
    torch.cuda.get_device_properties = lambda _=None: types.SimpleNamespace(warp_size=32)  # type: ignore[assignment]
    try:
        import flash_attn.layers.rotary as rotary
        import flash_attn.ops.triton.layer_norm as layer_norm
    finally:
        torch.cuda.current_device, torch.cuda.get_device_properties = real  # type: ignore[assignment]

    def apply_rotary(
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        seqlen_offsets: int = 0,
        cu_seqlens: Any = None,
        max_seqlen: Any = None,
        interleaved: bool = False,
        inplace: bool = False,
        conjugate: bool = False,
    ) -> torch.Tensor:
        assert cu_seqlens is None
        assert not conjugate
        rows = slice(seqlen_offsets, seqlen_offsets + x.shape[1])
        out = rotary.apply_rotary_emb_torch(x, cos[rows], sin[rows], interleaved)
        return x.copy_(out) if inplace else out

    rotary.apply_rotary = apply_rotary

    def rms_norm_fn(x: torch.Tensor, weight: torch.Tensor, bias: None, residual_in_fp32: bool, **keys: Any) -> Any:
        assert not residual_in_fp32
        return layer_norm.rms_norm_ref(x, weight, bias, **keys)

    layer_norm.rms_norm_fn = rms_norm_fn

    import llmfoundry.models.mpt.modeling_mpt as modeling

    return modeling


# ---------------------------------------------------------------------------------------------------------------------
# Configurations: the published style, and what llm-foundry 0.22 takes


def base_config() -> dict[str, Any]:
    """A config.json in the style of the published MPT models."""
    return {
        "model_type": "mpt",
        "architectures": ["MPTForCausalLM"],
        "d_model": 48,
        "n_heads": 4,
        "n_layers": 2,
        "vocab_size": 256,
        "max_seq_len": 64,
        "expansion_ratio": 4,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "learned_pos_emb": True,
        "emb_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embedding_fraction": 1.0,
        "logit_scale": None,
        "use_cache": False,
        "torch_dtype": "bfloat16",
        "init_device": "cpu",
        "verbose": 0,
        "attn_config": {
            "attn_type": "multihead_attention",
            "attn_pdrop": 0.0,
            "attn_impl": "torch",
            "qk_ln": False,
            "clip_qkv": None,
            "softmax_scale": None,
            "prefix_lm": False,
            "attn_uses_sequence_id": False,
            "alibi": True,
            "alibi_bias_max": 8,
        },
    }


REMOVE = object()


def merged(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`config` with `change` laid over it, dictionaries merged, REMOVE dropping a key."""
    out = copy.deepcopy(config)
    for key, value in change.items():
        if value is REMOVE:
            out.pop(key, None)
        elif isinstance(value, dict) and isinstance(out.get(key), dict):
            out[key] = merged(out[key], value)
        else:
            out[key] = copy.deepcopy(value)
    return out


def mosaic_gpt_config(config: dict[str, Any]) -> dict[str, Any]:
    """The same model as a flat config.json of the mosaic_gpt time (2023-04)."""
    flat = copy.deepcopy(config)
    attn = flat.pop("attn_config")
    flat["model_type"], flat["architectures"] = "mosaic_gpt", ["MosaicGPT"]
    flat["mlp_ratio"] = flat.pop("expansion_ratio")
    flat["low_precision_layernorm"] = flat.pop("norm_type") == "low_precision_layernorm"
    for key in ("alibi", "alibi_bias_max", "softmax_scale", "prefix_lm", "attn_uses_sequence_id"):
        flat[key] = attn[key]
    for key in ("qk_ln", "clip_qkv", "impl", "pdrop"):
        flat[f"attn_{key}"] = attn[key] if key in attn else attn[f"attn_{key}"]
    return flat


MOSAIC_NAMES = (
    (".norm_1.", ".ln_1."),
    (".norm_2.", ".ln_2."),
    (".ffn.up_proj.", ".mlp.mlp_up."),
    (".ffn.down_proj.", ".mlp.mlp_down."),
    ("transformer.norm_f.", "transformer.ln_f."),
)


def rename(weights: dict[str, torch.Tensor], to_mosaic: bool) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in weights.items():
        for new, old in MOSAIC_NAMES:
            name = name.replace(new, old) if to_mosaic else name.replace(old, new)
        out[name] = tensor
    return out


def lf_kwargs(config: dict[str, Any]) -> dict[str, Any]:
    """What llm-foundry 0.22's MPTConfig is given for a published config.json."""
    kwargs = copy.deepcopy(config)
    if kwargs["model_type"] == "mosaic_gpt":
        attn = {key: kwargs.pop(key) for key in ("alibi", "alibi_bias_max", "softmax_scale", "attn_uses_sequence_id")}
        for key in ("qk_ln", "clip_qkv"):
            attn[key] = kwargs.pop(f"attn_{key}")
        for key in ("attn_impl", "attn_pdrop"):
            attn[key] = kwargs.pop(key)
        kwargs.pop("prefix_lm", None)
        kwargs["attn_config"] = attn
        kwargs["expansion_ratio"] = kwargs.pop("mlp_ratio")
        kwargs["norm_type"] = "low_precision_layernorm" if kwargs.pop("low_precision_layernorm") else "layernorm"
    for key in ("model_type", "architectures", "torch_dtype", "verbose", "transformers_version", "dtype"):
        kwargs.pop(key, None)
    # 0.22's attention class takes no prefix_lm (removed in 0.7) and would refuse the published configs that carry it.
    kwargs["attn_config"].pop("prefix_lm", None)
    kwargs["attn_config"]["attn_impl"] = "torch"
    return kwargs


# ---------------------------------------------------------------------------------------------------------------------
# Cases


@dataclass
class Case:
    """One case: what differs from `base_config`, and how it is run and stored."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    length: int = 48
    prompt: int = 12
    # A second configuration that must give visibly different logits with the same weights: proof that the case tests
    # the switch it is named for.
    unlike: dict[str, Any] | None = None
    effect: float = 0.02
    run_length: int | None = None  # max_seq_len while running, set after construction, for cases beyond it
    dtype: torch.dtype = torch.bfloat16
    form: str = "safetensors"
    std: dict[str, float] = field(default_factory=dict)  # standard deviations other than the default, by module name
    shift: dict[str, float] = field(default_factory=dict)  # means of biases, by module name


def _attn(**keys: Any) -> dict[str, Any]:
    return {"attn_config": keys}


def _rope(impl: str, **keys: Any) -> dict[str, Any]:
    default = {
        "dail": {"rope_dail_config": {"type": "original", "pos_idx_in_fp32": True, "xpos_scale_base": 512}},
        "hf": {"rope_hf_config": {"type": "no_scaling", "factor": 1.0}},
    }[impl]
    return {"alibi": False, "rope": True, "rope_theta": 10000, "rope_impl": impl, **default, **keys}


W64 = {"d_model": 64}
GQA = {"attn_type": "grouped_query_attention", "kv_n_heads": 2}
NO_SCALING = _attn(rope_hf_config={"type": "no_scaling", "factor": 1.0})
GELU = {"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}


def _act(name: str, **arguments: Any) -> dict[str, Any]:
    return {"ffn_config": {"ffn_type": "mptmlp", "ffn_act_fn": {"name": name, **arguments}}}


def _moe(mlp_type: str, top_k: int, norm: float | None) -> dict[str, Any]:
    return {
        "d_model": 32,
        "expansion_ratio": 2,
        "ffn_config": {
            "ffn_type": "torch_dmoe",
            "moe_num_experts": 4,
            "moe_top_k": top_k,
            "mlp_type": mlp_type,
            "moe_jitter_eps": None,
            "moe_normalize_expert_weights": norm,
            "uniform_expert_assignment": False,
            "ffn_act_fn": {"name": "silu"},
        },
    }


def _overrides(order: list[dict[str, Any]], overrides: dict[str, Any], layers: int = 4, **attn: Any) -> dict[str, Any]:
    return {
        "n_layers": layers,
        "expansion_ratio": 2,
        "learned_pos_emb": False,  # llm-foundry looks at it before rope or alibi turns it off, and refuses nope
        "attn_config": attn,
        "block_overrides": {"order": order, "overrides": overrides},
    }


TUNING = {"floor_scale": 8, "attn_scale": 0.5}

CASES = [
    # rotary embeddings
    Case("rope-dail", W64 | _attn(**_rope("dail")), unlike=_attn(rope=False)),
    Case(
        "rope-dail-gqa-theta",
        W64 | _attn(**_rope("dail", rope_theta=500000), **GQA),
        length=64,
        unlike=_attn(rope_theta=10000),
    ),
    Case(
        "rope-dail-xpos",
        W64
        | _attn(**_rope("dail", rope_dail_config={"type": "xpos", "pos_idx_in_fp32": True, "xpos_scale_base": 512})),
        length=64,
        unlike=_attn(rope_dail_config={"type": "original"}),
    ),
    Case(
        "rope-hf-linear",
        W64 | _attn(**_rope("hf", rope_hf_config={"type": "linear", "factor": 2.0})),
        unlike=NO_SCALING,
    ),
    Case("rope-hf-dynamic", _attn(**_rope("hf", rope_hf_config={"type": "dynamic", "factor": 2.0})), length=64),
    Case(
        "rope-hf-dynamic-beyond",
        {"max_seq_len": 32, **_attn(**_rope("hf", rope_hf_config={"type": "dynamic", "factor": 2.0}))},
        length=96,
        prompt=20,
        run_length=128,
        unlike=NO_SCALING,
    ),
    Case(
        "rope-hf-llama3",
        W64
        | _attn(
            **_rope(
                "hf",
                rope_hf_config={
                    "type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            )
        ),
        length=64,
        unlike=NO_SCALING,
    ),
    Case("rope-hf-theta", W64 | _attn(**_rope("hf", rope_theta=500000)), length=64, unlike=_attn(rope_theta=10000)),
    Case(
        "rope-hf-window-gqa",
        _attn(**_rope("hf"), **GQA, sliding_window_size=8),
        length=60,
        unlike=_attn(sliding_window_size=9),
    ),
    Case(
        "rope-hf-clip-qk-ln-biases",
        {"no_bias": False, **_attn(**_rope("hf"), qk_ln=True, clip_qkv=1.5, softmax_scale=0.4)},
        unlike=_attn(clip_qkv=None),
    ),
    Case("rope-and-alibi", _attn(**{**_rope("hf"), "alibi": True}), unlike=_attn(rope=False)),
    # biases
    Case("bias-attention-only", {"attention_bias": True}),
    Case("bias-all-but-attention", {"no_bias": False, "attention_bias": False, **_attn(qk_ln=True)}),
    Case(
        "biases-gqa-qk-ln-clip",
        {"no_bias": False, **_attn(**GQA, qk_ln=True, clip_qkv=1.25)},
        unlike=_attn(clip_qkv=None),
    ),
    # attention
    Case("mqa-qk-ln", _attn(attn_type="multiquery_attention", qk_ln=True)),
    Case("mqa-rope-dail-biases", {"no_bias": False, **_attn(**_rope("dail"), attn_type="multiquery_attention")}),
    Case("qk-gn-biases", {"no_bias": False, **_attn(qk_gn=True)}),
    Case("separate-qkv-gqa-biases", {"no_bias": False, **_attn(**GQA, fused_qkv=False)}),
    Case("separate-qkv-clip-qk-ln", _attn(**GQA, fused_qkv=False, clip_qkv=1.0, qk_ln=True), unlike=_attn(clip_qkv=6)),
    Case("window-alibi", _attn(sliding_window_size=5, alibi_bias_max=4), unlike=_attn(sliding_window_size=6)),
    Case(
        "softcaps-logit-scale",
        {"final_logit_softcapping": 2.5, "logit_scale": 0.7, **_attn(attn_logit_softcapping=1.5)},
        unlike={"final_logit_softcapping": None, "logit_scale": None},
    ),
    Case("softmax-scale-gqa", _attn(**GQA, softmax_scale=0.1), unlike=_attn(softmax_scale=None)),
    Case("storywriter-clip", _attn(clip_qkv=1, alibi_bias_max=16), unlike=_attn(alibi_bias_max=8)),
    Case("heads-20", {"d_model": 80, "n_heads": 20, **_attn(alibi_bias_max=5)}, unlike=_attn(alibi_bias_max=8)),
    Case("heads-24-gqa", {"d_model": 96, "n_heads": 24, "expansion_ratio": 2, **_attn(**{**GQA, "kv_n_heads": 8})}),
    Case("head-dim-fused", {"head_dim": 12}),
    Case(
        "head-dim-24",
        {"head_dim": 24, **_attn(**GQA, fused_qkv=False, qk_ln=True)},
        unlike=_attn(softmax_scale=1 / math.sqrt(24)),
    ),
    Case("head-dim-24-rope-hf", {"head_dim": 24, **_attn(**_rope("hf"), fused_qkv=False)}),
    Case("head-dim-24-rope-dail", {"head_dim": 24, **_attn(**_rope("dail"), fused_qkv=False)}),
    Case("attn-uses-sequence-id", _attn(attn_uses_sequence_id=True)),
    Case("past-max-seq-len-gqa", _attn(**GQA, alibi_bias_max=16), length=144, prompt=90, run_length=160),
    Case(
        "temperature-tuning",
        _attn(**_rope("hf"), attn_temperature_tuning=TUNING),
        length=60,
        unlike=_attn(attn_temperature_tuning=REMOVE),
    ),
    # norms
    Case("norm-eps", {"norm_type": "layernorm", "norm_eps": 1e-3}, unlike={"norm_eps": 1e-5}, std={"wte": 0.03}),
    Case(
        "norm-eps-qk-ln",
        {"norm_eps": 1e-3, **_attn(qk_ln=True)},
        unlike=_attn(norm_eps=1e-3),
        std={"wte": 0.03, "Wqkv": 0.02},
    ),
    Case(
        "rmsnorm-qk-ln-biases",
        {"no_bias": False, "norm_type": "rmsnorm", "norm_eps": 1e-4, **_attn(qk_ln=True)},
        unlike=_attn(norm_type="rmsnorm"),
    ),
    Case(
        "low-precision-rmsnorm",
        {"norm_type": "low_precision_rmsnorm", "norm_eps": 1e-3},
        unlike={"norm_eps": 1e-5},
        std={"wte": 0.03},
    ),
    Case(
        "triton-rmsnorm",
        {"norm_type": "triton_rmsnorm", "norm_eps": 1e-3},
        unlike={"norm_eps": 1e-5},
        std={"wte": 0.03},
    ),
    # feed-forward
    Case("act-relu", _act("relu"), unlike=GELU),
    Case("act-silu", _act("silu"), unlike=GELU),
    Case("act-quick-gelu", _act("quick_gelu"), unlike=GELU),
    # gelu's tanh form differs from its erf form most at about -2.2 and 2.2; a bias puts the units there
    Case(
        "act-gelu-tanh",
        {"no_bias": False, **_act("gelu", approximate="tanh")},
        unlike={"ffn_config": {"ffn_act_fn": {"approximate": "none"}}},
        std={"up_proj": 0.06, "down_proj": 1.0},
        shift={"up_proj": -2.3},
    ),
    Case(
        "act-gelu-erf",
        {"no_bias": False},
        unlike={"ffn_config": {"ffn_act_fn": {"name": "gelu", "approximate": "tanh"}}},
        std={"up_proj": 0.06, "down_proj": 1.0},
        shift={"up_proj": -2.3},
    ),
    Case("act-leaky-relu", _act("leaky_relu", negative_slope=0.2), unlike=_act("leaky_relu", negative_slope=0.01)),
    Case("act-elu", _act("elu", alpha=0.6), unlike=_act("elu", alpha=1.0)),
    Case("act-softplus", _act("softplus", beta=2.0, threshold=20.0), unlike=_act("softplus", beta=1.0)),
    Case("act-mish", _act("mish"), unlike=GELU),
    Case("glu-gelu-biases", {"no_bias": False, "expansion_ratio": 2, "ffn_config": {"ffn_type": "mptglu"}}),
    Case(
        "glu-gelu-tanh-biases",
        {
            "no_bias": False,
            "expansion_ratio": 2,
            "ffn_config": {"ffn_type": "mptglu", "ffn_act_fn": {"name": "gelu", "approximate": "tanh"}},
        },
        unlike={"ffn_config": {"ffn_act_fn": {"approximate": "none"}}},
        std={"gate_proj": 0.06, "down_proj": 1.0},
        shift={"gate_proj": -2.3},
    ),
    Case("ffn-hidden-size", {"ffn_config": {"ffn_type": "mptmlp", "ffn_hidden_size": 200}}),
    Case("expansion-2.5", {"expansion_ratio": 2.5}),
    Case("moe-torch-dmoe-mlp", _moe("mlp", 1, None)),
    Case("moe-torch-dmoe-glu", _moe("glu", 2, 1.0)),
    # embeddings and head
    Case("learned-positions-full", _attn(alibi=False), length=64, prompt=40),
    Case("no-positions", {"learned_pos_emb": False, **_attn(alibi=False)}),
    Case("untied-logit-scale", {"tie_word_embeddings": False, "logit_scale": 0.35}, unlike={"logit_scale": None}),
    Case("embedding-fraction", {"embedding_fraction": 0.3}),
    Case("vocab-250", {"vocab_size": 250}),
    Case("vocab-131-untied", {"vocab_size": 131, "tie_word_embeddings": False}),
    Case(
        "lenient-types",
        {
            "expansion_ratio": 4.0,
            "logit_scale": 1,
            "embedding_fraction": 1,
            "emb_pdrop": 0,
            "fc_type": "torch",
            **_attn(alibi_bias_max=8.0, clip_qkv=2, attn_pdrop=0),
        },
    ),
    # many switches at once
    Case(
        "many-switches-rope",
        {
            "no_bias": False,
            "norm_type": "rmsnorm",
            "norm_eps": 1e-4,
            "expansion_ratio": 2,
            "tie_word_embeddings": False,
            "logit_scale": 0.8,
            "final_logit_softcapping": 12.0,
            "ffn_config": {"ffn_type": "mptglu", "ffn_act_fn": {"name": "silu"}},
            **_attn(
                **_rope("hf", rope_theta=20000, rope_hf_config={"type": "linear", "factor": 1.5}),
                **GQA,
                qk_gn=True,
                clip_qkv=3.0,
                softmax_scale=0.35,
                attn_logit_softcapping=6.0,
                sliding_window_size=11,
            ),
        },
        length=60,
        unlike=_attn(attn_logit_softcapping=None),
    ),
    Case(
        "many-switches-alibi",
        {
            "d_model": 72,
            "n_heads": 6,
            "no_bias": False,
            "attention_bias": False,
            "norm_type": "layernorm",
            "expansion_ratio": 1.5,
            "embedding_fraction": 0.5,
            "logit_scale": "inv_sqrt_d_model",
            "vocab_size": 200,
            "ffn_config": {"ffn_type": "mptmlp", "ffn_act_fn": {"name": "quick_gelu"}},
            **_attn(
                attn_type="multiquery_attention",
                qk_ln=True,
                fused_qkv=False,
                clip_qkv=2,
                alibi_bias_max=12,
                attn_logit_softcapping=4.0,
                sliding_window_size=20,
            ),
        },
        length=60,
        unlike=_attn(alibi_bias_max=8),
    ),
    # the old mosaic_gpt form
    Case("mosaic-gpt-clip", _attn(clip_qkv=1.5, softmax_scale=0.2), form="mosaic_gpt", unlike=_attn(clip_qkv=None)),
    Case(
        "mosaic-gpt-positions-biases",
        {"no_bias": False, "norm_type": "layernorm", "logit_scale": "inv_sqrt_d_model", **_attn(alibi=False)},
        form="mosaic_gpt",
    ),
    # layers that differ from one another (block_overrides)
    Case(
        "override-window-nope",
        _overrides(
            [{"repeat": 3, "name": "window"}, {"name": "nope"}],
            {"window": _attn(sliding_window_size=6), "nope": _attn(nope=True)},
            **_rope("hf"),
        ),
        length=60,
        unlike={"block_overrides": {"overrides": {"nope": _attn(nope=False)}}},
    ),
    Case(
        "override-reuse-kv",
        _overrides(
            [
                {"name": "default"},
                {"name": "reuse"},
                {"order": [{"name": "window"}, {"name": "window_reuse"}, {"name": "window_reuse"}]},
                {"name": "reuse_first"},
            ],
            {
                "reuse": _attn(reuse_kv_layer_idx=-1),
                "window": _attn(sliding_window_size=6),
                "window_reuse": _attn(sliding_window_size=6, reuse_kv_layer_idx=-1),
                "reuse_first": _attn(reuse_kv_layer_idx=-5),
            },
            layers=6,
            **_rope("hf"),
            **GQA,
            qk_ln=True,
        ),
    ),
    Case(
        "override-reuse-kv-alibi",
        _overrides([{"name": "default"}, {"name": "reuse"}], {"reuse": _attn(reuse_kv_layer_idx=-1)}, layers=2),
    ),
    Case(
        "override-reuse-kv-x",
        _overrides(
            [{"name": "default"}, {"name": "reuse"}, {"name": "default"}, {"name": "reuse"}],
            {"reuse": _attn(reuse_kv_x_layer_idx=-1)},
            fused_qkv=False,
        ),
    ),
    Case(
        "override-temperature-tuning",
        _overrides(
            [{"name": "default"}, {"name": "tuned"}],
            {"tuned": _attn(attn_temperature_tuning={"floor_scale": 4, "attn_scale": 0.3}, nope=True)},
            layers=2,
            **_rope("hf"),
        ),
        length=60,
    ),
    # the same kind of model in other files
    Case("lf-saved", {"no_bias": False, **_attn(**GQA, qk_ln=True)}, form="lf-saved"),
    Case("safetensors-sharded", form="safetensors-sharded"),
    Case("bin-bf16", form="bin"),
    Case("bin-sharded-f32", {"torch_dtype": "float32"}, dtype=torch.float32, form="bin-sharded"),
    Case("bin-sharded-f16", {"torch_dtype": "float16"}, dtype=torch.float16, form="bin-sharded"),
    Case("bin-legacy", form="bin-legacy"),
    Case("bin-views", {"torch_dtype": "float32"}, dtype=torch.float32, form="bin-views"),
    Case("hostile-bin", {"d_model": 16, "expansion_ratio": 1}, form="hostile-bin"),
    Case("hostile-bin-legacy", {"d_model": 16, "expansion_ratio": 1}, form="hostile-bin-legacy"),
]

# Finished by `make-transformers`: llm-foundry's answer and weights wait in a scratch folder.
TRANSFORMERS_CASES = [
    Case("transformers-alibi", {}, form="scratch"),
    Case("transformers-norm-eps", {"norm_eps": 1e-3}, form="scratch", std={"wte": 0.03}, unlike={"norm_eps": 1e-5}),
]
SCRATCH = Path(tempfile.gettempdir()) / "mpt-golden-scratch"


# ---------------------------------------------------------------------------------------------------------------------
# Running


def build(modeling: Any, config: dict[str, Any], run_length: int | None = None) -> Any:
    """llm-foundry's model for a published config.json; `run_length` lifts max_seq_len after construction."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = modeling.MPTForCausalLM(modeling.MPTConfig(**lf_kwargs(config))).float().eval()
    if run_length:
        # The documented remedy for longer sequences. Set afterwards so that the dynamic rotary embedding still sees
        # the original length; the ALiBi buffer is built in the first forward pass.
        model.config.max_seq_len = run_length
        transformer = model.transformer
        if transformer.attn_bias_shape is not None:
            transformer.attn_bias_shape = (*transformer.attn_bias_shape[:-1], run_length)
    return model


@torch.no_grad()
def logits_of(model: Any, ids: np.ndarray) -> np.ndarray:
    rotary = getattr(getattr(model, "transformer", None), "rotary_embedding", None)
    if getattr(rotary, "rope_type", None) == "dynamic":  # forget the longest length seen: every pass stands alone
        rotary.inv_freq = rotary.original_inv_freq
        rotary.max_seq_len_cached = rotary.original_max_seq_len
    out = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], use_cache=False)
    return out.logits[0].float().numpy()


def greedy_of(model: Any, prompt: np.ndarray) -> tuple[np.ndarray, float]:
    """The argmax continuation by a full forward each step, and the smallest gap to the runner-up."""
    ids, gap = prompt, math.inf
    for _ in range(GREEDY):
        last = logits_of(model, ids)[-1]
        second, best = np.sort(last)[-2:]
        gap = min(gap, float(best - second))
        ids = np.append(ids, np.int32(last.argmax()))
    return ids[len(prompt) :].astype(np.int32), gap


def random_weights(model: Any, generator: torch.Generator, case: Case) -> dict[str, torch.Tensor]:
    """Weights big enough that every switch shows in the logits."""
    weights = {}
    for name, value in model.state_dict().items():
        module, kind = name.split(".")[-2:]
        noise = torch.randn(value.shape, generator=generator)
        if kind == "bias":
            tensor = case.shift.get(module, 0.0) + 0.2 * noise
        elif module in ("norm_1", "norm_2", "norm_f", "q_ln", "k_ln"):
            tensor = 1 + 0.2 * noise
        elif module in ("wte", "wpe", "lm_head"):
            tensor = case.std.get(module, 0.25) * noise
        else:
            scale = 1.6 if module in ("Wqkv", "Wq", "Wk", "Wv") else 1.5
            tensor = case.std.get(module, scale / math.sqrt(value.shape[-1])) * noise
        weights[name] = tensor.to(case.dtype)
    return weights


def load(model: Any, weights: dict[str, torch.Tensor]) -> None:
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)


def make(modeling: Any, case: Case) -> str:
    config = merged(base_config(), case.config)
    model = build(modeling, config, case.run_length)
    clear = MARGIN * (0.2 if isinstance(config["logit_scale"], str) else config["logit_scale"] or 1)
    for seed in range(100):
        generator = torch.Generator().manual_seed(1000 * sum(case.name.encode()) + seed)
        weights = random_weights(model, generator, case)
        load(model, weights)
        ids = torch.randint(0, config["vocab_size"], (case.length,), generator=generator).numpy().astype(np.int32)
        prompt = torch.randint(0, config["vocab_size"], (case.prompt,), generator=generator).numpy().astype(np.int32)
        greedy, gap = greedy_of(model, prompt)
        if gap > clear:
            break
    else:
        raise RuntimeError(f"{case.name}: no seed gives a clear greedy continuation")
    logits = logits_of(model, ids)
    assert np.isfinite(logits).all()
    note = ""
    if case.unlike is not None:
        other = build(modeling, merged(config, case.unlike), case.run_length)
        load(
            other,
            {name: tensor for name, tensor in weights.items() if name in other.state_dict()}
            | {name: tensor for name, tensor in other.state_dict().items() if name not in weights},
        )
        change = float(np.abs(logits_of(other, ids) - logits).max())
        assert change > case.effect, f"{case.name}: the switch changes the logits by {change} only"
        note = f", switch changes logits by {change:.4g}"

    folder = (SCRATCH if case.form == "scratch" else HERE) / case.name
    folder.mkdir(parents=True, exist_ok=True)
    write_form(case, folder, config, weights, model)
    if not case.form.startswith("hostile"):
        np.savez_compressed(folder / "golden.npz", ids=ids, logits=logits, prompt=prompt, greedy=greedy)
    return f"{case.name}: seed {seed}, gap {gap:.3g}, logits std {logits.std():.3g}{note}"


# ---------------------------------------------------------------------------------------------------------------------
# Files


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_shards(folder: Path, weights: dict[str, torch.Tensor], stem: str, suffix: str, count: int) -> None:
    names = sorted(weights)
    per = math.ceil(len(names) / count)
    weight_map = {}
    for part in range(count):
        file = f"{stem}-{part + 1:05d}-of-{count:05d}.{suffix}"
        shard = {name: weights[name] for name in names[part * per : (part + 1) * per]}
        if suffix == "safetensors":
            save_file(shard, folder / file, metadata={"format": "pt"})
        else:
            torch.save(shard, folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in weights.values())
    write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def with_views(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values as views: shared storages, offsets into larger buffers, transposed strides."""
    out: dict[str, torch.Tensor] = {}
    flat = torch.cat([torch.full((7,), 1e9), *[tensor.flatten() for tensor in weights.values()], torch.full((5,), 1e9)])
    start = 7
    for name, tensor in weights.items():  # every tensor a slice of one storage
        out[name] = flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    for name in [name for name in weights if name.endswith(("out_proj.weight", "up_proj.weight"))]:
        out[name] = weights[name].t().contiguous().t()  # column-major
    padded = torch.full((96, 40), 1e9)
    name = next(name for name in weights if name.endswith("blocks.1.norm_1.weight"))
    padded[::2, 3] = weights[name]  # stride 80, offset 3
    out[name] = padded[::2, 3]
    out["lm_head.weight"] = out["transformer.wte.weight"]  # tied: one storage, two names
    return out


class _Hostile:
    """Runs a harmless command when a pickle holding it is loaded without care."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch mpt-hostile-pickle-was-run",)


def write_hostile(path: Path, weights: dict[str, torch.Tensor], legacy: bool) -> None:
    """A checkpoint that looks whole and carries a command. Never load it with a plain unpickler."""
    if legacy:
        torch.save({**weights, "hook": _Hostile()}, path, _use_new_zipfile_serialization=False)
        return
    buffer = io.BytesIO()
    torch.save({**weights, "hook": _Hostile()}, buffer, pickle_module=pickle)
    buffer.seek(0)
    with zipfile.ZipFile(buffer) as archive:
        assert any(b"touch" in archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    path.write_bytes(buffer.getvalue())


def write_form(case: Case, folder: Path, config: dict[str, Any], weights: dict[str, torch.Tensor], model: Any) -> None:
    form = case.form
    if form == "lf-saved":  # llm-foundry's own save_pretrained, with every default written out
        model.to(case.dtype).save_pretrained(folder)
        model.float()
        return
    write_json(folder / "config.json", mosaic_gpt_config(config) if form == "mosaic_gpt" else config)
    if form == "mosaic_gpt":
        weights = rename(weights, to_mosaic=True)
    if form in ("safetensors", "scratch", "mosaic_gpt"):
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif form == "safetensors-sharded":
        write_shards(folder, weights, "model", "safetensors", 3)
    elif form == "bin-sharded":
        write_shards(folder, weights, "pytorch_model", "bin", 2)
    elif form == "bin":
        saved = OrderedDict(weights)  # as Module.state_dict() gives it: an OrderedDict with a _metadata attribute
        saved._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
        torch.save(saved, folder / "pytorch_model.bin")
    elif form == "bin-legacy":  # tensors and Parameters, in the format of torch before 1.6
        saved = OrderedDict(
            (name, torch.nn.Parameter(tensor) if "norm" in name else tensor) for name, tensor in weights.items()
        )
        torch.save(saved, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif form == "bin-views":
        torch.save(with_views(weights), folder / "pytorch_model.bin")
    elif form.startswith("hostile"):
        write_hostile(folder / "pytorch_model.bin", weights, legacy=form.endswith("legacy"))
    else:
        raise ValueError(form)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    for path in sorted(folder.glob("*.bin")):
        weights |= torch.load(path, weights_only=True)  # refuses anything but tensors
    return weights


def check(modeling: Any, folder: Path) -> str:
    """Recompute a folder with llm-foundry and compare."""
    config = json.loads((folder / "config.json").read_text())
    golden = np.load(folder / "golden.npz")
    longest = max(len(golden["ids"]), len(golden["prompt"]) + GREEDY)
    tied = config.get("tie_word_embeddings", True)
    model = build(modeling, config, longest if longest > config["max_seq_len"] else None)
    weights = rename(read_weights(folder), to_mosaic=False)
    if tied:
        weights.pop("lm_head.weight", None)
    load(model, weights)
    error = float(np.abs(logits_of(model, golden["ids"]) - golden["logits"]).max())
    greedy, _ = greedy_of(model, golden["prompt"])
    same = bool((greedy == golden["greedy"]).all())
    assert error < 5e-5, (folder.name, error)
    assert same, folder.name
    return f"{folder.name}: max error {error:.3g}, greedy equal"


def make_transformers(case: Case) -> str:
    """Save one scratch model with transformers 5 and compare its eager logits with llm-foundry's."""
    import transformers

    source, folder = SCRATCH / case.name, HERE / case.name
    config = json.loads((source / "config.json").read_text())
    hf_config = transformers.MptConfig(
        d_model=config["d_model"],
        n_heads=config["n_heads"],
        n_layers=config["n_layers"],
        expansion_ratio=config["expansion_ratio"],
        max_seq_len=config["max_seq_len"],
        vocab_size=config["vocab_size"],
        no_bias=True,
        layer_norm_epsilon=config.get("norm_eps", 1e-5),
    )
    model = transformers.MptForCausalLM(hf_config).eval()
    loaded = model.load_state_dict(load_file(source / "model.safetensors"), strict=False)
    assert set(loaded.missing_keys) <= {"lm_head.weight"}, loaded
    assert not loaded.unexpected_keys, loaded
    model.tie_weights()
    golden = dict(np.load(source / "golden.npz"))
    logits = logits_of(model.float(), golden["ids"])
    error = float(np.abs(logits - golden["logits"]).max())
    greedy, _ = greedy_of(model, golden["prompt"])
    assert error < 1e-4, (case.name, error)
    assert (greedy == golden["greedy"]).all(), case.name
    model.to(torch.bfloat16).save_pretrained(folder)
    golden["logits"] = logits
    np.savez_compressed(folder / "golden.npz", **golden)
    return f"{case.name}: transformers {transformers.__version__} against llm-foundry, max difference {error:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "check", "make-transformers"])
    parser.add_argument("names", nargs="*", help="cases (all where none is named)")
    arguments = parser.parse_args()
    names = set(arguments.names)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if arguments.what == "make-transformers":
        for case in TRANSFORMERS_CASES:
            if not names or case.name in names:
                print(make_transformers(case), flush=True)
        return
    modeling = import_llm_foundry()
    if arguments.what == "make":
        for case in [*CASES, *TRANSFORMERS_CASES]:
            if not names or case.name in names:
                print(make(modeling, case), flush=True)
        return
    for golden in sorted(HERE.glob("*/golden.npz")):
        folder = golden.parent
        if (not names or folder.name in names) and not folder.name.startswith("transformers-"):
            print(check(modeling, folder), flush=True)


if __name__ == "__main__":
    main()
