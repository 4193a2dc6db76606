"""llguidance as this package uses it: the vocabulary, the limits, and the meaning of its errors.

Imports nothing of this package: `compile_worker` loads it by its path, so that the process starts fast and has exactly
the limits of its parent.
"""

import re
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

__all__ = ["MatcherError", "build_vocabulary", "error_text", "new_matcher"]

MAX_ERROR_CHARS = 300

_MAX_ROW_ITEMS = 2_000
_MAX_AUTHORED_ROW_ITEMS = 500

# The library's errors, by their first words, rephrased for the grammar's author.
_MEANINGS = {
    "NoExtension": "no token can continue it, because some part of it matches nothing",
    "Parser Error: Current row": "too many of its parts are possible at one place",
    "parser error: Too many items": "too many of its parts are possible at one place",
    "lexer error: too many": "its expressions are too complex",
    "lexer precomputation failed": "its expressions are too complex",
    "initial lexer configuration": "it is too large",
    "failed to compile JSON schema: oneOf constraints": "oneOf whose cases overlap is not supported: write anyOf, or"
    " give each case a property in required whose const or enum no other case has",
    "panic": "it is beyond what can be compiled",
}


class MatcherError(ValueError):
    """The library refuses a grammar or gave up on it; the message is written for the grammar's author."""


class _Vocabulary:
    """The tokenizer that the library requires. Masks need only its bytes: no text is ever encoded here."""

    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokens: Sequence[bytes], eos_token_id: int) -> None:
        self.tokens = list(tokens)
        self.eos_token_id = eos_token_id

    def __call__(self, text: bytes | str) -> list[int]:
        return []


def build_vocabulary(token_bytes: Sequence[bytes | None], eos_token_ids: Sequence[int]) -> LLTokenizer:
    """Return the library's trie over the tokens' bytes; None and empty bytes are ids without text."""
    eos = set(eos_token_ids)
    tokens = [b"" if data is None or i in eos else data for i, data in enumerate(token_bytes)]
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokens, eos_token_ids[0])), eos_token=list(eos_token_ids))


def new_matcher(vocabulary: LLTokenizer, grammar: str, authored: bool) -> LLMatcher:
    """Compile the library's form of a grammar, and compute its first masks. Raises MatcherError.

    authored: the rules are the client's. They may be ambiguous, and the time of a mask of an ambiguous grammar is
        cubic in a row's items: their rows are limited to fewer items than those of grammars made from schemas.
    """
    matcher = LLMatcher(vocabulary, grammar, log_level=0, limits=_limits(authored))
    mask = _checked_mask(matcher)
    if not authored:
        # A schema that is too wide fails after its first brace: better refused now than during the output.
        beyond = matcher.deep_copy()
        beyond.try_consume_tokens([(mask & -mask).bit_length() - 1])
        _checked_mask(beyond)
    return matcher


def _checked_mask(matcher: LLMatcher) -> int:
    """Return the mask, bit i for id i. Raises MatcherError: the library hides its errors behind a mask of end ids."""
    mask = b"" if matcher.is_error() else matcher.compute_bitmask()
    if matcher.is_error():
        raise MatcherError(error_text(matcher.get_error()))
    return int.from_bytes(mask, "little")


def _limits(authored: bool) -> LLParserLimits:
    """Return limits: the mask of a new state takes tens of milliseconds at most, that of a known one microseconds."""
    return LLParserLimits(
        max_items_in_row=_MAX_AUTHORED_ROW_ITEMS if authored else _MAX_ROW_ITEMS,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,  # half a KiB each, until the output ends
        max_grammar_size=500_000,
        verbose_errors=False,
    )


def error_text(error: str) -> str:
    """Return the message of the library's error on one line, without the grammar that it quotes."""
    error = re.split(r"\n<|<backtrace>", error)[0].strip()
    # The parser of expressions quotes the expression, then reports on a separate line what is wrong with it.
    reason = re.search(r"^error: (.*)", error, re.MULTILINE)
    place = re.match(r"(?:at )?(\d+)\((\d+)\): ", error)
    text = reason[1] if reason else error[place.end() if place else 0 :].split("\n")[0]
    text = next((meaning for start, meaning in _MEANINGS.items() if text.startswith(start)), text)
    text = re.sub(r'^failed to compile JSON schema: |^invalid regex ".*" \(in regex\): ', "", text)
    text = re.sub(r"^Unimplemented keys: \[(.*)\]", r"unsupported keywords: \1", text)
    text = "".join(char if char.isprintable() else " " for char in text)
    text = f"line {place[1]}, column {place[2]}: {text}" if place else text
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "..."
