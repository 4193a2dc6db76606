"""Maps the names of the family's parameters in all formats to llm-foundry's (those of `weight_specs`).

| here | mosaic_gpt, early 2023 |
|---|---|
| norm_1, norm_2, norm_f | ln_1, ln_2, ln_f |
| ffn.up_proj, ffn.down_proj | mlp.mlp_up, mlp.mlp_down |

Checkpoints saved through Composer begin every name with `model.`, and with `module.` where several devices trained;
those of a bare MPTModel lack `transformer.`. FSDP, activation checkpointing and torch.compile wrap modules, and add
names of their own wherever they do.
"""

import re

_RENAMED = {
    ".ln_1.": ".norm_1.",
    ".ln_2.": ".norm_2.",
    ".ln_f.": ".norm_f.",
    ".mlp.mlp_up.": ".ffn.up_proj.",
    ".mlp.mlp_down.": ".ffn.down_proj.",
}
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
_BARE_MODEL = re.compile(r"(wte|wpe|blocks|norm_f|ln_f)\.")

# Constants that some releases saved beside the parameters, and that the forward pass computes.
_BUFFERS = re.compile(
    r"""(transformer\.)?attn_bias                                  # the ALiBi bias of a whole context
      | transformer\.blocks\.\d+\.attn\.(bias|masked_bias|mask)   # causal masks
      | (transformer\.)?(blocks\.\d+\.attn\.)?rotary_emb(edding)?(\.\w+)*\.inv_freq""",
    re.VERBOSE,
)
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|weight_format|absmax|quant_map|quant_state.*|weight_scale)$"
)


def canonical_name(name: str) -> str:
    """Return llm-foundry's name of a parameter of any release; unknown names are returned unchanged."""
    name = _WRAPPERS.sub("", name).removeprefix("module.").removeprefix("model.").removeprefix("module.")
    if _BARE_MODEL.match(name):
        name = f"transformer.{name}"
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def is_buffer(name: str) -> bool:
    """Return whether a canonical name is that of a saved constant rather than a parameter."""
    return _BUFFERS.fullmatch(name) is not None


def is_quantised(name: str) -> bool:
    """Return whether only quantised checkpoints (AWQ, GPTQ, bitsandbytes) have such a name."""
    return _QUANTISED.search(name) is not None


def separate_qkv_names(name: str) -> tuple[str, str, str] | None:
    """Return the three names of a fused Wqkv that llm-foundry stores with `fused_qkv: false`; None for others."""
    before, fused, after = name.partition(".Wqkv.")
    if not fused:
        return None
    return f"{before}.Wq.{after}", f"{before}.Wk.{after}", f"{before}.Wv.{after}"
