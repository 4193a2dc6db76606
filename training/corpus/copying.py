"""Copying: repeat, list and rearrange words the model has never seen. Teaches attention to look at the prompt."""

from __future__ import annotations

from training import vocabulary as words
from training.dialogue import Dialogue, ask
from training.draw import Draw

_REPEAT = (
    "Repeat after me: {s}",
    "Repeat this: {s}",
    "Say this: {s}",
    "Repeat the following words: {s}",
    'Say "{s}"',
    "Copy this text: {s}",
    "Write exactly this: {s}",
    'Repeat: "{s}"',
    "Echo: {s}",
    "Please say {s}",
    "Repeat what I say: {s}",
    "Type this again: {s}",
)
_TIMES = (
    "Say {s} {n} times.",
    "Repeat the word {s} {n} times.",
    "Write {s} {n} times.",
    'Write "{s}" {n} times.',
    "Say the word {s} {n} times.",
    "Print {s} {n} times.",
)
_LIST = (
    "Make a list of these words: {s}",
    "Write these as a bullet list: {s}",
    "Turn this into a list: {s}",
    "Make a bullet list: {s}",
    "List these: {s}",
    "Put these in a list: {s}",
    "Write a list with {s}",
    "Make a shopping list: {s}",
    "Convert to bullet points: {s}",
)
_PICK = {
    "first": (0, ("What is the first word in: {s}", "Give me the first word of: {s}", "First word of {s}",
                  "Which word comes first? {s}", 'What is the first word of "{s}"?')),
    "last": (-1, ("What is the last word in: {s}", "Give me the last word of: {s}", "Last word of {s}",
                  "Which word comes last? {s}", 'What is the last word of "{s}"?')),
    "second": (1, ("What is the second word in: {s}", "Give me the second word of: {s}", "Second word of {s}",
                   "Which word comes second? {s}", 'What is the second word of "{s}"?')),
}  # fmt: skip
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5}


def _item(draw: Draw) -> str:
    kind = draw.number(0, 5)
    if kind == 0:
        return draw.choice(words.TOPICS)
    if kind == 1:
        return draw.choice(words.THINGS)
    if kind == 2:
        return draw.person()
    if kind == 3:
        return str(draw.number(0, 9999))
    return draw.word()


def _items(draw: Draw, low: int, high: int) -> list[str]:
    return [_item(draw) for _ in range(draw.number(low, high))]


def repeat(draw: Draw) -> Dialogue:
    """Say one to eight given words again."""
    text = " ".join(_items(draw, 1, 8))
    return ask("repeat", draw.phrase(_REPEAT, s=text), text)


def repeat_long(draw: Draw) -> Dialogue:
    """Say ten to thirty given words again: no other task has so many copied tokens."""
    text = " ".join(_items(draw, 10, 30))
    return ask("repeat_long", draw.phrase(_REPEAT, s=text), text)


def times(draw: Draw) -> Dialogue:
    """Say a word several times."""
    spelt, count = draw.choice(tuple(_NUMBERS.items()))
    item = _item(draw)
    return ask("repeat", draw.phrase(_TIMES, s=item, n=draw.choice((spelt, str(count)))), " ".join([item] * count))


def bullets(draw: Draw) -> Dialogue:
    """Turn words with commas into a bullet list."""
    items = _items(draw, 2, 6)
    text = ", ".join(items) if draw.chance(0.6) else ", ".join(items[:-1]) + " and " + items[-1]
    return ask("bullets", draw.phrase(_LIST, s=text), "\n".join(f"- {item}" for item in items))


def pick(draw: Draw) -> Dialogue:
    """Name the first, second or last of some words."""
    index, templates = draw.choice(tuple(_PICK.values()))
    items = _items(draw, 2, 6)
    return ask("pick", draw.phrase(templates, s=" ".join(items)), items[index])
