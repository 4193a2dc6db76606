"""Tools: calls in the form of the Hermes models, written by the product's own code, and answers from their results.

A document offers one to three tools: a calculator, and tools that look something up. Names of tools and of their
parameters vary and are sometimes made up, so that a call has to be copied from the definition in the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpt_serve.text.chat_template import Message
from mpt_serve.text.tool_format import as_text
from training import vocabulary as words
from training.corpus import knowledge, smalltalk, sums
from training.dialogue import Dialogue, Turn
from training.draw import Draw, with_article


@dataclass(frozen=True)
class Use:
    """A question that a tool answers: the value of its parameter, its result, and the answer made of that."""

    question: str
    value: str
    result: str
    answer: str


@dataclass(frozen=True)
class Kind:
    """A kind of tool: the names, descriptions and parameters it may have, and its uses."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[str, ...]
    use: Callable[[Draw], Use]


def _calculation(draw: Draw) -> Use:
    high = draw.choice((20, 99, 999, 9999))
    a, operator, b = sums.add_or_subtract(draw, 0, high)
    if draw.chance(0.3):
        a, operator, b = draw.split(lambda: (draw.number(2, high), "x", draw.number(2, 99)))
    elif draw.chance(0.15):
        b, quotient = draw.split(lambda: (draw.number(2, 20), draw.number(2, high)))
        a, operator = b * quotient, "/"
    result = sums.solve(a, operator, b)
    value = f"{a} {'*' if operator == 'x' else operator} {b}"
    shown = draw.choice((str(result), json.dumps({"result": result})))
    return Use(sums.question(draw, (a, operator, b)), value, shown, f"{a} {operator} {b} = {result}.")


_WARM_ASK = (
    "How warm is it in {v}?",
    "What is the temperature in {v}?",
    "What is the weather like in {v}?",
    "How is the weather in {v}?",
    "What's the weather in {v} today?",
    "Tell me the temperature in {v}.",
    "Is it cold in {v}?",
    "Weather in {v}?",
)


def _weather(draw: Draw) -> Use:
    city, degrees = draw.place(), draw.number(0, 39)
    key = draw.choice(("celsius", "temperature", "degrees"))
    result = draw.choice((json.dumps({key: degrees}), f"{degrees} degrees", json.dumps({"city": city, key: degrees})))
    return Use(draw.phrase(_WARM_ASK, v=city), city, result, f"It is {degrees} degrees in {city}.")


_PHONE_ASK = (
    "What is the phone number of {v}?",
    "What is {v}'s phone number?",
    "Give me the number of {v}.",
    "How can I call {v}?",
    "Find the phone number of {v}.",
    "I need the phone number of {v}.",
)


def _phone(draw: Draw) -> Use:
    name, number = draw.person(), str(draw.number(1000, 999999))
    result = draw.choice((json.dumps({"number": number}), json.dumps({"name": name, "phone": number}), number))
    return Use(draw.phrase(_PHONE_ASK, v=name), name, result, f"The phone number of {name} is {number}.")


_PRICE_ASK = (
    "How much is the {v}?",
    "What does the {v} cost?",
    "What is the price of the {v}?",
    "How much does the {v} cost?",
    "Tell me the price of the {v}.",
    "How expensive is the {v}?",
)


def _price(draw: Draw) -> Use:
    item = draw.choice(words.THINGS) if draw.chance(0.5) else draw.word()
    price = draw.number(1, 999)
    result = draw.choice((json.dumps({"price": price}), f"{price} dollars", json.dumps({"item": item, "price": price})))
    return Use(draw.phrase(_PRICE_ASK, v=item), item, result, f"The {item} costs {price} dollars.")


_LOOK_UP_ASK = (
    "Look up {v}.",
    "Search for {v}.",
    "Look up {v} for me.",
    "Find {v} in the database.",
    "What do you find about {v}?",
    "What is {v}?",
    "Who or what is {v}?",
    "Search {v}",
    "Please look up {v}.",
)


def _look_up(draw: Draw) -> Use:
    term = draw.person() if draw.chance(0.5) else draw.word()
    sentence = draw.choice((
        f"{term} is {with_article(draw.choice(words.JOBS))} from {draw.place()}.",
        f"{term} is {with_article(draw.choice(words.COLOURS))} {draw.choice(words.ANIMALS)}.",
        f"{term} is a book about {draw.choice(words.TOPICS)}.",
        f"{term} is a small town near {draw.place()}.",
        f"{term} means {draw.choice(words.TOPICS)} in an old language.",
    ))  # fmt: skip
    result = draw.choice((sentence, sentence, json.dumps({"text": sentence}, ensure_ascii=False)))
    return Use(draw.phrase(_LOOK_UP_ASK, v=term), term, result, sentence)


CALCULATOR = Kind(
    ("calculator", "calculator", "calculate", "calc", "compute", "math"),
    ("Calculates an expression.", "Evaluates arithmetic.", "A calculator.", "Computes the result of a sum."),
    ("expression", "expression", "formula", "input", "sum"),
    _calculation,
)
LOOKUPS = (
    Kind(
        ("weather", "get_weather", "weather", "temperature", "get_current_weather"),
        ("The weather in a city.", "Returns the temperature of a city.", "Gets the current weather."),
        ("city", "city", "location", "place", "town"),
        _weather,
    ),
    Kind(
        ("phone_book", "find_phone_number", "get_phone", "contacts"),
        ("Finds the phone number of a person.", "A phone book.", "Returns a phone number."),
        ("name", "name", "person", "contact"),
        _phone,
    ),
    Kind(
        ("get_price", "price", "price_of", "shop"),
        ("Returns the price of an item.", "What an item costs.", "Finds a price in the shop."),
        ("item", "product", "article", "name"),
        _price,
    ),
    Kind(
        ("lookup", "lookup", "search", "look_up", "search_database", "wiki"),
        ("Looks something up.", "Searches the database.", "Finds facts about a word.", "Looks up a word."),
        ("query", "query", "term", "key", "word", "q"),
        _look_up,
    ),
)
_MADE_UP_NAMES = 0.1


@dataclass(frozen=True)
class Tool:
    """A tool as one conversation has it."""

    kind: Kind
    name: str
    parameter: str
    description: str

    def definition(self, draw: Draw) -> dict[str, Any]:
        """Return its definition as clients write one, with or without descriptions."""
        value = {"type": "string"}
        if draw.chance(0.2):
            value["description"] = f"The {self.parameter}."
        schema: dict[str, Any] = {"type": "object", "properties": {self.parameter: value}}
        if draw.chance(0.8):
            schema["required"] = [self.parameter]
        described = {"description": self.description} if self.description else {}
        return {"type": "function", "function": {"name": self.name, **described, "parameters": schema}}


def _tool(draw: Draw, kind: Kind) -> Tool:
    made_up = draw.chance(_MADE_UP_NAMES)
    name = draw.word() if made_up else draw.choice(kind.names)
    # Nothing but its description says what a tool with a made-up name is for.
    description = draw.choice(kind.descriptions) if made_up or draw.chance(0.6) else ""
    return Tool(kind, name, draw.choice(kind.parameters), description)


def _tools(draw: Draw) -> list[Tool]:
    count = draw.rng.choices((1, 2, 3), (6, 4, 1))[0]
    kinds = draw.sample(LOOKUPS, count)
    if draw.chance(0.6):
        kinds[0] = CALCULATOR
    draw.rng.shuffle(kinds)
    return [_tool(draw, kind) for kind in kinds]


def _messages(draw: Draw, tool: Tool) -> tuple[list[Message], str]:
    """Return the question, the call and the result of one use of a tool, and its answer."""
    use = tool.kind.use(draw)
    arguments = json.dumps({tool.parameter: use.value}, ensure_ascii=False)
    call = Message(
        role="assistant",
        content="",
        tool_calls=[{"id": "call", "type": "function", "function": {"name": tool.name, "arguments": arguments}}],
    )
    result = Message(role="tool", content=use.result, tool_call_id="call", name=tool.name)
    return [Message(role="user", content=use.question), call, result], use.answer


def _without_tool(draw: Draw) -> list[Message]:
    make = draw.choice((smalltalk.make, knowledge.make))
    return [Message(role="user" if t.role == "user" else "assistant", content=t.content) for t in make(draw).turns]


def _conversation(draw: Draw, rounds: int) -> tuple[list[Message], list[Tool]]:
    """Return answered questions, most of them by a tool, and the tools."""
    tools, messages = _tools(draw), []
    for _ in range(rounds if len(tools) < 3 else 0):  # within a row of training
        if draw.chance(0.2):
            messages += _without_tool(draw)
        else:
            asked, answer = _messages(draw, draw.choice(tools))
            messages += [*asked, Message(role="assistant", content=answer)]
    return messages, tools


def _dialogue(draw: Draw, task: str, messages: list[Message], tools: list[Tool]) -> Dialogue:
    if draw.chance(0.3):
        messages = [Message(role="system", content=draw.choice(smalltalk.SYSTEM_PROMPTS)), *messages]
    texts = as_text(messages, [tool.definition(draw) for tool in tools], "tool")
    return Dialogue(task, tuple(Turn(text["role"], text["content"]) for text in texts))


def call(draw: Draw) -> Dialogue:
    """Return a conversation that ends with a call."""
    messages, tools = _conversation(draw, draw.choice((0, 0, 0, 1)))
    asked, _ = _messages(draw, draw.choice(tools))
    return _dialogue(draw, "tool_call", [*messages, *asked[:2]], tools)


def answer(draw: Draw) -> Dialogue:
    """Return a conversation that ends with the answer made of a result."""
    messages, tools = _conversation(draw, draw.choice((0, 0, 1)))
    asked, answer = _messages(draw, draw.choice(tools))
    return _dialogue(draw, "tool_answer", [*messages, *asked, Message(role="assistant", content=answer)], tools)


def unneeded(draw: Draw) -> Dialogue:
    """Return a conversation with tools that ends with an answer that needs none."""
    messages, tools = _conversation(draw, draw.choice((0, 0, 1)))
    return _dialogue(draw, "tool_unneeded", [*messages, *_without_tool(draw)], tools)
