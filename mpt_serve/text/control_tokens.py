"""Control tokens, such as `<|im_end|>`, and encoding that takes them only where they were written on purpose.

The library matches a control token wherever its text stands. Here a copy of the tokenizer knows control tokens under
secret names alone: text cannot spell them, and what is to become a control token is renamed before encoding. All else
in the copy is the same, so the ids of ordinary text are those of the original.
"""

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from mpt_serve.text.text_encoder import TextEncoder

__all__ = ["ControlTokens", "Marks", "MarksError"]

_FENCE = "\U000ffffd"  # around secret names
_PRIVATE_USE = range(0xF0000, ord(_FENCE))  # a plane whose characters have no meaning, no case, and are no whitespace


class MarksError(ValueError):
    """A text uses too many different characters to find unused ones for marks."""


class Marks:
    """Substitutes for characters that begin or end control tokens, so that a text holds none and stays as long.

    Each is a random private-use character that does not occur in the texts. A template treats it as it treats
    punctuation: it is no letter and no space.
    """

    def __init__(self, characters: Iterable[str], texts: Sequence[str]) -> None:
        used = set().union(*texts)
        marked = used.intersection(characters)
        if marked and len(used) > len(_PRIVATE_USE) // 2:  # so that a few draws find a free one
            raise MarksError("a text uses too many different characters")
        self._to_mark: dict[int, str] = {}
        self._to_char: dict[int, str] = {}
        for char in marked:
            mark = secrets.choice(_PRIVATE_USE)
            while chr(mark) in used or mark in self._to_char:
                mark = secrets.choice(_PRIVATE_USE)
            self._to_mark[ord(char)] = chr(mark)
            self._to_char[mark] = char

    def __bool__(self) -> bool:
        """Return whether the texts hold any of the characters."""
        return bool(self._to_mark)

    def mark(self, text: str) -> str:
        """Return the text with substitutes."""
        return text.translate(self._to_mark)

    def unmark(self, text: str) -> str:
        """Return the text with the characters that the substitutes stand for."""
        return text.translate(self._to_char)


class ControlTokens:
    """The control tokens of a tokenizer. Thread-safe: nothing changes after construction.

    texts: the control tokens' texts by id.
    renamed, encoder: the copy of the tokenizer, for which control tokens are ordinary text, and what encodes by it.
    """

    def __init__(self, tokenizer: Tokenizer, encoder: TextEncoder, texts: Mapping[int, str]) -> None:
        aliases = {text: _secret_name() for text in texts.values()}
        self._aliases = aliases
        self.renamed = _renamed(tokenizer, texts, aliases)
        self.encoder = encoder.renamed(self.renamed, aliases)
        self._original_ids = _original_ids(self.renamed, tokenizer, aliases)
        # Of two that begin at the same character the library takes the longer one.
        words = [_pattern(tokenizer, i, text) for i, text in sorted(texts.items(), key=lambda item: -len(item[1]))]
        self._pattern = re.compile("|".join(words) or r"(?!)")
        ends = {char for text in texts.values() for char in (text[0], text[-1])}
        # A template may change the case of a text.
        self.boundary_characters = frozenset(
            "".join(ends | {case for char in ends for case in (char.lower(), char.upper()) if len(case) == 1})
        )

    def find(self, text: str) -> list[str]:
        """Return the control tokens in a text, in order."""
        return self._pattern.findall(text)

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text in which control tokens are ordinary text."""
        return list(self.original_ids(self.encoder.encode(text, add_special_tokens)))

    def original_ids(self, ids: Sequence[int]) -> Sequence[int]:
        """Return the original's ids for those of `renamed`."""
        moved = self._original_ids
        return [moved.get(i, i) for i in ids] if moved else ids

    def rename(self, prompt: str, marks: Marks | None = None) -> str:
        """Return a rendered conversation for `encode`, its control tokens renamed; none begins or ends with a mark."""
        named = self._pattern.sub(lambda match: self._aliases[match[0]], prompt)
        return named if marks is None else marks.unmark(named)


def _secret_name() -> str:
    """Return a name that nobody can guess, and so no text can hold."""
    return f"{_FENCE}{secrets.token_hex(16)}{_FENCE}"


def _pattern(tokenizer: Tokenizer, token_id: int, text: str) -> str:
    token = tokenizer.get_added_tokens_decoder().get(token_id)
    return rf"(?<!\w){re.escape(text)}(?!\w)" if token is not None and token.single_word else re.escape(text)


def _renamed(tokenizer: Tokenizer, texts: Mapping[int, str], aliases: Mapping[str, str]) -> Tokenizer:
    """Return a copy of the tokenizer that knows the control tokens by their aliases alone."""
    state: dict[str, Any] = json.loads(tokenizer.to_str())
    added = {token["id"]: token for token in state["added_tokens"]}
    for token_id, text in texts.items():
        strips = {"lstrip": False, "rstrip": False} | added.get(token_id, {})
        own = {"id": token_id, "content": aliases[text], "single_word": False, "normalized": False, "special": True}
        added[token_id] = strips | own
    state["added_tokens"] = [added[token_id] for token_id in sorted(added)]
    # A model may find its control tokens in ordinary text, too: Unigram takes them for words.
    model = state["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {aliases.get(piece, piece): token_id for piece, token_id in vocab.items()}
    else:
        model["vocab"] = [[aliases.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in aliases:
        model["unk_token"] = aliases[model["unk_token"]]
    if "merges" in model:
        pairs = ((merge, merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"])
        model["merges"] = [merge for merge, pair in pairs if aliases.keys().isdisjoint({*pair, "".join(pair)})]
    copy: Tokenizer = Tokenizer.from_str(json.dumps(state))
    return copy


def _original_ids(copy: Tokenizer, tokenizer: Tokenizer, aliases: Mapping[str, str]) -> dict[int, int]:
    """Return the original's ids of the copy's added tokens, where they differ."""
    names = {token.content for token in tokenizer.get_added_tokens_decoder().values()} | aliases.keys()
    pairs = ((copy.token_to_id(aliases.get(name, name)), tokenizer.token_to_id(name)) for name in names)
    return {own: original for own, original in pairs if own is not None and original is not None and own != original}
