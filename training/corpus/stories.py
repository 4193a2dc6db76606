"""Short stories: a plot is a sequence of beats, each beat has several wordings, and heroes and places vary."""

# ruff: noqa: SIM905 -- word lists read better as text

from __future__ import annotations

from functools import partial

from training import vocabulary as words
from training.corpus.plots import ENDINGS, OPENINGS, PLOTS, Plot
from training.dialogue import Dialogue, PlainText, ask
from training.draw import Draw, with_article

PLACES = tuple(
    "a small village,a quiet town,a little house by the sea,a deep forest,a green valley,a farm on a hill,"
    "an old castle,a city by the river,a cottage in the woods,a village in the mountains,a small island,"
    "a house with a red roof,a tall tower,a town by a lake".split(",")
)
TRAITS = (
    "brave",
    "curious",
    "shy",
    "kind",
    "clever",
    "small",
    "young",
    "cheerful",
    "quiet",
    "friendly",
    "lonely",
    "old",
)
HEROES = (
    *words.ANIMALS,
    *"girl boy baker farmer princess prince knight robot dragon fisherman king queen wizard witch painter".split(),
    *"sailor gardener teacher giant ghost".split(),
)

_PLAIN_ASK = (
    "Tell me a story.",
    "Tell a story.",
    "Write a story.",
    "Write a short story.",
    "Tell me a short story.",
    "Can you tell me a story?",
    "I want to hear a story.",
    "Do you know a story?",
    "Tell me a bedtime story.",
    "Story please",
    "Make up a story.",
    "Tell me another story.",
    "Give me a short story.",
    "Write a little story for children.",
    "Write me a fairy tale.",
    "Once upon a time",
)
_HERO_ASK = (
    "Tell me a story about {h}.",
    "Write a story about {h}.",
    "Write a short story about {h}.",
    "Tell me a short story about {h}.",
    "Can you write a story about {h}?",
    "I want a story about {h}.",
    "Make up a story about {h}.",
    "Tell a bedtime story about {h}.",
    "Give me a story about {h}.",
    "A story about {h}",
    "Write a tale about {h}.",
    "Do you know a story about {h}?",
    "Story about {h}",
    "Write a few sentences about {h}.",
)
_NAMED = ("{h} named {n}", "{h} called {n}", "{h} with the name {n}", "{n} the {b}", "{h} whose name is {n}")


def tell(draw: Draw, plot: Plot, hero: str, name: str) -> str:
    """Return one version of a plot, five to nine sentences long."""
    friend = draw.person()
    while friend.lower() == name.lower():
        friend = draw.person()
    trait = draw.choice(TRAITS)
    fields = {
        "name": name,
        "hero": hero,
        "friend": friend,
        "animal": draw.choice([animal for animal in words.ANIMALS if animal != hero]),
        "trait": trait,
        "a_trait_hero": f"{with_article(trait)} {hero}",
        "place": draw.choice(PLACES),
        "thing": draw.choice(words.THINGS),
        "color": draw.choice(words.COLOURS),
        "day": draw.choice(("morning", "day", "evening", "afternoon")),
    }
    beats = [draw.choice(OPENINGS), *(draw.choice(beat) for beat in plot), draw.choice(ENDINGS)]
    return " ".join(beat.format(**fields) for beat in beats)


def is_story(answer: str, reference: str, mentions: tuple[str, ...] = ()) -> bool:
    """Return whether it has at least four sentences, an ending, and a first sentence with what the prompt named.

    A story has many right answers, so the reference only has to be a story by the same rule.
    """

    def well_formed(story: str) -> bool:
        first = story.split(".")[0]
        sentences = sum(story.count(mark) for mark in ".!?")
        return sentences >= 4 and story.rstrip().endswith((".", "!", '"')) and all(word in first for word in mentions)

    return well_formed(answer) and well_formed(reference)


def make(draw: Draw) -> Dialogue:
    """Return a request for a story: about anything, about a kind of hero, or about a hero with a name."""
    hero, name = draw.choice(HEROES), draw.person()
    story = tell(draw, draw.choice(PLOTS), hero, name)
    kind = draw.number(0, 2)
    if kind == 0:
        return ask("story", draw.phrase(_PLAIN_ASK), story, is_story)
    shown = with_article(hero)
    if draw.chance(0.25):
        trait = next((trait for trait in TRAITS if f"{trait} {hero}" in story), "little")
        shown = f"{with_article(trait)} {hero}"
    if kind == 2:
        typed = draw.typed(name)
        story = story.replace(name, typed)
        name = typed
        shown = draw.choice(_NAMED).format(h=shown, n=name, b=hero)
    mentions = (hero,) if kind == 1 else (hero, name)
    return ask("story", draw.phrase(_HERO_ASK, h=shown), story, partial(is_story, mentions=mentions))


def plain(draw: Draw) -> PlainText:
    """Return a story as a separate document, sometimes under a title."""
    hero, name = draw.choice(HEROES), draw.person()
    return PlainText("plain_story", tell(draw, draw.choice(PLOTS), hero, name))
