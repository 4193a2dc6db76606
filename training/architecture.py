"""The embedded model's config.json, in llm-foundry's keys."""

from __future__ import annotations

from training.dialogue import ENDOFTEXT, PADDING
from training.tokenizer import SPECIAL_TOKENS, VOCAB_SIZE


def config_dict(
    d_model: int = 256, n_layers: int = 6, n_heads: int = 4, vocab_size: int = VOCAB_SIZE
) -> dict[str, object]:
    """Return an MPT with ALiBi, no biases and a tied head: 5.2 million parameters by default."""
    return {
        "architectures": ["MPTForCausalLM"],
        "model_type": "mpt",
        "d_model": d_model,
        "n_heads": n_heads,
        "n_layers": n_layers,
        "expansion_ratio": 4,
        "max_seq_len": 1024,
        "vocab_size": vocab_size,
        "no_bias": True,
        "norm_type": "low_precision_layernorm",
        "learned_pos_emb": True,
        "emb_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "embedding_fraction": 1.0,
        "logit_scale": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": SPECIAL_TOKENS.index(ENDOFTEXT),
        "eos_token_id": SPECIAL_TOKENS.index(ENDOFTEXT),
        "pad_token_id": SPECIAL_TOKENS.index(PADDING),
        "attn_config": {
            "attn_type": "multihead_attention",
            "attn_pdrop": 0,
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
