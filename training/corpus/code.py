"""Small Python functions: fixed ones, and ones with a number or a name taken from the ask."""

from __future__ import annotations

from training.dialogue import Dialogue, ask
from training.draw import Draw

# What the function does (alternatives separated by |), its name, its parameters and its body.
_FUNCTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("adds two numbers|returns the sum of two numbers|computes the sum of two numbers", "add", "a, b", "return a + b"),
    ("subtracts two numbers|returns the difference of two numbers", "subtract", "a, b", "return a - b"),
    ("multiplies two numbers|returns the product of two numbers", "multiply", "a, b", "return a * b"),
    ("divides two numbers|returns the quotient of two numbers", "divide", "a, b", "return a / b"),
    ("squares a number|returns the square of a number|computes the square of a number", "square", "x", "return x * x"),
    ("returns the cube of a number|computes the cube of a number", "cube", "x", "return x ** 3"),
    ("doubles a number|returns twice a number", "double", "x", "return 2 * x"),
    ("halves a number|returns half of a number", "half", "x", "return x / 2"),
    (
        "checks if a number is even|tells if a number is even|returns True if a number is even",
        "is_even",
        "n",
        "return n % 2 == 0",
    ),
    (
        "checks if a number is odd|tells if a number is odd|returns True if a number is odd",
        "is_odd",
        "n",
        "return n % 2 == 1",
    ),
    ("checks if a number is positive|tells if a number is positive", "is_positive", "n", "return n > 0"),
    ("checks if a number is negative|tells if a number is negative", "is_negative", "n", "return n < 0"),
    (
        "returns the larger of two numbers|finds the maximum of two numbers",
        "larger",
        "a, b",
        "return a if a > b else b",
    ),
    (
        "returns the smaller of two numbers|finds the minimum of two numbers",
        "smaller",
        "a, b",
        "return a if a < b else b",
    ),
    (
        "returns the absolute value of a number|computes the absolute value",
        "absolute",
        "x",
        "return x if x >= 0 else -x",
    ),
    (
        "reverses a string|returns a string backwards|turns a string around",
        "reverse_string",
        "text",
        "return text[::-1]",
    ),
    ("reverses a list|returns a list backwards", "reverse_list", "items", "return items[::-1]"),
    ("returns the length of a string|counts the letters of a string", "length", "text", "return len(text)"),
    ("counts the words in a text|counts the words of a sentence", "count_words", "text", "return len(text.split())"),
    (
        "counts the vowels in a string|counts vowels",
        "count_vowels",
        "text",
        'return sum(letter in "aeiou" for letter in text.lower())',
    ),
    ("converts a string to upper case|makes a text upper case", "to_upper", "text", "return text.upper()"),
    ("converts a string to lower case|makes a text lower case", "to_lower", "text", "return text.lower()"),
    (
        "checks if a string is a palindrome|tells if a word is a palindrome",
        "is_palindrome",
        "text",
        "return text == text[::-1]",
    ),
    ("returns the sum of a list|sums a list of numbers|adds up a list", "sum_list", "items", "return sum(items)"),
    ("returns the average of a list|computes the mean of a list", "average", "items", "return sum(items) / len(items)"),
    ("returns the largest number in a list|finds the maximum of a list", "largest", "items", "return max(items)"),
    ("returns the smallest number in a list|finds the minimum of a list", "smallest", "items", "return min(items)"),
    ("sorts a list|sorts a list of numbers|returns a sorted list", "sort_list", "items", "return sorted(items)"),
    (
        "removes duplicates from a list|returns the unique items of a list",
        "unique",
        "items",
        "return list(dict.fromkeys(items))",
    ),
    ("returns the first item of a list|gets the first element of a list", "first", "items", "return items[0]"),
    ("returns the last item of a list|gets the last element of a list", "last", "items", "return items[-1]"),
    ("checks if a list is empty|tells if a list is empty", "is_empty", "items", "return len(items) == 0"),
    (
        "computes the factorial of a number|returns the factorial of n|calculates factorials",
        "factorial",
        "n",
        "result = 1\nfor i in range(2, n + 1):\n    result *= i\nreturn result",
    ),
    (
        "returns the nth Fibonacci number|computes Fibonacci numbers|calculates the Fibonacci sequence",
        "fibonacci",
        "n",
        "a, b = 0, 1\nfor _ in range(n):\n    a, b = b, a + b\nreturn a",
    ),
    (
        "checks if a number is prime|tells if a number is a prime|returns True if a number is prime",
        "is_prime",
        "n",
        "if n < 2:\n    return False\nfor i in range(2, n):\n    if n % i == 0:\n        return False\nreturn True",
    ),
    ("converts Celsius to Fahrenheit|turns Celsius into Fahrenheit", "to_fahrenheit", "c", "return c * 9 / 5 + 32"),
    ("converts Fahrenheit to Celsius|turns Fahrenheit into Celsius", "to_celsius", "f", "return (f - 32) * 5 / 9"),
    ("prints hello world|says hello world", "hello", "", 'print("Hello, world!")'),
    ("greets a person by name|greets someone", "greet", "name", 'return "Hello, " + name + "!"'),
    ("computes the area of a circle|returns the area of a circle", "circle_area", "r", "return 3.14159 * r * r"),
    ("computes the area of a rectangle|returns the area of a rectangle", "rectangle_area", "a, b", "return a * b"),
    ("joins a list of words|joins words with spaces", "join_words", "words", 'return " ".join(words)'),
    ("swaps two values|returns two values in swapped order", "swap", "a, b", "return b, a"),
    (
        "finds the greatest common divisor of two numbers|computes the gcd of two numbers",
        "gcd",
        "a, b",
        "while b:\n    a, b = b, a % b\nreturn a",
    ),
)
# The same with a number {n} from the ask.
_WITH_NUMBER: tuple[tuple[str, str, str, str], ...] = (
    ("adds {n} to a number", "add_{n}", "x", "return x + {n}"),
    ("subtracts {n} from a number", "subtract_{n}", "x", "return x - {n}"),
    ("multiplies a number by {n}", "times_{n}", "x", "return {n} * x"),
    ("divides a number by {n}", "divide_by_{n}", "x", "return x / {n}"),
    (
        "checks if a number is greater than {n}|checks if a number is larger than {n}",
        "above_{n}",
        "x",
        "return x > {n}",
    ),
    ("checks if a number is less than {n}|checks if a number is smaller than {n}", "below_{n}", "x", "return x < {n}"),
    ("returns the first {n} items of a list", "first_{n}", "items", "return items[:{n}]"),
    ("returns the last {n} items of a list", "last_{n}", "items", "return items[-{n}:]"),
    ("checks if a number is divisible by {n}", "divisible_by_{n}", "x", "return x % {n} == 0"),
    (
        "returns the numbers from 1 to {n}|lists the numbers from 1 to {n}",
        "numbers",
        "",
        "return list(range(1, {n} + 1))",
    ),
    ("repeats a string {n} times", "repeat_{n}", "text", "return text * {n}"),
)
_ASK = (
    "Write a Python function that {w}.",
    "Write a function that {w}.",
    "Write Python code that {w}.",
    "Can you write a Python function that {w}?",
    "I need a Python function that {w}.",
    "Give me a function that {w}.",
    "Show me a Python function that {w}.",
    "Python function that {w}",
    "Create a function in Python that {w}.",
    "Write a small program that {w}.",
    "Write a short Python program that {w}.",
    "Code a function that {w}.",
    "How do I write a function that {w}?",
    "Implement a Python function that {w}.",
    "Make a Python function which {w}.",
    "Write code which {w}.",
    "In Python, write a function that {w}.",
    "def a function that {w}",
)
_NAMED_ASK = (
    "Write a Python function called {f} that {w}.",
    "Write a function named {f} that {w}.",
    "Write a Python function {f} that {w}.",
    "Write a Python function that {w}. Call it {f}.",
    "Write a function that {w} and name it {f}.",
    "I need a function called {f} that {w}.",
    "Create a Python function {f} which {w}.",
)
_TO = (
    "Write a Python function to {w}.",
    "Write a function to {w}.",
    "Write Python code to {w}.",
    "How do I {w} in Python?",
    "How can I {w} in Python?",
    "Show me how to {w} in Python.",
    "Python code to {w}",
    "I need code to {w}.",
    "Give me Python code to {w}.",
    "{w} in Python",
    "Function to {w}",
)
_IRREGULAR = {"multiplies": "multiply"}


def make(draw: Draw) -> Dialogue:
    """Return a function in a fenced block; a third of the prompts choose its name."""
    if draw.chance(0.25):
        number = draw.split(lambda: draw.number(2, 999))
        what, name, parameters, body = (part.replace("{n}", str(number)) for part in draw.choice(_WITH_NUMBER))
    else:
        what, name, parameters, body = draw.choice(_FUNCTIONS)
    what = draw.choice(what.split("|"))
    if draw.chance(0.3):
        name = draw.choice((draw.word(), f"{draw.word()}_{draw.word()}"))
        question = draw.phrase(_NAMED_ASK, w=what, f=name)
    elif draw.chance(0.6):
        question = draw.phrase(_ASK, w=what)
    else:
        question = draw.phrase(_TO, w=_imperative(what))
    lines = "\n".join(f"    {line}" for line in body.split("\n"))
    return ask("code", question, f"```python\ndef {name}({parameters}):\n{lines}\n```")


def _imperative(what: str) -> str:
    """Return "add two numbers" for "adds two numbers"."""
    verb, _, rest = what.partition(" ")
    return f"{_IRREGULAR.get(verb, verb.removesuffix('s'))} {rest}"
