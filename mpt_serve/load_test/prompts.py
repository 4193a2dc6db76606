"""Prompts of given lengths in tokens, for any tokenizer."""

import random
from dataclasses import dataclass

__all__ = ["Lengths", "WordCounts", "words"]

# Frequent words of English, which most tokenizers have as one token each.
_WORD_LIST = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water mother area
money story fact month lot right study book eye job word business issue side kind head service friend father power
hour game line member law car city community name team minute idea body information back parent face others
level office health person art war history party result change morning reason research girl moment air teacher
force education
"""
_WORDS = _WORD_LIST.split()


@dataclass(frozen=True)
class Lengths:
    """Numbers of tokens: from `low` to `high`, all equally likely."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """Return the lengths that `128` or `64-512` states. Raises ValueError."""
        low, dash, high = text.partition("-")
        lengths = cls(int(low), int(high) if dash else int(low))
        if not 1 <= lengths.low <= lengths.high:
            raise ValueError("must be a number of tokens, such as 128, or a range, such as 64-512")
        return lengths

    def draw(self, source: random.Random) -> int:
        """Return one of them."""
        return source.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class WordCounts:
    """How many words make a prompt of a number of tokens. overhead: tokens beside them, such as of a chat template."""

    tokens_per_word: float = 1.0
    overhead: float = 0.0

    @classmethod
    def fit(cls, short: tuple[int, int], long: tuple[int, int]) -> "WordCounts":
        """Return the line through two measurements, of (words, tokens) each."""
        slope = (long[1] - short[1]) / (long[0] - short[0])
        return cls(slope, short[1] - slope * short[0]) if slope > 0 else cls()

    def words_for(self, tokens: int) -> int:
        """Return the number of words, at least one."""
        return max(1, round((tokens - self.overhead) / self.tokens_per_word))


def words(count: int, source: random.Random) -> str:
    """Return a text of random words. Two texts differ from their first words on: no server has its prefix cached."""
    return " ".join(source.choices(_WORDS, k=count))
