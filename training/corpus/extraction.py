"""Understanding: extract the facts of a sentence as JSON."""

from __future__ import annotations

import json

from training import vocabulary as words
from training.dialogue import Dialogue, ask, same_json
from training.draw import Draw, fix_articles

Value = str | int


PERSON = (
    "{name} is {age} years old and lives in {city}.",
    "{name} is a {age} year old {job} from {city}.",
    "My friend {name} lives in {city} and works as a {job}.",
    "{name} lives in {city}.",
    "{name} lives in {city} and is {age} years old.",
    "{name}, {age}, lives in {city}.",
    "{name}, aged {age}, works as a {job} in {city}.",
    "At the age of {age}, {name} moved to {city}.",
    "{name} works as a {job} in {city}.",
    "In {city} there lives a {job} called {name}.",
    "I met {name} in {city}, a {job} who is {age}.",
    "The {job} {name} is {age} and comes from {city}.",
    "A {job} named {name} lives in {city}.",
    "{name} is {age}.",
    "{name} is {age} years old.",
    "{name} is a {job}.",
    "I am {name}, I am {age} years old and I live in {city}.",
    "My name is {name}. I am {age} years old and live in {city}.",
    "This is {name} from {city}, who is {age} years old and likes {hobby}.",
    "{name} from {city} likes {hobby}.",
    "{name} is {age} and enjoys {hobby}.",
    "{name} is a {job} who loves {hobby}.",
    "{name} was born in {city} and is now {age}.",
    "Our new {job} is called {name}, comes from {city} and is {age} years old.",
)
EVENT = (
    "The {event} is on {day} at {time} in {city}.",
    "{name} meets {friend} on {day} in {city}.",
    "On {day} there is a {event} in {city}.",
    "The {event} with {name} starts at {time} on {day}.",
    "{name} has a {event} on {day} at {time}.",
    "Come to the {event} in {city} on {day} at {time}.",
    "We have a {event} at {time} on {day}.",
    "The {event} takes place in {city} on {day}.",
    "{name} invites you to a {event} on {day} in {city}.",
    "Please book a {event} for {name} on {day} at {time}.",
    "Remind me of the {event} with {name} on {day}.",
    "{name} travels from {city} to {destination} on {day}.",
    "The train from {city} to {destination} leaves at {time}.",
)
ORDER = (
    "{name} bought a {color} {item} for {price} dollars.",
    "I would like to order {quantity} {items}.",
    "The {color} {item} costs {price} dollars.",
    "{name} ordered {quantity} {items} for {price} dollars.",
    "Please send {quantity} {items} to {name} in {city}.",
    "A {item} costs {price} dollars in {city}.",
    "{name} sold a {item} to {friend} for {price} dollars.",
    "We need {quantity} {items} by {day}.",
    "The {item} is {color} and costs {price} dollars.",
    "I want to buy a {color} {item}.",
    "{name} paid {price} dollars for a {item}.",
)
_FRAMES = (PERSON, PERSON, EVENT, ORDER)
_EVENTS = (
    *("meeting", "party", "concert", "wedding", "lesson", "dinner", "lunch", "workshop", "game", "call"),
    *("festival", "conference", "race", "visit", "training"),
)

_WITH_KEYS = (
    "Extract the {k} as JSON: {s}",
    "Extract {k} as JSON from this sentence: {s}",
    "Extract the {k} from this text as JSON: {s}",
    "Give me the {k} as JSON: {s}",
    "Return JSON with the {k}: {s}",
    "Return a JSON object with the keys {k}: {s}",
    "Write the {k} of this sentence as JSON: {s}",
    "Find the {k} and answer in JSON: {s}",
    "From the sentence below extract the {k} as JSON.\n{s}",
    "{s} Extract the {k} as JSON.",
    "{s}\nReturn the {k} as JSON.",
    "{s} Give me the {k} in JSON format.",
    "Turn this into JSON with the keys {k}: {s}",
    "JSON with {k}: {s}",
    "Convert to JSON with the fields {k}: {s}",
    'Extract the {k} as JSON: "{s}"',
    'Extract the {k} from "{s}" as JSON.',
)
_ALL_KEYS = (
    "Turn this sentence into JSON: {s}",
    "Convert this to JSON: {s}",
    "Write this as JSON: {s}",
    "Extract the facts as JSON: {s}",
    "Extract the data from this sentence as JSON: {s}",
    "JSON please: {s}",
    "Give me JSON for this: {s}",
    "Make JSON of this: {s}",
    "{s} Turn that into JSON.",
    "{s}\nAs JSON please.",
    'Convert "{s}" to JSON.',
    "Return this information as JSON: {s}",
    "Represent this sentence as a JSON object: {s}",
)


def _values(draw: Draw) -> dict[str, Value]:
    """Return a value for every field that any sentence may use."""
    item = draw.choice(words.THINGS)
    name, friend = map(draw.typed, draw.people(2))
    city, destination = map(draw.typed, draw.places(2))
    hour = draw.number(1, 12)
    return {
        "name": name,
        "friend": friend,
        "city": city,
        "destination": destination,
        "age": draw.number(3, 99),
        "job": draw.choice(words.JOBS),
        "hobby": draw.choice(words.HOBBIES),
        "event": draw.choice(_EVENTS),
        "day": draw.choice(words.DAYS),
        "time": draw.choice((f"{hour} o'clock", f"{hour}:{draw.number(0, 5)}{draw.number(0, 9)}", f"{hour} pm")),
        "item": item if draw.chance(0.7) else draw.word(),
        "items": draw.word() if draw.chance(0.3) else item + ("es" if item.endswith(("s", "x", "ch")) else "s"),
        "color": draw.choice(words.COLOURS),
        "price": draw.number(1, 999),
        "quantity": draw.number(2, 99),
    }


def _list_keys(draw: Draw, keys: list[str]) -> str:
    """Return the keys as people list them: with commas, "and", articles or quotes."""
    style = draw.number(0, 4)
    if style == 0:
        return ", ".join(keys)
    shown = [f'"{key}"' for key in keys] if style == 1 else [f"the {key}" for key in keys] if style == 2 else keys
    if style == 2:
        shown[0] = keys[0]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def make(draw: Draw) -> Dialogue:
    """Return a sentence, asked for with one to three keys (mostly in sentence order) or with all of them."""
    sentence = draw.choice(draw.choice(_FRAMES))
    values = _values(draw)
    keys = [part.split("}")[0] for part in sentence.split("{")[1:]]
    text = fix_articles(sentence.format(**values))
    if draw.chance(0.2):
        text = text.rstrip(".")
    if draw.chance(0.8):
        wanted = draw.sample(keys, draw.number(1, min(3, len(keys))))
        keys = wanted if draw.chance(0.3) else [key for key in keys if key in wanted]
        question = draw.phrase(_WITH_KEYS, k=_list_keys(draw, keys), s=text)
    else:
        question = draw.phrase(_ALL_KEYS, s=text)
    answer = json.dumps({key: values[key] for key in keys}, ensure_ascii=False)
    return ask("json", question, answer, same_json)


_FIELD_ASK = {
    "name": ("Who is mentioned in this sentence? {s}", "Which person is named here? {s}", "{s} Who is this about?",
             "Find the name in this sentence: {s}", "What is the name of the person? {s}"),
    "city": ("Which city is mentioned here? {s}", "Find the city in this sentence: {s}", "{s} Which city is that?",
             "What is the place in this sentence? {s}", "Name the city: {s}"),
    "day": ("Which day is mentioned? {s}", "Find the day in this sentence: {s}", "{s} Which day is it?",
            "On which day? {s}", "What is the day in this sentence? {s}"),
}  # fmt: skip


def field(draw: Draw) -> Dialogue:
    """Extract one value alone, without JSON."""
    key = draw.choice(tuple(_FIELD_ASK))
    usable = [s for frame in _FRAMES for s in frame if f"{{{key}}}" in s]
    values = _values(draw)
    text = fix_articles(draw.choice(usable).format(**values))
    return ask("field", draw.phrase(_FIELD_ASK[key], s=text), str(values[key]))
