"""Short formatted texts: emails, poems, slogans and invitations with the names from the prompt in them."""

from __future__ import annotations

from functools import partial

from training import vocabulary as words
from training.dialogue import Dialogue, PlainText, ask
from training.draw import Draw, with_article

_EMAIL_ASK = (
    "Write an email to {n} about {t}.",
    "Write a short email to {n} about {t}.",
    "Write an email about {t} to {n}.",
    "Can you write an email to {n} about {t}?",
    "Write a message to {n} about {t}.",
    "Write {n} an email about {t}.",
    "Write a letter to {n} about {t}.",
    "Help me write an email to {n} about {t}.",
)
_EMAIL = (
    "Dear {n},\n\nI hope you are well. I am writing to you about {t}. Can we talk about it this week?\n\nBest regards",
    "Dear {n},\n\nI would like to talk to you about {t}. Please tell me when you have time.\n\nBest regards",
    "Dear {n},\n\nthank you for your last message. I have a question about {t}. Could you call me?\n\nBest regards",
)
_POEM_ASK = (
    "Write a poem about {t}.",
    "Write a short poem about {t}.",
    "Can you write a poem about {t}?",
    "Tell me a poem about {t}.",
    "A poem about {t}",
    "Give me a little poem about {t}.",
    "Make up a poem about {t}.",
    "Write a rhyme about {t}.",
)
_POEM = (
    "I think of {t} by night and by day,\nI think of {t} at work and at play.\n"
    "The world is so big and the sky is so blue,\n"
    "And all that I write is a poem for you.",
    "Oh {t}, oh {t}, so dear to me,\nAs deep and as wide as the deep blue sea.\n"
    "When evening comes and the stars are bright,\n"
    "I sing of {t} and say good night.",
    "When I was little, when I was small,\nI loved {t} the most of all.\nNow I am older, my hair is grey,\n"
    "And I love {t} the very same way.",
)
_NAMES_ASK = (
    "Write an invitation for {n} to a {e} on {d}.",
    "Invite {n} to a {e} on {d}.",
    "Write a short invitation to a {e} on {d} for {n}.",
    "I want to invite {n} to a {e} on {d}.",
    "Help me to invite {n} to a {e} on {d}.",
)
_INVITATION = "Dear {n},\n\nyou are invited to a {e} on {d}. I hope you can come!\n\nBest wishes"
_PARTIES = ("party", "dinner", "concert", "wedding", "picnic", "lunch", "game night", "birthday party", "dance")


def holds(answer: str, reference: str, mentions: tuple[str, ...] = ()) -> bool:
    """Return whether the answer, like the reference, has four lines and mentions everything the prompt named."""
    return all(text.count("\n") >= 3 and all(word in text for word in mentions) for text in (answer, reference))


def _topic(draw: Draw) -> str:
    """Return what a text is about: a word, or a few with an article."""
    thing = draw.choice((*words.THINGS, *words.ANIMALS, "sea", "sky", "moon", "sun", "school", "meeting", "summer"))
    return draw.choice((
        draw.choice(words.TOPICS),
        draw.choice(words.THINGS) + "s",
        draw.word(),
        f"the {thing}",
        f"my {thing}",
        with_article(thing),
        f"the {draw.choice(words.COLOURS)} {thing}",
    ))  # fmt: skip


def make(draw: Draw) -> Dialogue:
    """Return an email, a poem or an invitation."""
    name = draw.person()
    topic = _topic(draw)
    kind = draw.number(0, 2)
    if kind == 0:
        check = partial(holds, mentions=(name, topic))
        return ask("writing", draw.phrase(_EMAIL_ASK, n=name, t=topic), draw.say(_EMAIL, n=name, t=topic), check)
    if kind == 1:
        check = partial(holds, mentions=(topic,))
        return ask("writing", draw.phrase(_POEM_ASK, t=topic), draw.say(_POEM, t=topic), check)
    fields = {"n": name, "e": draw.choice(_PARTIES), "d": draw.choice(words.DAYS)}
    check = partial(holds, mentions=tuple(fields.values()))
    return ask("writing", draw.phrase(_NAMES_ASK, **fields), _INVITATION.format(**fields), check)


def profile(draw: Draw) -> PlainText:
    """Return a paragraph about an invented person, as a document without roles."""
    name, city, job = draw.person(), draw.place(), draw.choice(words.JOBS)
    age, hobby, pet = draw.number(18, 80), draw.choice(words.HOBBIES), draw.choice(words.PETS)
    first = draw.choice((
        f"{name} is {with_article(job)} who lives in {city}.",
        f"{name} lives in {city} and works as {with_article(job)}.",
        f"My name is {name} and I live in {city}.",
        f"{name} was born in {city}.",
    ))  # fmt: skip
    who = ("I am", "I like", "my") if first.startswith("My") else (f"{name} is", f"{name} likes", "the")
    rest = [
        f"{who[0]} {age} years old.",
        f"{who[1]} {hobby} and {draw.choice(words.FOODS)}.",
        f"In the evening {who[2]} {pet} sleeps by the door.",
        f"Every {draw.choice(words.DAYS)} there is time for {hobby}.",
    ]
    return PlainText("plain_profile", " ".join([first, *draw.sample(rest, draw.number(2, 4))]))
