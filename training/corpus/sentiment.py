"""Understanding: is a review positive, negative or neutral?"""

# ruff: noqa: SIM905 -- word lists read better as text

from __future__ import annotations

from training.dialogue import Dialogue, ask
from training.draw import Draw

_SUBJECTS = tuple(
    "food,service,film,movie,book,hotel,room,restaurant,coffee,music,concert,phone,laptop,camera,staff,view,beach,"
    "game,lesson,teacher,trip,flight,car,dress,cake,soup,pizza,show,story,ending,acting,price,quality,bed,breakfast,"
    "dinner,app,website,delivery,support,product,chair,sofa,battery,screen,sound,location,pool,garden,waiter".split(",")
)
_GOOD = tuple(
    "wonderful great excellent amazing fantastic lovely delicious beautiful perfect superb brilliant good nice "
    "awesome delightful charming pleasant enjoyable outstanding comfortable helpful friendly fun impressive clean "
    "marvelous terrific splendid fresh tasty incredible magnificent".split()
)
_BAD = tuple(
    "terrible awful horrible bad boring disgusting poor disappointing dreadful ugly rude slow dirty broken cold "
    "unpleasant useless annoying nasty cheap noisy uncomfortable painful weak stale overpriced unfriendly gross "
    "pathetic dull miserable worthless".split()
)
_FEEL_GOOD = (
    "I love this {s}",
    "I loved the {s}",
    "I really enjoyed the {s}",
    "I like the {s} very much",
    "Best {s} ever",
    "This is the best {s} I have ever had",
    "I am so happy with the {s}",
    "The {s} made my day",
    "I would recommend the {s} to everyone",
    "I will come back for the {s}",
    "Five stars for the {s}",
    "The {s} works perfectly",
    "The {s} exceeded my expectations",
    "I can't wait to see the {s} again",
    "What a {g} {s}",
    "I had a {g} time",
    "We were very happy with the {s}",
)
_FEEL_BAD = (
    "I hate this {s}",
    "I hated the {s}",
    "I did not enjoy the {s} at all",
    "I don't like the {s}",
    "Worst {s} ever",
    "This is the worst {s} I have ever had",
    "I am very unhappy with the {s}",
    "The {s} ruined my day",
    "I would not recommend the {s} to anyone",
    "I will never come back",
    "One star for the {s}",
    "The {s} stopped working after a day",
    "The {s} was a waste of money",
    "I want my money back for the {s}",
    "What a {b} {s}",
    "I had a {b} time",
    "We were not happy with the {s}",
    "The {s} does not work",
)
_SAY_GOOD = (
    "The {s} was {g}",
    "The {s} is {g}",
    "The {s} was {g} and {g2}",
    "The {s} was really {g}",
    "The {s} and the {s2} were {g}",
    "Very {g} {s}",
    "A {g} {s}",
    "Such a {g} {s}",
    "The {s} was not {b} at all",
    "I found the {s} {g}",
    "I think the {s} is {g}",
    "{G} {s}",
)
_SAY_BAD = (
    "The {s} was {b}",
    "The {s} is {b}",
    "The {s} was {b} and {b2}",
    "The {s} was really {b}",
    "The {s} and the {s2} were {b}",
    "Very {b} {s}",
    "A {b} {s}",
    "Such a {b} {s}",
    "The {s} was not {g} at all",
    "The {s} was not {g}",
    "I found the {s} {b}",
    "I think the {s} is {b}",
    "{B} {s}",
)
_NEUTRAL = (
    "The {s} is in the city",
    "The {s} arrived on Monday",
    "The {s} has two doors",
    "I bought the {s} last week",
    "The {s} is blue",
    "The {s} was okay",
    "The {s} is average",
    "The {s} is neither good nor bad",
    "The {s} opens at nine",
    "It is a normal {s}",
    "The {s} was made in May",
    "There is a {s} in the street",
)
_ASK = (
    "Is this review positive or negative? {r}",
    "Is this positive or negative? {r}",
    "Is the following review positive or negative? {r}",
    "What is the sentiment of this review? {r}",
    "What is the sentiment of this text? {r}",
    "What is the sentiment of this sentence? {r}",
    "Classify the sentiment: {r}",
    "Classify this review as positive or negative: {r}",
    "Sentiment: {r}",
    "Tell me the sentiment of this: {r}",
    'Is "{r}" positive or negative?',
    'What is the sentiment of "{r}"?',
    "{r} Is that positive or negative?",
    "{r}\nPositive or negative?",
    "Positive or negative? {r}",
    "Is this a good or a bad review? {r}",
    "Review: {r}\nSentiment:",
    "Judge this review: {r}",
    "Analyze the sentiment of this review: {r}",
)
_FOLLOW_UP = (
    ("positive", ("I will come back soon", "Highly recommended", "Everyone should try it", "We will return",
                  "I smiled the whole time", "Thank you so much", "It was worth every cent")),
    ("negative", ("I will never come back", "Avoid it", "Nobody should buy it", "We left early",
                  "I want a refund", "Never again", "It was a waste of time", "Stay away")),
)  # fmt: skip


def _review(draw: Draw, feeling: str) -> str:
    good, good2 = draw.sample(_GOOD, 2)
    bad, bad2 = draw.sample(_BAD, 2)
    subject, subject2 = draw.sample(_SUBJECTS, 2)
    templates: tuple[str, ...]
    if feeling == "neutral":
        templates = _NEUTRAL
    elif feeling == "positive":
        templates = _SAY_GOOD if draw.chance(0.6) else _FEEL_GOOD
    else:
        templates = _SAY_BAD if draw.chance(0.6) else _FEEL_BAD
    fields = {"s": subject, "s2": subject2, "g": good, "g2": good2, "b": bad, "b2": bad2}
    return draw.say(templates, **fields, G=good.capitalize(), B=bad.capitalize())


def make(draw: Draw) -> Dialogue:
    """Return one or two sentences of a review and its sentiment."""
    feeling = draw.rng.choices(("positive", "negative", "neutral"), (5, 5, 1))[0]
    review = draw.split(lambda: _review(draw, feeling))
    if feeling != "neutral" and draw.chance(0.3):
        review += ". " + (draw.choice(dict(_FOLLOW_UP)[feeling]) if draw.chance(0.5) else _review(draw, feeling))
    review += draw.choice((".", ".", "!", ""))
    if draw.noise and draw.chance(0.3):
        review = review.lower()
    return ask("sentiment", draw.phrase(_ASK, r=review), feeling.capitalize() + ".")
