"""Pack documents into rows of equal length, with a loss weight for every token.

A row is `document <|endoftext|> document <|endoftext|> ...` and begins with a document, as a prompt does at serving
time. No document is cut, except one that is longer than a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from training.corpus import COPY_PHASE, FULL_PHASE, draw_document
from training.dialogue import ENDOFTEXT, PADDING, Document, pieces
from training.draw import Draw
from training.tokenizer import SPECIAL_TOKENS, token_id

# Of a prompt's tokens, this share is predicted: the output head's products cost as much for a small weight as for one.
PROMPT_WEIGHT = 0.1


@dataclass(frozen=True)
class Batch:
    """tokens [B, T+1] int32 and weights [B, T] float32: `weights[b, t]` scores the prediction of `tokens[b, t+1]`."""

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def count(self) -> int:
        """Tokens after the first of each row, padding left out."""
        return int(np.count_nonzero(self.tokens[:, 1:] != SPECIAL_TOKENS.index(PADDING)))

    def thinned(self, seed: int) -> Batch:
        """Return the batch with weights of 0 and 1 alone: each weight is the probability of a 1."""
        chosen = np.random.default_rng(seed).random(self.weights.shape, np.float32) < self.weights
        return Batch(self.tokens, chosen.astype(np.float32))


Encoded = list[tuple[int, float]]  # (token id, loss weight as a target)


def encode(document: Document, tokenizer: Tokenizer) -> Encoded:
    """Return a document's tokens and the closing end-of-text mark; answers weigh 1, all else `PROMPT_WEIGHT`.

    Pieces are encoded one by one. They are separated by special tokens and line breaks, where the tokenizer splits
    anyway, so the ids are those of the whole text.
    """
    encoded = [
        (token, 1.0 if piece.answer else PROMPT_WEIGHT)
        for piece in pieces(document)
        for token in tokenizer.encode(piece.text).ids
    ]
    return [*encoded, (token_id(tokenizer, ENDOFTEXT), 1.0)]


def pack(documents: Iterator[Encoded], rows: int, length: int, padding: int, patience: int = 8) -> Batch:
    """Fill `rows` rows of `length` + 1 tokens, each document into the first row with enough space for it.

    A document that fits in no row is dropped, and the batch is full after `patience` of these.
    """
    packed: list[Encoded] = [[] for _ in range(rows)]
    misses = 0
    while misses < patience:
        document = next(documents)[: length + 1]
        row = next((row for row in packed if len(row) + len(document) <= length + 1), None)
        if row is None:
            misses += 1
        else:
            row.extend(document)
    return _batch(packed, length + 1, padding)


def _batch(rows: list[Encoded], width: int, padding: int) -> Batch:
    tokens = np.full((len(rows), width), padding, np.int32)
    weights = np.zeros((len(rows), width), np.float32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = [token for token, _ in row]
        weights[i, : len(row)] = [weight for _, weight in row]
    return Batch(tokens, weights[:, 1:])


def batch_at(step: int, seed: int, tokenizer: Tokenizer, rows: int, length: int, copy_phase: bool) -> Batch:
    """Return a step's batch, thinned. It depends on its arguments alone, so a resumed run sees the same batches."""
    rng = Random(f"{seed}/train/{step}")
    mix = COPY_PHASE if copy_phase else FULL_PHASE

    def documents() -> Iterator[Encoded]:
        while True:
            yield encode(draw_document(Draw(rng), mix), tokenizer)

    return pack(documents(), rows, length, token_id(tokenizer, PADDING)).thinned(rng.getrandbits(32))
