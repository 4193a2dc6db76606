"""Converts a checkpoint with its tokenizer: what `mpt-serve convert` does."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.checkpoint.convert import Checkpoint, keeps_every_number, write_safetensors
from model.checkpoint.convert_gguf import GGUF_TYPES, write_gguf
from model.checkpoint.convert_orbax import write_orbax
from model.checkpoint.folder import find_weights
from model.checkpoint.partial_output import partial_output
from model.checkpoint.stored_tensor import CheckpointError
from model.config.strict_reader import ConfigError
from model.pretrained import resolve_checkpoint
from mpt_serve.configuration.problems import ConfigurationError, Problem
from mpt_serve.conversion.compare_logits import Comparison, compare_logits
from mpt_serve.conversion.composer_source import composer_folder
from mpt_serve.conversion.text_files import vocabulary_adder, write_text_files
from mpt_serve.text.tokenizer import TextTokenizer, TokenizerError

__all__ = ["FORMS", "MAX_DIVERGENCE", "TYPES", "Conversion", "convert"]

FORMS = ("llm-foundry", "transformers", "orbax", "gguf")
TYPES = ("bfloat16", "float16", "float32", *GGUF_TYPES)
MAX_DIVERGENCE = {  # mean KL in nats, seven times the embedded model's or more, which has the least to spare
    "float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3, "f32": 1e-6, "f16": 1e-3, "bf16": 5e-3,
    "q8_0": 0.01, "q5_1": 0.25, "q5_0": 0.25, "q4_1": 1.0, "q4_0": 1.0,
}  # fmt: skip
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "orbax")  # what is written to folders
_UNWRITABLE = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq", "tq", "mxfp4", "nvfp4")
_PROMPT = (
    "The city lies on both banks of a river that is too wide for a bridge. A ferry crosses it every twenty minutes,"
    " and in winter, when there is ice, not at all.\n\ndef area(width: float, height: float) -> float:\n    return"
    " width * height\n\nQuestion: What is the capital of France?\nAnswer:"
)
_ROWS, _LENGTH = 3, 32  # of the prompts that source and result are compared with


@dataclass(frozen=True)
class Conversion:
    """What was written, and how its logits compare with the source's."""

    path: Path
    comparison: Comparison


def convert(
    source: str,
    target: str,
    form: str | None,
    kind: str | None,
    tokenizer: bool = True,
    overwrite: bool = False,
    max_divergence: float | None = None,
) -> Conversion:
    """Convert a checkpoint and compare the logits of source and result; an interrupted conversion is continued.

    form: of `FORMS`; None is GGUF for a target that ends in .gguf, else llm-foundry's.
    kind: the type of the numbers, of `TYPES`; None keeps them, and for GGUF it is f16.
    tokenizer: whether to take it along.
    overwrite: whether to replace a checkpoint that is at `target` already.
    max_divergence: the largest mean KL(source || result) in nats; None takes that of the type in `MAX_DIVERGENCE`.
        Where the type holds every number of the source, the logits must be equal in every bit.

    Raises ConfigurationError where the source cannot be read, the form cannot represent it, or the result differs.
    """
    path = Path(target).expanduser().resolve()
    form = form or ("gguf" if path.suffix == ".gguf" else "llm-foundry")
    _check_kind(form, kind)
    try:
        with composer_folder(source) as found:
            return _convert(resolve_checkpoint(found), path, form, kind, tokenizer, overwrite, max_divergence)
    except (CheckpointError, ConfigError, TokenizerError, OSError) as error:
        raise ConfigurationError([Problem((), str(error))]) from error


def _convert(
    folder: Path,
    path: Path,
    form: str,
    kind: str | None,
    tokenizer: bool,
    overwrite: bool,
    max_divergence: float | None,
) -> Conversion:
    _check_target(folder, path, form, overwrite)
    checkpoint = Checkpoint.open(folder)
    text = TextTokenizer.find(folder) if tokenizer else None
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_output(path, checkpoint.identity(form, kind)) as partial:
        written = partial
        if form == "gguf":
            written = partial / path.name
            adder = None if text is None else vocabulary_adder(text, folder, checkpoint.config.vocab_size)
            write_gguf(checkpoint, written, kind or "f16", adder)
        elif form == "orbax":
            write_orbax(checkpoint, partial, kind)
        else:
            write_safetensors(checkpoint, partial, form, kind)
        if form != "gguf" and text is not None:
            write_text_files(folder, partial, text)
        comparison = _compare(checkpoint, Checkpoint.open(written), text, kind, max_divergence)
        _remove_replaced(path, {entry.name for entry in partial.iterdir()})
    return Conversion(path, comparison)


def _check_kind(form: str, kind: str | None) -> None:
    valid = GGUF_TYPES if form == "gguf" else TYPES[:3]
    if kind is None or kind in valid:
        return
    message = f"is {kind!r}; {form} has {', '.join(valid)}"
    if kind.lower().startswith(_UNWRITABLE):
        message += ". gguf-py reads other types and cannot write them well: convert to f16, and then quantise that file"
        message += " with llama.cpp's llama-quantize"
    raise ConfigurationError([Problem(("--type",), message)])


def _check_target(source: Path, target: Path, form: str, overwrite: bool) -> None:
    if target.exists() and target.resolve() in (source.resolve(), source.resolve().parent):
        raise CheckpointError(f"{target} is where the source is; choose another place")
    holds = target.is_file() or find_weights(target) is not None or (target / "config.json").exists()
    if holds and not overwrite:
        raise CheckpointError(f"{target} already holds a checkpoint; choose another place, or use --overwrite")
    old = find_weights(target)
    if form == "orbax" and old is not None and old.name not in _WEIGHTS and old.suffix not in (".gguf", ".pt"):
        raise CheckpointError(
            f"{target} holds {old.name}, which is read instead of an Orbax tree; choose another place"
        )


def _remove_replaced(target: Path, written: set[str]) -> None:
    """Remove from a folder what an earlier conversion has written to it, and this one does not replace by its name."""
    for name in _WEIGHTS:
        if name not in written and (target / name).is_dir():
            shutil.rmtree(target / name)
        elif name not in written:
            (target / name).unlink(missing_ok=True)


def _compare(
    source: Checkpoint, copy: Checkpoint, text: TextTokenizer | None, kind: str | None, max_divergence: float | None
) -> Comparison:
    """Return how the logits compare. Raises CheckpointError where they differ by more than they may."""
    if max_divergence is None:  # without a type it is that of the first matrix
        max_divergence = MAX_DIVERGENCE[kind or copy.sources[0].parts[0].dtype.name]
    found = compare_logits(source, copy, _prompts(text, source))
    exact = keeps_every_number(source, copy)
    if exact and not found.same:
        raise CheckpointError(f"{copy.path}: its type holds every number of the source, but its logits differ")
    if not found.divergence <= max_divergence:
        raise CheckpointError(
            f"the logits of the result diverge from those of the source by {found.divergence:.3g} nats (mean KL), more"
            f" than {max_divergence:g}; choose a type with more bits, or allow it with --max-divergence"
        )
    return found


def _prompts(text: TextTokenizer | None, checkpoint: Checkpoint) -> NDArray[np.int32]:
    """Return prompts [B, T] within the vocabulary: of text where there is a tokenizer, and of any tokens."""
    config = checkpoint.config
    length = min(_LENGTH, config.max_seq_len)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, _ROWS * length)
    if text is not None:
        encoded = np.array(text.encode(_PROMPT)[: ids.size - length], np.int64)
        ids[: encoded.size] = encoded % config.vocab_size
    return ids.reshape(_ROWS, length).astype(np.int32)
