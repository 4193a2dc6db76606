"""Write a trained run as a model folder like those of published MPT checkpoints: `python -m training.export`."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from model.config.mpt_config import MptConfig
from model.params.weights import Weights, assemble_weights, init_weights, weight_specs
from training import checkpoint, muon
from training.dialogue import ENDOFTEXT, IM_END, IM_START, PADDING
from training.tokenizer import SPECIAL_TOKENS

# ChatML: the text that `dialogue.Dialogue` is trained on.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _leaves(weights: Weights) -> dict[str, np.ndarray]:
    """Return arrays by `WeightSpec.path`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(weights)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat}


def tokenizer_config(max_seq_len: int) -> dict[str, object]:
    """Return the object of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "bos_token": ENDOFTEXT,
        "eos_token": ENDOFTEXT,
        "pad_token": PADDING,
        "additional_special_tokens": [IM_START, IM_END],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config() -> dict[str, object]:
    """Return the object of generation_config.json: either end mark ends a completion.

    At a temperature of 1 a model of this size writes odd words where a name belongs.
    """
    eos = [SPECIAL_TOKENS.index(ENDOFTEXT), SPECIAL_TOKENS.index(IM_END)]
    padding = SPECIAL_TOKENS.index(PADDING)
    return {"bos_token_id": eos[0], "eos_token_id": eos, "pad_token_id": padding, "temperature": 0.7}


def export(run: Path, out: Path) -> None:
    """Write config.json, model.safetensors (bfloat16), the tokenizer's files and generation_config.json."""
    weights, config, _ = read_model(run)
    arrays = _leaves(weights)
    tensors = {spec.name: arrays[spec.path].astype(ml_dtypes.bfloat16) for spec in weight_specs(config)}
    out.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(
        0o644
    )  # safetensors makes it readable by its owner only; a package needs everyone
    shutil.copyfile(run / "config.json", out / "config.json")
    shutil.copyfile(run / "tokenizer.json", out / "tokenizer.json")
    _write_json(out / "tokenizer_config.json", tokenizer_config(config.max_seq_len))
    _write_json(out / "generation_config.json", generation_config())


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_model(folder: Path) -> tuple[Weights, MptConfig, Tokenizer]:
    """Return weights (float32), config and tokenizer of a run folder or of an exported folder."""
    config = MptConfig.from_file(folder / "config.json")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    exported = folder / "model.safetensors"
    if exported.exists():
        tensors = load_file(exported)
        leaves = {spec.path: jnp.asarray(tensors[spec.name], jnp.float32) for spec in weight_specs(config)}
        return assemble_weights(config, leaves), config, tokenizer
    like = jax.eval_shape(lambda: init_weights(config, jax.random.key(0)))
    weights, _, _ = checkpoint.restore(folder / "checkpoint.npz", like, jax.eval_shape(muon.init_state, like))
    return weights, config, tokenizer


def main() -> None:
    """Run the command line entry point."""
    parser = argparse.ArgumentParser(description="Export a trained run as a model folder.")
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    export(arguments.run, arguments.out)


if __name__ == "__main__":
    main()
