"""Made-up words, each of another kind of spelling, so that a model cannot copy them by a few known pieces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from random import Random

from training import vocabulary

_LONGEST_WALK = 14
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
    while len(letters) < _LONGEST_WALK:
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
