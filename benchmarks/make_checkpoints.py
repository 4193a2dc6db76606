"""Write MPT checkpoints of random weights, for measurements of speed: every engine of the comparison reads them.

    python benchmarks/make_checkpoints.py FOLDER [M L] [--tokenizer FOLDER]

makes FOLDER/M (253 million parameters) and FOLDER/L (1.3 billion): bfloat16 safetensors in the Hugging Face
layout, weights normal with standard deviation 0.02, norms 1. Speed does not depend on the values of the weights, and
decoding ignores end-of-sequence ids.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SIZES = {  # d_model, n_layers, n_heads
    "M": (1024, 16, 16),
    "L": (2048, 24, 16),
}


def config_of(size: str) -> dict[str, Any]:
    d_model, n_layers, n_heads = SIZES[size]
    return {
        "architectures": ["MPTForCausalLM"],  # the name that llama.cpp's converter knows
        "model_type": "mpt",
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "expansion_ratio": 4,
        "max_seq_len": 2048,
        "vocab_size": 50432,
        "no_bias": True,
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": 8,
            "attn_pdrop": 0,  # an integer: transformers 5 refuses 0.0
            "attn_type": "multihead_attention",
            "clip_qkv": None,
            "qk_ln": False,
            "softmax_scale": None,
        },
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "use_cache": True,
        "tie_word_embeddings": True,
    }


def make(size: str, folder: Path, tokenizer: Path | None) -> None:
    import jax
    import jax.numpy as jnp

    from model.checkpoint.save import save_checkpoint
    from model.config.mpt_config import MptConfig
    from model.params.weights import init_weights

    config = config_of(size)
    weights = init_weights(MptConfig.from_dict(config), jax.random.key(0), jnp.bfloat16)
    save_checkpoint(weights, config, folder, max_shard_bytes=2 * 10**9)
    if tokenizer is not None:
        for file in tokenizer.glob("tokenizer*"):  # not the weights of a whole checkpoint
            shutil.copy(file, folder)
    print(f"{folder}: {sum(leaf.size for leaf in jax.tree.leaves(weights)) / 1e6:.1f} million parameters")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sizes", nargs="*", default=list(SIZES), metavar="SIZE", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--tokenizer", type=Path, help="files to copy beside the weights; llama.cpp's converter asks")
    options = parser.parse_args()
    for size in options.sizes:
        if size not in SIZES:
            parser.error(f"no size {size!r}; there are {', '.join(SIZES)}")
        make(size, options.folder / size, options.tokenizer)


if __name__ == "__main__":
    main()
