"""Made-up words, each of another kind of spelling, so that a model cannot copy them by a few known pieces.

The spellings of held-out words reach some of the tokenizer's tokens rarely. A token that training never copies is
copied wrongly: a name that contains it loses a syllable, or a common word takes its place. `fragments` are therefore
made of pieces of all words that the corpus has, which are what the tokenizer's tokens are.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random

from training import vocabulary

_LONGEST = 14  # letters of a walk, and of fragments
_START, _END = "^^", "."


def syllables(rng: Random) -> str:
    """Return one to five syllables, mostly two."""
    count = rng.choices((1, 2, 3, 4, 5), (5, 10, 4, 2, 1))[0]
    parts = [rng.choice(vocabulary.ONSETS) + rng.choice(vocabulary.VOWELS) for _ in range(count)]
    middle = rng.choice(vocabulary.INNER_CODAS)
    return parts[0] + middle + "".join(parts[1:]) + rng.choice(vocabulary.CODAS)


def blend(rng: Random) -> str:
    """Return the beginning of one name and the end of another: closer to real names than syllables are."""
    first, second = rng.sample(vocabulary.PEOPLE, 2)
    return (first[: rng.randint(2, 4)] + second[-rng.randint(2, 4) :]).lower()


def _followers(words: Sequence[str]) -> Mapping[str, Sequence[str]]:
    """Return the letters that follow each pair of letters in the words, as often as they do."""
    table: dict[str, list[str]] = defaultdict(list)
    for word in words:
        padded = _START + word.lower() + _END
        for i in range(len(padded) - 2):
            table[padded[i : i + 2]].append(padded[i + 2])
    return table


_FOLLOWERS = _followers(
    [
        word
        for word in (*vocabulary.PEOPLE, *vocabulary.SURNAMES, *vocabulary.TOWNS, *vocabulary.TOPICS)
        if word.isalpha()
    ]
)


def walk(rng: Random) -> str:
    """Return letters that each follow the two before them in some real word: three to fourteen of them."""
    letters = ""
    while len(letters) < _LONGEST:
        letter = rng.choice(_FOLLOWERS[(_START + letters)[-2:]])
        if letter != _END:
            letters += letter
        elif len(letters) >= 3:
            return letters
        else:
            letters = ""
    return letters


_SPELLINGS: tuple[Callable[[Random], str], ...] = (syllables, blend, walk)
_SHARES = (5, 3, 4)
_KNOWN = frozenset(
    word.lower()
    for word in (*vocabulary.PEOPLE, *vocabulary.SURNAMES, *vocabulary.TOWNS, *vocabulary.TOPICS, *vocabulary.ANIMALS)
)


def made_up(rng: Random) -> str:
    """Return a lower-case word of any of these spellings that is no known name or topic."""
    while (word := rng.choices(_SPELLINGS, _SHARES)[0](rng)) in _KNOWN:
        pass
    return word


@cache
def _corpus_words() -> Sequence[str]:
    """Return the lower-case words in the sources of the corpus, of at least two letters each."""
    folder = Path(__file__).parent
    sources = [folder / "vocabulary.py", *sorted(folder.glob("corpus/*.*"))]
    return sorted({word for path in sources for word in re.findall("[a-z]{2,}", path.read_text().lower())})


def fragments(rng: Random) -> str:
    """Return one to three pieces of words of the corpus, joined: three to fourteen lower-case letters."""
    while True:
        pieces = []
        for _ in range(rng.choices((1, 2, 3), (4, 4, 1))[0]):
            word = rng.choice(_corpus_words())
            start = rng.randrange(len(word) - 1) if rng.random() < 0.5 else 0
            end = rng.randint(start + 2, len(word)) if rng.random() < 0.6 else len(word)
            pieces.append(word[start:end])
        if 3 <= len(made := "".join(pieces)) <= _LONGEST and made not in _KNOWN:
            return made
