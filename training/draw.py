"""The random source of the generator: seeded choices, made-up names, and the train / held-out split.

A made-up value belongs to the held-out split when its CRC-32 is a multiple of ten. Training draws never return
such a value and held-out draws return nothing else, so copying is always measured on names the model never saw.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar
from zlib import crc32

from training import names, vocabulary
from training.noise import noisy

T = TypeVar("T")

_HELD_OUT_MODULUS = 10
_MAX_DRAWS = 1000
_FRAGMENT_SHARE = 0.4
_SURNAME_SHARE = 0.1
_HYPHEN_SHARE = 0.03
_TWO_WORD_PLACES = 0.06


def is_held_out(value: str) -> bool:
    """Return whether a value (a name, a sum, a sentence) is kept for evaluation only."""
    return crc32(value.lower().encode()) % _HELD_OUT_MODULUS == 0


def with_article(noun: str) -> str:
    """Return the noun with "a" or "an" before it."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def fix_articles(text: str) -> str:
    """Write "an" before the vowels that filled-in words begin with."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


@dataclass(frozen=True)
class Draw:
    """Everything a task needs to make one document."""

    rng: Random
    held_out: bool = False
    noise: bool = True

    def choice(self, options: Sequence[T]) -> T:
        """Return one of the options, all equally likely."""
        return self.rng.choice(options)

    def sample(self, options: Sequence[T], count: int) -> list[T]:
        """Return several different options in random order."""
        return self.rng.sample(options, count)

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.rng.random() < probability

    def number(self, low: int, high: int) -> int:
        """Return an integer between low and high, both included."""
        return self.rng.randint(low, high)

    def split(self, make: Callable[[], T], key: Callable[[T], str] = str) -> T:
        """Draw with `make` until the value belongs to this source's part of the held-out split.

        Raises ValueError where a task has so few values that none belongs to it.
        """
        for _ in range(_MAX_DRAWS):
            value = make()
            if is_held_out(key(value)) == self.held_out:
                return value
        raise ValueError(f"no value in this part of the held-out split in {_MAX_DRAWS} draws, e.g. not {value!r}")

    def phrase(self, templates: Sequence[str], **fields: object) -> str:
        """Return one of the templates, with prompt noise around (never inside) its fields."""
        template = self.choice(templates)
        if self.noise:
            template = noisy(template, self.rng)
        return template.format(**fields)

    def say(self, templates: Sequence[str], **fields: object) -> str:
        """Return one of the templates, without noise: for answers and passages."""
        return self.choice(templates).format(**fields)

    def word(self) -> str:
        """Return a made-up lower-case word; in training, some are fragments of known words."""
        fragments = not self.held_out and self.chance(_FRAGMENT_SHARE)
        return self.split(lambda: names.fragments(self.rng) if fragments else names.made_up(self.rng))

    def _name(self, known: Sequence[str]) -> str:
        # Held-out names are always made up; training sees all known names.
        made_up = self.held_out or self.chance(0.5)
        return self.word().capitalize() if made_up else self.choice(known)

    def _part(self, known: Sequence[str]) -> str:
        # Of a name that is split as a whole. In training no part is held out either.
        return names.made_up(self.rng).capitalize() if self.held_out else self._name(known)

    def person(self) -> str:
        """Return a given name, made up or common; now and then two joined by a hyphen, or with a surname."""
        kind = self.rng.random()
        if kind < _SURNAME_SHARE:
            return self.split(lambda: f"{self._part(vocabulary.PEOPLE)} {self._part(vocabulary.SURNAMES)}")
        if kind < _SURNAME_SHARE + _HYPHEN_SHARE:
            return self.split(lambda: f"{self._part(vocabulary.PEOPLE)}-{self._part(vocabulary.PEOPLE)}")
        return self._name(vocabulary.PEOPLE)

    def place(self) -> str:
        """Return a town, made up or real; now and then of two words."""
        if self.chance(_TWO_WORD_PLACES):
            pattern = self.choice(vocabulary.PLACE_PATTERNS)
            return self.split(lambda: pattern.format(self.word().capitalize()))
        return self._name(vocabulary.TOWNS)

    def typed(self, name: str) -> str:
        """Return a name as a user types it: now and then in lower case. Answers copy it as typed."""
        return name.lower() if self.noise and self.chance(0.15) else name

    def people(self, count: int) -> list[str]:
        """Return several different given names."""
        return self._distinct(self.person, count)

    def places(self, count: int) -> list[str]:
        """Return several different towns."""
        return self._distinct(self.place, count)

    def _distinct(self, make: Callable[[], str], count: int) -> list[str]:
        drawn: list[str] = []
        while len(drawn) < count:
            name = make()
            if name.lower() not in {other.lower() for other in drawn}:
                drawn.append(name)
        return drawn
