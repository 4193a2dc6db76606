"""A checkpoint small enough for any test: random weights, a tokenizer of bytes."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

D_MODEL, LAYERS, HEADS, VOCAB = 32, 2, 4, 320
END = "<|endoftext|>"


def write_tiny_checkpoint(folder: Path, seed: int = 20231) -> Path:
    """Write config.json, model.safetensors and tokenizer.json into `folder` and return it. seed: of the weights."""
    config = {
        "model_type": "mpt",
        "d_model": D_MODEL,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "expansion_ratio": 2,
        "vocab_size": VOCAB,
        "max_seq_len": 512,
        "no_bias": True,
        "attn_config": {"alibi": True},
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def _weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:  # wide enough for answers that depend on the whole prompt
        return (rng.standard_normal((rows, columns)) * 2 / np.sqrt(columns)).astype(np.float32)

    ones = np.ones(D_MODEL, np.float32)
    weights = {"transformer.wte.weight": matrix(VOCAB, D_MODEL), "transformer.norm_f.weight": ones}
    for layer in range(LAYERS):
        block = f"transformer.blocks.{layer}"
        weights |= {
            f"{block}.norm_1.weight": ones,
            f"{block}.attn.Wqkv.weight": matrix(3 * D_MODEL, D_MODEL),
            f"{block}.attn.out_proj.weight": matrix(D_MODEL, D_MODEL),
            f"{block}.norm_2.weight": ones,
            f"{block}.ffn.up_proj.weight": matrix(2 * D_MODEL, D_MODEL),
            f"{block}.ffn.down_proj.weight": matrix(D_MODEL, 2 * D_MODEL),
        }
    return weights


def _tokenizer() -> Tokenizer:
    """One token for each byte; the rest of the vocabulary is padding, as in the real checkpoints."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer
