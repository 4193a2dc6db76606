"""Arithmetic on small integers, counting, and unit conversion."""

from __future__ import annotations

from training.dialogue import Dialogue, ask
from training.draw import Draw

_ASK = (
    "What is {e}?",
    "What's {e}?",
    "Calculate {e}.",
    "Compute {e}.",
    "How much is {e}?",
    "Tell me {e}.",
    "What does {e} make?",
    "Find {e}.",
    "What is the result of {e}?",
    "{e}?",
    "{e}",
)
_OPERATORS = {
    "+": ("+", "plus"),
    "-": ("-", "minus"),
    "x": ("x", "times", "*", "multiplied by"),
    "/": ("/", "divided by"),
}


def _operands(draw: Draw) -> tuple[int, str, int]:
    operator = draw.rng.choices("+-x/", (4, 3, 2, 1))[0]
    if operator == "+":
        return draw.number(0, 20), operator, draw.number(0, 20)
    if operator == "-":
        a, b = draw.number(0, 20), draw.number(0, 20)
        return max(a, b), operator, min(a, b)
    a, b = draw.number(1, 10), draw.number(1, 10)
    return (a, operator, b) if operator == "x" else (a * b, operator, a)


def make(draw: Draw) -> Dialogue:
    """Return one sum or difference of two numbers up to 20, or one entry of the times tables up to 10."""
    a, operator, b = draw.split(lambda: _operands(draw))
    result = {"+": a + b, "-": a - b, "x": a * b, "/": a // max(b, 1)}[operator]
    spelt = draw.choice(_OPERATORS[operator])
    expression = f"{a}{spelt}{b}" if len(spelt) == 1 and draw.chance(0.3) else f"{a} {spelt} {b}"
    return ask("sums", draw.phrase(_ASK, e=expression), f"{a} {operator} {b} = {result}.")


_STORIES = (
    ("I have {a} {t} and buy {b} more. How many {t} do I have?", "+"),
    ("{n} has {a} {t} and gets {b} more. How many {t} does {n} have?", "+"),
    ("There are {a} {t} on the table. I put {b} more there. How many {t} are there?", "+"),
    ("If I have {a} {t} and find {b} more, how many {t} do I have?", "+"),
    ("{n} has {a} {t} and I have {b} {t}. How many {t} do we have together?", "+"),
    ("I have {a} {t} and give away {b}. How many {t} are left?", "-"),
    ("{n} has {a} {t} and loses {b} of them. How many {t} are left?", "-"),
    ("There are {a} {t} in a box. I take {b} away. How many {t} are left?", "-"),
    ("If {n} had {a} {t} and ate {b}, how many {t} are left?", "-"),
    ("I had {a} {t} but sold {b}. How many {t} do I still have?", "-"),
)
_THINGS = ("apples", "books", "pears", "cookies", "coins", "pencils", "eggs", "cards", "oranges", "marbles", "stamps")


def word_problem(draw: Draw) -> Dialogue:
    """Return a one-step word problem."""
    template, operator = draw.choice(_STORIES)
    a, b = sorted((draw.number(1, 20), draw.number(1, 20)), reverse=True)
    thing = draw.choice(_THINGS)
    question = draw.phrase((template,), a=a, b=b, t=thing, n=draw.person())
    result = a + b if operator == "+" else a - b
    return ask("word_problem", question, f"{a} {operator} {b} = {result}, so the answer is {result} {thing}.")


_COUNT = (
    "Count from {a} to {b}.",
    "Count from {a} up to {b}.",
    "Write the numbers from {a} to {b}.",
    "List the numbers from {a} to {b}.",
    "Give me the numbers from {a} to {b}.",
    "Can you count from {a} to {b}?",
)


def count(draw: Draw) -> Dialogue:
    """Count between two numbers, at most twelve steps."""
    a = draw.choice((1, 1, draw.number(0, 60)))
    b = a + draw.number(2, 11)
    return ask("count", draw.phrase(_COUNT, a=a, b=b), ", ".join(map(str, range(a, b + 1))))


_UNITS = (
    ("metre", "metres", "centimetres", 100),
    ("meter", "meters", "centimeters", 100),
    ("kilometre", "kilometres", "metres", 1000),
    ("kilometer", "kilometers", "meters", 1000),
    ("kilogram", "kilograms", "grams", 1000),
    ("litre", "litres", "millilitres", 1000),
    ("centimetre", "centimetres", "millimetres", 10),
    ("hour", "hours", "minutes", 60),
    ("minute", "minutes", "seconds", 60),
    ("day", "days", "hours", 24),
    ("week", "weeks", "days", 7),
    ("year", "years", "months", 12),
    ("foot", "feet", "inches", 12),
)
_UNIT_ASK = (
    "How many {s} are in {n} {l}?",
    "How many {s} are there in {n} {l}?",
    "Convert {n} {l} to {s}.",
    "What is {n} {l} in {s}?",
    "{n} {l} in {s}",
    "How many {s} is {n} {l}?",
    "Give me {n} {l} in {s}.",
)


def _quantity(draw: Draw) -> tuple[int, str, str, int]:
    one, many, small, factor = draw.choice(_UNITS)
    n = draw.number(1, 20 if factor in (10, 100, 1000) else 9)
    return n, one if n == 1 else many, small, factor


def units(draw: Draw) -> Dialogue:
    """Convert a small integer number of a unit into a smaller unit."""
    n, large, small, factor = draw.split(lambda: _quantity(draw))
    verb = "is" if n == 1 else "are"
    return ask("units", draw.phrase(_UNIT_ASK, n=n, l=large, s=small), f"{n} {large} {verb} {n * factor} {small}.")
