"""Measure the quality of a weight format, computed as in the engine: perplexity and divergence from float32.

    python benchmarks/quality.py mpt_serve/embedded --text held-out
    python benchmarks/quality.py CHECKPOINT --text FILE      # any UTF-8 text, by the checkpoint's tokenizer.json
    python benchmarks/quality.py CHECKPOINT                  # random ids: divergence only

A line per format: MB of weights, perplexity and its change in percent, mean of KL(float32 || format) in nats, share of
positions with the same most likely token, and the error of the logits relative to them (both less their mean, which no
probability depends on). "held-out" is what the embedded model was never trained on: documents of its corpus
(`training`) drawn with held-out values.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.config.mpt_config import MptConfig
from model.layers.forward import forward
from model.params.weight_format import WeightFormat
from model.params.weights import Weights, weight_bytes
from model.pretrained import mpt_from_pretrained

_SEED = 2026


class Text(NamedTuple):
    """tokens [rows, length + 1] int32, the last one a target alone; counted [rows, length] is 0 at padding."""

    tokens: NDArray[np.int32]
    counted: NDArray[np.float32]


class Score(NamedTuple):
    """Sums over the counted places of a text."""

    loss: Array | float = 0.0  # nats
    divergence: Array | float = 0.0  # nats
    same_choice: Array | float = 0.0
    error: Array | float = 0.0  # squared
    size: Array | float = 0.0  # of the float32 logits, squared


def formats_of(names: list[str], group: int) -> dict[str, tuple[str | None, WeightFormat]]:
    """Return dtype and format of the weights by a contender's name; quantised ones start from the stored dtype."""
    known = {
        "float32": ("float32", WeightFormat(packed=True)),
        "bfloat16": ("bfloat16", WeightFormat(packed=True)),
        "int8": (None, WeightFormat("int8", packed=True)),
        "int4": (None, WeightFormat("int4", packed=True, group=group)),
    }
    return {name: known[name] for name in names}


def read_text(source: str, folder: Path, config: MptConfig, count: int, length: int) -> Text:
    rows = -(-count // length)
    if source == "random":
        tokens = np.random.default_rng(_SEED).integers(0, config.vocab_size, (rows, length + 1), np.int32)
    elif source == "held-out":
        return _held_out(folder, rows, length)
    else:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = tokenizer.encode(Path(source).read_text(encoding="utf-8")).ids
        rows = min(rows, (len(ids) - 1) // length)
        if rows == 0:
            raise SystemExit(f"{source} has {len(ids)} tokens; at least {length + 1} are needed")
        tokens = np.stack([ids[i * length : (i + 1) * length + 1] for i in range(rows)]).astype(np.int32)
    return Text(tokens, np.ones((rows, length), np.float32))


def _held_out(folder: Path, rows: int, length: int) -> Text:
    from tokenizers import Tokenizer

    from training.corpus import FULL_PHASE, draw_document
    from training.dialogue import PADDING
    from training.draw import Draw
    from training.packing import Encoded, encode, pack
    from training.tokenizer import token_id

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    draw = Draw(Random(f"{_SEED}/held-out"), held_out=True)

    def documents() -> Iterator[Encoded]:
        while True:
            yield encode(draw_document(draw, FULL_PHASE), tokenizer)

    batch = pack(documents(), rows, length, token_id(tokenizer, PADDING))
    return Text(batch.tokens, (batch.weights > 0).astype(np.float32))


@partial(jax.jit, static_argnums=1)
def logits_of(weights: Weights, config: MptConfig, tokens: Array) -> Array:
    """Compute logits of [B, T] -> [B, T, V], less the mean of each position."""
    logits = forward(weights, config, tokens)
    return logits - jnp.mean(logits, axis=-1, keepdims=True)


@jax.jit
def score(reference: Array, logits: Array, targets: Array, counted: Array) -> Score:
    """Score logits [B, T, V] on targets [B, T] where counted [B, T]."""
    expected, actual = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    same = jnp.argmax(reference, axis=-1) == jnp.argmax(logits, axis=-1)
    return Score(
        loss=-jnp.sum(jnp.take_along_axis(actual, targets[..., None], axis=-1)[..., 0] * counted),
        divergence=jnp.sum(jnp.sum(jnp.exp(expected) * (expected - actual), axis=-1) * counted),
        same_choice=jnp.sum(same * counted),
        error=jnp.sum(jnp.sum(jnp.square(logits - reference), axis=-1) * counted),
        size=jnp.sum(jnp.sum(jnp.square(reference), axis=-1) * counted),
    )


def compare(reference: Weights, weights: Weights, config: MptConfig, text: Text, rows: int) -> Score:
    total = Score()
    for start in range(0, len(text.tokens), rows):
        tokens = jnp.asarray(text.tokens[start : start + rows])
        logits = [logits_of(w, config, tokens[:, :-1]) for w in (reference, weights)]
        part = score(*logits, tokens[:, 1:], jnp.asarray(text.counted[start : start + rows]))
        total = Score(*(float(a + b) for a, b in zip(total, part, strict=True)))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", default="random", help="held-out, random, or a file (default: random)")
    parser.add_argument("--tokens", type=int, default=65_536, help="of the text, at most")
    parser.add_argument("--length", type=int, default=512, help="tokens of one sequence")
    parser.add_argument("--rows", type=int, default=4, help="sequences computed at a time")
    parser.add_argument("--formats", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--group", type=int, default=WeightFormat.group, help="inputs that share a scale in int4")
    options = parser.parse_args()
    reference, config = mpt_from_pretrained(options.checkpoint, dtype=jnp.float32, progress=False)
    text = read_text(options.text, options.checkpoint, config, options.tokens, options.length)
    count = float(text.counted.sum())
    base = compare(reference, reference, config, text, options.rows)
    print(f"{count:.0f} tokens; float32: {weight_bytes(reference) / 1e6:.1f} MB, ", end="")
    print(f"perplexity {np.exp(base.loss / count):.4f}", flush=True)
    for name, (dtype, format) in formats_of(options.formats, options.group).items():
        weights, _ = mpt_from_pretrained(options.checkpoint, dtype=dtype, progress=False, format=format)
        s = compare(reference, weights, config, text, options.rows)
        print(
            f"{name:9s}{weight_bytes(weights) / 1e6:9.1f} MB  perplexity {np.exp(s.loss / count):.4f} "
            f"({100 * np.expm1((s.loss - base.loss) / count):+.3f} %)  divergence {s.divergence / count:.6f}  "
            f"same choice {100 * s.same_choice / count:.2f} %  error of logits {100 * np.sqrt(s.error / s.size):.2f} %",
            flush=True,
        )
        del weights


if __name__ == "__main__":
    main()
