"""Prompt noise: people type in lower case, without punctuation, with typos and with polite words around the request.

Noise is applied to a prompt *template*, outside its `{fields}`, so the values to be copied stay intact.
"""

# ruff: noqa: SIM905 -- word lists read better as text

from __future__ import annotations

import re
from random import Random

_FIELD = re.compile(r"(\{\w+\})")
_WORD = re.compile(r"[A-Za-z]{4,}")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_IMPERATIVES = frozenset(
    "tell write give translate summarize summarise extract say explain define compute calculate find make "
    "show create repeat convert read describe list classify name answer add multiply count turn put call".split()
)
_BEFORE_IMPERATIVE = (
    "Please {}",
    "Can you {}",
    "Could you {}",
    "Could you please {}",
    "Can you please {}",
    "Would you {}",
    "I want you to {}",
    "I would like you to {}",
    "Now {}",
    "Hi, please {}",
    "Hello! {}",
    "Hey, {}",
    "OK, {}",
    "Now please {}",
    "{} please",
    "{} for me",
    "{} Thanks!",
)
_BEFORE_QUESTION = (
    "Hi, {}",
    "Hello, {}",
    "Hey, {}",
    "OK, {}",
    "So {}",
    "Quick question: {}",
    "One question: {}",
    "And {}",
    "Please tell me: {}",
    "Now {}",
    "{} Thanks!",
    "{} please",
    "Hello! {}",
)


def _polite(text: str, rng: Random) -> str:
    """Wrap a request in polite words that fit its first word."""
    first = text.split(" ", 1)[0].strip(",:").lower()
    pattern = rng.choice(_BEFORE_IMPERATIVE if first in _IMPERATIVES else _BEFORE_QUESTION)
    starts_with_field = text.startswith("{")
    if not pattern.startswith("{}") and not pattern.endswith("! {}") and not starts_with_field and first != "i":
        text = text[:1].lower() + text[1:]
    # The template still has fields in braces, so it is spliced in rather than formatted.
    return pattern.replace("{}", text)


def _typo(word: str, rng: Random) -> str:
    """Make one typing mistake in a word of at least four letters; the first letter stays."""
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind == 1:
        return word[:at] + word[at + 1 :]
    if kind == 2:
        return word[:at] + word[at] + word[at:]
    return word[:at] + rng.choice(_LETTERS) + word[at + 1 :]


def noisy(template: str, rng: Random) -> str:
    """Return the template as a hurried person would type it. About two in five are unchanged."""
    if rng.random() < 0.25:
        template = _polite(template, rng)
    if rng.random() < 0.4:
        return template
    parts = _FIELD.split(template)
    literal = range(0, len(parts), 2)
    style = rng.random()
    if style < 0.55:
        for i in literal:
            parts[i] = parts[i].lower()
    elif style < 0.58:
        for i in literal:
            parts[i] = parts[i].upper()
    if rng.random() < 0.3:
        for i in literal:
            parts[i] = parts[i].replace(",", "").replace("'", "")
    if rng.random() < 0.35:
        rate = rng.choice((0.06, 0.12, 0.2))
        for i in literal:
            parts[i] = _WORD.sub(lambda m: _typo(m.group(), rng) if rng.random() < rate else m.group(), parts[i])
    text = "".join(parts)
    if rng.random() < 0.5:
        text = _ending(text, rng)
    return text


def _ending(text: str, rng: Random) -> str:
    """Drop, double or change the closing punctuation mark."""
    bare = text.rstrip(".?!")
    if bare == text and not text.endswith(("}", '"')):
        return text + rng.choice((".", "!", "?", ""))
    if bare == text:
        return text
    return bare + rng.choice(("", "", "", "??", "!", "?", " ?", "..."))
