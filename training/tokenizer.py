"""Train the byte-level BPE tokenizer on a sample of the corpus.

Three choices serve copying. The vocabulary is small, because a token that training sees rarely is copied wrongly: of
4,096 tokens half occurred less than 37 times in a million, and in names those below 18 were wrong ten times as often as
others. A word that begins with a capital never takes the space before it into its token, so a name has the same tokens
after a space, after a quotation mark and at the start of a line. Digits are single tokens.
"""

from __future__ import annotations

from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.corpus import COPY_PHASE, FULL_PHASE, draw_document
from training.dialogue import ENDOFTEXT, IM_END, IM_START, PADDING, text_of
from training.draw import Draw

VOCAB_SIZE = 1728
SPECIAL_TOKENS = (ENDOFTEXT, PADDING, IM_START, IM_END)  # ids 0 to 3

# Contractions; one digit; lower-case words with their space; other words without; symbols with their space; line
# breaks one by one, so that indentation stays a separate token; other white space.
_WORD = (
    r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})|\p{N}| ?\p{Ll}[\p{L}\p{M}]*|\p{L}[\p{L}\p{M}]*"
    r"| ?[^\s\p{L}\p{N}]+|\n|\s+(?!\S)|\s+"
)


def train_tokenizer(seed: int, documents: int, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Learn the merges from `documents` documents drawn with the seed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = (Draw(Random(f"{seed}/tokenizer/{i}")) for i in range(documents))
    mixes = (COPY_PHASE, FULL_PHASE)
    texts = (text_of(draw_document(draw, mixes[i % 2])) for i, draw in enumerate(sources))
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Return the id of a special token. Raises ValueError where the tokenizer lacks it."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token!r}; train it with training.tokenizer")
    return int(found)
