"""Score a model on held-out prompts: `python -m training.evaluate RUN_OR_MODEL_FOLDER`.

A task with one right answer is scored as greedy decoding would be, mostly in one forward pass: greedy decoding gives
the reference's tokens if and only if each is the most likely one after those before it. Where it does not, the output
is decoded, since other tokens may be the same text. Free text (stories, poems) is decoded and checked for what the
prompt requires.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tokenizers import Tokenizer

from model.config.mpt_config import MptConfig
from model.layers.forward import forward
from model.params.weight_format import WeightFormat
from model.params.weights import Weights
from model.pretrained import mpt_from_pretrained
from training.corpus import DIALOGUES, draw_example
from training.dialogue import ENDOFTEXT, IM_END, PADDING, Dialogue
from training.export import export, read_model
from training.tokenizer import token_id

FREE_TASKS = ("story", "writing")
# What the recipe is made for: the share of exact answers to noisy prompts. Without noise, and in int8, it may differ by
# five points and by one.
TARGETS: Mapping[str, float] = {
    "capitals": 0.95, "definitions": 0.95, "code": 0.95, "smalltalk": 0.95, "json": 0.95, "field": 0.95,
    "memory": 0.95, "memory_single": 0.95, "memory_unknown": 0.95, "translation": 0.95, "reading": 0.85, "people": 0.85,
    "summary": 0.85, "summary_two": 0.85, "facts": 0.85, "sums_two_digits": 0.8, "tool_call": 0.85, "tool_answer": 0.85,
}  # fmt: skip
COLUMNS = ("noisy", "clean", "int8")
SEED = 2026
_ROWS = 8
_MORE_TOKENS = 16  # than the longest reference has: a right one with other tokens is hardly longer
_WIDTH = 256  # rows are padded to a multiple of this many tokens, so that few shapes are compiled


@dataclass(frozen=True)
class Model:
    """All that completing a prompt needs: weights, config and tokenizer."""

    weights: Weights
    config: MptConfig
    tokenizer: Tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""
        return frozenset(token_id(self.tokenizer, token) for token in (ENDOFTEXT, IM_END))


@partial(jax.jit, static_argnums=1)
def _best_tokens(weights: Weights, config: MptConfig, tokens: Array) -> Array:
    """Return the most likely next token at every position: tokens [B, T] -> [B, T] int32."""
    return jnp.argmax(forward(weights, config, tokens), axis=-1)


def _padded(rows: Sequence[Sequence[int]], padding: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    longest = max(map(len, rows))
    tokens = np.full((_ROWS, -(-longest // _WIDTH) * _WIDTH), padding, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens


def _groups(items: Sequence[Dialogue]) -> Iterator[Sequence[Dialogue]]:
    """Return groups of at most `_ROWS` dialogues of similar length."""
    ordered = sorted(items, key=lambda item: len(item.prompt))
    return (ordered[i : i + _ROWS] for i in range(0, len(ordered), _ROWS))


def mismatches(model: Model, dialogues: Sequence[Dialogue]) -> list[Dialogue]:
    """Return the dialogues for which greedy decoding does not give the reference's tokens and then stops."""
    padding = token_id(model.tokenizer, PADDING)
    others: list[Dialogue] = []
    for group in _groups(dialogues):
        prompts = [model.tokenizer.encode(d.prompt).ids for d in group]
        answers = [model.tokenizer.encode(d.reference + IM_END).ids for d in group]
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        best = np.asarray(_best_tokens(model.weights, model.config, _padded(rows, padding)))
        for i, (dialogue, prompt, answer) in enumerate(zip(group, prompts, answers, strict=True)):
            start = len(prompt) - 1
            if best[i, start : start + len(answer)].tolist() != answer:
                others.append(dialogue)
    return others


def decode(model: Model, texts: Sequence[str], max_tokens: int = 200) -> list[str]:
    """Return greedy continuations of at most `_ROWS` texts, without a cache: simple, and slow."""
    padding = token_id(model.tokenizer, PADDING)
    rows = [model.tokenizer.encode(text).ids for text in texts]
    starts = [len(row) for row in rows]
    open_rows = set(range(len(rows)))
    for _ in range(max_tokens):
        best = np.asarray(_best_tokens(model.weights, model.config, _padded(rows, padding)))
        for i in tuple(open_rows):
            token = int(best[i, len(rows[i]) - 1])
            if token in model.stop_ids:
                open_rows.discard(i)
            else:
                rows[i].append(token)
        if not open_rows:
            break
    return [model.tokenizer.decode(row[start:]) for row, start in zip(rows, starts, strict=True)]


def checked(model: Model, dialogues: Sequence[Dialogue], max_tokens: int = 200) -> int:
    """Count the decoded answers that pass the dialogue's check."""
    right = 0
    for group in _groups(dialogues):
        answers = decode(model, [d.prompt for d in group], max_tokens)
        right += sum(d.check(answer, d.reference) for d, answer in zip(group, answers, strict=True))
    return right


def accuracy(model: Model, task: str, count: int, seed: int = SEED, noise: bool = True) -> float:
    """Return the share of right answers to `count` held-out prompts of a task.

    An output may have the reference's text and other tokens, so those that differ are decoded.
    """
    dialogues = [draw_example(seed, i, task, noise=noise) for i in range(count)]
    if task in FREE_TASKS:
        return checked(model, dialogues) / count
    others = mismatches(model, dialogues)
    longest = max((len(model.tokenizer.encode(d.reference).ids) for d in others), default=0)
    return (count - len(others) + checked(model, others, longest + _MORE_TOKENS)) / count


def in_int8(folder: Path) -> Model:
    """Return the model of a run or of an exported folder with its matrices in int8, as the engine keeps them."""
    with TemporaryDirectory() as temporary:
        exported = folder
        if not (folder / "model.safetensors").exists():
            exported = Path(temporary)
            export(folder, exported)
        weights, config = mpt_from_pretrained(exported, format=WeightFormat("int8", packed=True), progress=False)
    return Model(weights, config, Tokenizer.from_file(str(folder / "tokenizer.json")))


def main() -> None:
    """Print one line per task, then answers to any `--ask`: the command line entry point."""
    parser = argparse.ArgumentParser(description="Score a model on held-out prompts.")
    parser.add_argument("folder", type=Path, help="a run folder or an exported model folder")
    parser.add_argument("--count", type=int, default=100, help="prompts per task")
    parser.add_argument("--tasks", nargs="*", default=list(DIALOGUES))
    parser.add_argument(
        "--columns",
        nargs="+",
        choices=COLUMNS,
        default=["noisy"],
        help="prompts with typing noise or without; noisy ones with weights in int8",
    )
    parser.add_argument("--ask", nargs="*", default=[], help="questions to answer, each in a separate chat")
    arguments = parser.parse_args()
    model = Model(*read_model(arguments.folder))
    models = {name: in_int8(arguments.folder) if name == "int8" else model for name in arguments.columns}
    print(f"{'task':16s} target " + "".join(f"{name:>7s}" for name in models))
    for task in arguments.tasks:
        count = min(arguments.count, 24) if task in FREE_TASKS else arguments.count
        shares = (accuracy(scored, task, count, noise=name != "clean") for name, scored in models.items())
        target = f"{TARGETS[task]:.2f}" if task in TARGETS else ""
        print(f"{task:16s} {target:>6s} " + "".join(f"{share:7.3f}" for share in shares) + f"  of {count}", flush=True)
    for start in range(0, len(arguments.ask), _ROWS):
        questions = arguments.ask[start : start + _ROWS]
        prompts = [f"<|im_start|>user\n{question}{IM_END}\n<|im_start|>assistant\n" for question in questions]
        for question, answer in zip(questions, decode(model, prompts), strict=True):
            print(f"> {question}\n{answer}\n")


if __name__ == "__main__":
    main()
