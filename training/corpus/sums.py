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


Operands = tuple[int, str, int]
_LOW, _TWO_DIGITS = (0, 20), (10, 99)


def solve(a: int, operator: str, b: int) -> int:
    """Return the result of one operation; division is exact in all the corpus."""
    return {"+": a + b, "-": a - b, "x": a * b, "/": a // max(b, 1)}[operator]


def add_or_subtract(draw: Draw, low: int, high: int) -> Operands:
    """Return a sum or difference of two numbers, on this side of the held-out split; results are not negative."""

    def make() -> Operands:
        operator = draw.choice("++-")
        a, b = draw.number(low, high), draw.number(low, high)
        return (max(a, b), "-", min(a, b)) if operator == "-" else (a, "+", b)

    return draw.split(make)


def _from_tables(draw: Draw) -> Operands:
    """Return an entry of the times tables: facts, which have no held-out split."""
    a, b = draw.number(1, 10), draw.number(1, 10)
    return (a, "x", b) if draw.chance(0.7) else (a * b, "/", a)


def _operands(draw: Draw) -> Operands:
    kind = draw.rng.choices(range(3), (2, 6, 2))[0]
    return _from_tables(draw) if kind == 2 else add_or_subtract(draw, *(_LOW, _TWO_DIGITS)[kind])


def _expression(draw: Draw, operands: Operands) -> str:
    a, operator, b = operands
    spelt = draw.choice(_OPERATORS[operator])
    return f"{a}{spelt}{b}" if len(spelt) == 1 and draw.chance(0.3) else f"{a} {spelt} {b}"


def working(operands: Operands) -> str:
    """Return an operation and its result, with a step between them where both numbers have two digits.

    A sum's step adds tens and ones apart, a difference's takes the tens off first: `47 + 38 = 70 + 15 = 85`. Written
    in one go, the first digit of a result depends on the carry of a sum that is not written yet.
    """
    a, operator, b = operands
    tens = b // 10 * 10
    step = ""
    if min(a, b) >= 10 and operator == "+":
        step = f" = {a // 10 * 10 + tens} + {a % 10 + b % 10}"
    elif min(a, b) >= 10 and operator == "-":
        step = f" = {a - tens} - {b % 10}"
    return f"{a} {operator} {b}{step} = {solve(a, operator, b)}"


def _result(operands: Operands) -> str:
    return f"{working(operands)}."


def question(draw: Draw, operands: Operands) -> str:
    """Return the request for the result of one operation."""
    return draw.phrase(_ASK, e=_expression(draw, operands))


def make(draw: Draw) -> Dialogue:
    """Return a sum or difference of numbers up to 20 or of two digits, or one entry of the times tables up to 10."""
    operands = _operands(draw)
    return ask("sums", question(draw, operands), _result(operands))


def two_digits(draw: Draw) -> Dialogue:
    """Return a sum or difference of two numbers of two digits."""
    operands = add_or_subtract(draw, *_TWO_DIGITS)
    return ask("sums_two_digits", question(draw, operands), _result(operands))


_SEVERAL_ASK = (
    "Calculate these: {e}",
    "Solve these sums: {e}",
    "What are the results of these? {e}",
    "Compute the following: {e}",
    "Do these sums for me: {e}",
    "{e}",
)


def several(draw: Draw) -> Dialogue:
    """Return two to eight sums and a line for each: more sums for the same number of tokens."""
    rows = [_operands(draw) for _ in range(draw.number(2, 8))]
    separator = draw.choice((", ", "; ", "\n"))
    shown = separator.join(_expression(draw, row) for row in rows)
    return ask("sums_several", draw.phrase(_SEVERAL_ASK, e=shown), "\n".join(map(_result, rows)))


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
    a, b = sorted((draw.number(1, 30), draw.number(1, 30)), reverse=True)
    thing = draw.choice(_THINGS)
    question = draw.phrase((template,), a=a, b=b, t=thing, n=draw.person())
    operands = (a, operator, b)
    return ask("word_problem", question, f"{working(operands)}, so the answer is {solve(*operands)} {thing}.")


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
