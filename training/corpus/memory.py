"""Conversation memory: facts stated in earlier turns (or in the same message) and asked for later."""

from __future__ import annotations

from dataclasses import dataclass

from training import vocabulary as words
from training.corpus import knowledge, sentiment, smalltalk, sums
from training.dialogue import Dialogue, Turn
from training.draw import Draw, with_article


@dataclass(frozen=True)
class Fact:
    """One kind of fact: how it is stated, acknowledged, asked for, answered, and answered when never stated."""

    tell: tuple[str, ...]
    ack: str
    ask: tuple[str, ...]
    answer: str
    unknown: str


NAME = Fact(
    (
        "My name is {v}.",
        "I am {v}.",
        "I'm {v}.",
        "Hello, I am {v}.",
        "Hi, my name is {v}.",
        "Hi, I'm {v}.",
        "Call me {v}.",
        "You can call me {v}.",
        "People call me {v}.",
        "Hello! My name is {v}.",
        "This is {v}.",
        "Remember that my name is {v}.",
    ),
    "Nice to meet you, {v}!",
    (
        "What is my name?",
        "What's my name?",
        "Do you remember my name?",
        "Who am I?",
        "Tell me my name.",
        "Can you tell me my name?",
        "What did I say my name was?",
        "Do you know my name?",
        "Say my name.",
        "What am I called?",
        "What was my name again?",
        "Do you still know my name?",
        "Do you know who I am?",
    ),
    "Your name is {v}.",
    "You have not told me your name.",
)
CITY = Fact(
    (
        "I live in {v}.",
        "My home is in {v}.",
        "My city is {v}.",
        "I am from {v}.",
        "I come from {v}.",
        "My home town is {v}.",
        "I have lived in {v} for years.",
        "I moved to {v} last year.",
        "I live in the city of {v}.",
        "I live in a town called {v}.",
    ),
    "{v} sounds like a nice place.",
    (
        "Where do I live?",
        "Which city do I live in?",
        "What is my city?",
        "Where am I from?",
        "Tell me where I live.",
        "Do you remember where I live?",
        "What city am I from?",
        "What is my home town?",
        "Do you know where I live?",
        "In which town do I live?",
    ),
    "You live in {v}.",
    "You have not told me where you live.",
)
AGE = Fact(
    ("I am {v} years old.", "I'm {v} years old.", "My age is {v}.", "I turned {v} last week.", "I just turned {v}."),
    "You are {v} years old, I will remember that.",
    (
        "How old am I?",
        "What is my age?",
        "Do you remember my age?",
        "Tell me how old I am.",
        "Do you know how old I am?",
        "Do you remember how old I am?",
    ),
    "You are {v} years old.",
    "You have not told me your age.",
)
JOB = Fact(
    ("I work as {v}.", "I am {v}.", "I'm {v}.", "I have worked as {v} for ten years.", "I earn my living as {v}."),
    "Being {v} sounds interesting.",
    (
        "What is my job?",
        "What do I do for work?",
        "What do I work as?",
        "Do you remember my job?",
        "What is my profession?",
        "Tell me my job.",
        "What do I do for a living?",
    ),
    "You work as {v}.",
    "You have not told me your job.",
)
PET = Fact(
    (
        "I have a {k} called {v}.",
        "My {k} is called {v}.",
        "My {k}'s name is {v}.",
        "I have a {k} named {v}.",
        "I have a pet {k} called {v}.",
        "The name of my {k} is {v}.",
        "My {k} is named {v}.",
        "I've got a {k}. Its name is {v}.",
        "I just got a {k} and named it {v}.",
    ),
    "{v} is a lovely name for a {k}.",
    (
        "What is my {k} called?",
        "What is the name of my {k}?",
        "What's my {k}'s name?",
        "Do you remember the name of my {k}?",
        "Tell me the name of my {k}.",
        "How is my {k} called?",
        "What did I name my {k}?",
        "What is my {k}'s name?",
    ),
    "Your {k} is called {v}.",
    "You have not told me about your {k}.",
)
RELATIVE = Fact(
    (
        "My {k} is called {v}.",
        "My {k}'s name is {v}.",
        "The name of my {k} is {v}.",
        "I have a {k} named {v}.",
        "My {k} is named {v}.",
    ),
    "Please say hello to {v} from me.",
    (
        "What is my {k} called?",
        "What is the name of my {k}?",
        "What's my {k}'s name?",
        "Who is my {k}?",
        "Do you remember the name of my {k}?",
        "Tell me my {k}'s name.",
        "What is my {k}'s name?",
    ),
    "Your {k} is called {v}.",
    "You have not told me about your {k}.",
)
FAVOURITE = Fact(
    (
        "My favorite {k} is {v}.",
        "My favourite {k} is {v}.",
        "The {k} I like best is {v}.",
        "{v} is my favorite {k}.",
        "I think {v} is the best {k}.",
        "For me the best {k} is {v}.",
        "My favorite {k} is {v}, remember that.",
    ),
    "{v} is a good choice.",
    (
        "What is my favorite {k}?",
        "What is my favourite {k}?",
        "Which {k} do I like best?",
        "What's my favorite {k}?",
        "Do you remember my favorite {k}?",
        "Tell me my favorite {k}.",
        "Which {k} is my favorite?",
        "What {k} do I like?",
    ),
    "Your favorite {k} is {v}.",
    "You have not told me your favorite {k}.",
)
CODE = Fact(
    (
        "The {k} is {v}.",
        "Remember this {k}: {v}.",
        "My {k} is {v}.",
        "Please remember the {k} {v}.",
        "Remember that the {k} is {v}.",
        "Keep in mind that my {k} is {v}.",
        "Note: the {k} is {v}.",
        "Remember the {k}: {v}",
    ),
    "I will remember {v}.",
    (
        "What is the {k}?",
        "What was the {k}?",
        "Tell me the {k}.",
        "Do you remember the {k}?",
        "Which {k} did I tell you?",
        "What is my {k}?",
        "Repeat the {k}.",
    ),
    "The {k} is {v}.",
    "You have not told me a {k}.",
)
RELATIVES = ("sister", "brother", "mother", "father", "friend", "best friend", "son", "daughter", "boss", "wife",
             "husband", "neighbor", "cousin", "teacher")  # fmt: skip
CODE_KINDS = ("code word", "password", "secret word", "number", "secret number", "magic word", "word", "code", "pin")
FAVOURITES: dict[str, tuple[str, ...]] = {
    "color": words.COLOURS,
    "colour": words.COLOURS,
    "food": words.FOODS,
    "animal": words.ANIMALS,
    "hobby": words.HOBBIES,
    "day": words.DAYS,
    "month": words.MONTHS,
    "sport": ("tennis", "football", "swimming", "running", "cycling", "skiing", "basketball", "golf", "rugby"),
    "drink": ("tea", "coffee", "milk", "water", "lemonade", "orange juice", "hot chocolate", "apple juice"),
    "book": (),
    "song": (),
    "movie": (),
    "game": (),
    "number": (),
    "city": words.TOWNS,
    "season": ("spring", "summer", "autumn", "winter"),
    "fruit": ("apples", "bananas", "cherries", "grapes", "oranges", "pears", "plums", "strawberries", "lemons"),
}

Stated = tuple[Fact, dict[str, str]]


def _favourite(draw: Draw) -> dict[str, str]:
    kind = draw.choice(tuple(FAVOURITES))
    options = FAVOURITES[kind]
    if kind == "number":
        return {"k": kind, "v": str(draw.number(1, 99))}
    value = draw.choice(options) if options and draw.chance(0.6) else draw.word()
    return {"k": kind, "v": value.capitalize() if kind in ("book", "song", "movie") else value}


def _code(draw: Draw) -> dict[str, str]:
    kind = draw.choice(CODE_KINDS)
    numeric = kind in ("number", "secret number", "pin")
    return {"k": kind, "v": str(draw.number(10, 9999)) if numeric else draw.word()}


def _fact(draw: Draw, fact: Fact) -> Stated:
    """Fill one kind of fact with values."""
    if fact is NAME:
        return fact, {"v": draw.typed(draw.person())}
    if fact is CITY:
        return fact, {"v": draw.typed(draw.place())}
    if fact is AGE:
        return fact, {"v": str(draw.number(5, 95))}
    if fact is JOB:
        return fact, {"v": with_article(draw.choice(words.JOBS))}
    if fact is PET:
        return fact, {"k": draw.choice(words.PETS), "v": draw.typed(draw.person())}
    if fact is RELATIVE:
        return fact, {"k": draw.choice(RELATIVES), "v": draw.typed(draw.person())}
    return fact, _favourite(draw) if fact is FAVOURITE else _code(draw)


_KINDS = (NAME, NAME, NAME, CITY, AGE, JOB, PET, RELATIVE, FAVOURITE, FAVOURITE, CODE)


def _facts(draw: Draw, count: int) -> list[Stated]:
    """Return several facts whose questions cannot be confused with each other."""
    stated: list[Stated] = []
    seen: set[tuple[int, str]] = set()
    while len(stated) < count:
        fact, fields = _fact(draw, draw.choice(_KINDS))
        key = (id(fact), fields.get("k", "").replace("colour", "color"))  # two spellings of one question
        if key not in seen:
            seen.add(key)
            stated.append((fact, fields))
    return stated


def _tell(draw: Draw, stated: list[Stated]) -> str:
    statements = [draw.phrase(fact.tell, **fields) for fact, fields in stated]
    if len(statements) > 1 and draw.chance(0.3):
        statements = [text.rstrip(".!") for text in statements]
        return " and ".join(text if text.startswith("I") else text[0].lower() + text[1:] for text in statements)
    return " ".join(statements)


def _distraction(draw: Draw) -> list[Turn]:
    """Return a question and answer about something else, between a fact and its question."""
    make = draw.choice((smalltalk.make, sums.make, knowledge.make, sentiment.make, smalltalk.fallback))
    return [turn for turn in make(draw).turns if turn.role != "system"]


def make(draw: Draw) -> Dialogue:
    """Tell one to four facts over one to three turns, with distractions, then ask for one or two of them."""
    stated = _facts(draw, draw.rng.choices((1, 2, 3, 4), (4, 4, 2, 1))[0])
    turns: list[Turn] = []
    rest = list(stated)
    while rest:
        take = min(len(rest), draw.rng.choices((1, 2, 3), (5, 3, 1))[0])
        group, rest = rest[:take], rest[take:]
        ack = " ".join(fact.ack.format(**fields) for fact, fields in group)
        turns += [Turn("user", _tell(draw, group)), Turn("assistant", ack)]
        if draw.chance(0.15):
            turns += _distraction(draw)
    for fact, fields in draw.sample(stated, min(len(stated), draw.number(1, 2))):
        turns += [Turn("user", draw.phrase(fact.ask, **fields)), Turn("assistant", fact.answer.format(**fields))]
    return Dialogue("memory", tuple(turns))


def single(draw: Draw) -> Dialogue:
    """Return facts and the question for one of them in the same message."""
    stated = _facts(draw, draw.number(1, 3))
    fact, fields = draw.choice(stated)
    question = f"{_tell(draw, stated)} {draw.phrase(fact.ask, **fields)}"
    return Dialogue("memory_single", (Turn("user", question), Turn("assistant", fact.answer.format(**fields))))


def unknown(draw: Draw) -> Dialogue:
    """Return a question for a fact that was never stated; sometimes another fact was."""
    stated = _facts(draw, 2)
    turns: list[Turn] = []
    if draw.chance(0.5):
        fact, fields = stated[0]
        turns += [Turn("user", _tell(draw, stated[:1])), Turn("assistant", fact.ack.format(**fields))]
    fact, fields = stated[1]
    turns += [Turn("user", draw.phrase(fact.ask, **fields)), Turn("assistant", fact.unknown.format(**fields))]
    return Dialogue("memory_unknown", tuple(turns))
