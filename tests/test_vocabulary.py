"""The words of the code, its comments and messages, the documentation and the tests.

Names follow the field (`docs/architecture.md` and CONTRIBUTING say which), prose is plain technical English. What the
list below refuses are the metaphors and the private words that stood here before.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from source_tree import ROOT, product_modules

TEXTS = (
    "*.md",
    "*.yaml",
    "*.toml",
    "scripts/*",
    ".github/**/*.*",
    "benchmarks/**/*.*",
    "cluster/**/*",
    "docs/**/*.md",
    "model/**/*.py",
    "model/kernels/cpu/**/*.*",
    "mpt_serve/**/*.py",
    "mpt_serve/**/*.md",
    "mpt_serve/**/*.html",
    "mpt_serve/**/*.js",
    "tests/**/*.py",
    "tests/**/*.cc",
    "training/**/*.py",
    "training/**/*.md",
)
EXCLUDED = {
    "training/corpus": "the stories that the embedded model learns are content",
    "training/dialogue.py": "its conversations",
    "training/vocabulary.py": "its words",
    "tests/golden": "cases computed by llm-foundry, with its names",
    "tests/structured_outputs/data": "the JSON Schema test suite",
    "tests/text/data": "texts that tokenizers are tested with",
    "tests/test_vocabulary.py": "the list itself",
}
ALLOWED = {
    r"guided_(json(_object)?|regex|choice|grammar|decoding(_backend)?|whitespace_pattern|\*)": "names on the wire",
    r"model card|graphics card": "terms of the field",
}


class Rule(NamedTuple):
    """Words to avoid, as a pattern over lower-case words, and what to write instead."""

    pattern: str
    instead: str


OWNER = r"(its|their|his|her|one's|your|our)"
LINKS = "(and|or|for|in|on|that|which|with|to|is|at|by|there|beside)"
RULES = [
    Rule(r"houses?", "capacity, server"),
    Rule(r"rooms?", "capacity, space, slots"),
    Rule(r"doors?", "entry, endpoint"),
    Rule(r"guests?", "client, request"),
    Rule(r"cards?", "GPU, device"),
    Rule(r"lets? in", "admit"),
    Rule(r"(is|are|was|were|be) meant", "is intended, refers to"),
    Rule(r"so many", "that many, n"),
    Rule(r"told", "reported, named"),
    Rule(r"news", "deltas, updates"),
    Rule(r"to and fro", "back and forth"),
    Rule(rf"of {OWNER} own(?! (?!{LINKS}(?![a-z]))[a-z])", "its own, separate"),  # not: of its own accord
    Rule(r"whole numbers?", "integer"),
    Rule(r"anew", "again, from scratch"),
    Rule(r"the like", "similar"),
    Rule(r"what is asked( for)?", "the request, the parameters"),
    Rule(r"mend(s|ed|ing)?", "fix, repair"),
    Rule(r"guides?|guided", "grammar, structured outputs"),
    Rule(r"deals?|dealt|dealing", "assign, distribute, head_layout"),
    Rule(r"unwanted", "stopped_choices"),
    Rule(
        r"(an?|the|its|their|each|every|this|one|no|same|whole|model's|longest|long|cut) answers?",
        "output, completion, response",
    ),
    Rule(r"lasting request|place queue|delta stream", "FailoverStream, DispatchQueue, DeltaMailbox"),
    Rule(r"answer text|generate route|token limits|packed cache", "the new names, see CONTRIBUTING"),
]
OLD_CLASSES = {"Answer", "AnswerText", "Ending", "Generation", "Job", "Report", "Service", "Submission", "Taken"}

# Between two words of a phrase: spaces, a line break with a comment's or a string's marks, an identifier's underscore.
GAP = r"(?:[\s_#*/]|\"\s*f?\")+"
COMPILED = [
    (re.compile(r"(?<![a-z])(" + rule.pattern.replace(" ", GAP) + r")(?![a-z])"), rule.instead) for rule in RULES
]


def texts() -> Iterator[Path]:
    """Yield the files that people write and read, relative to the root."""
    paths = {path.relative_to(ROOT) for pattern in TEXTS for path in ROOT.glob(pattern) if path.is_file()}
    for path in sorted(paths):
        if not any(path.is_relative_to(excluded) for excluded in EXCLUDED) and "__pycache__" not in path.parts:
            yield path


def found_in(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the words and the better words for each match; identifiers are read word by word."""
    text = re.sub("|".join(ALLOWED), lambda allowed: re.sub(r"[^\n]", "-", allowed[0]), text)
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()
    for pattern, instead in COMPILED:
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, re.sub(GAP, " ", match[1]), instead


def problems_of(path: Path) -> Iterator[str]:
    for line, words, instead in sorted(found_in((ROOT / path).read_text(encoding="utf-8"))):
        yield f"{path}:{line}: '{words}'; write: {instead}"
    for _, words, instead in found_in(str(path)):
        yield f"{path}: '{words}' in its name; write: {instead}"


def test_the_words_are_plain() -> None:
    problems = [problem for path in texts() for problem in problems_of(path)]
    assert not problems, "\n".join(problems)


def test_old_names_of_classes_are_gone() -> None:
    names = {
        f"{module.path}: class {node.name}"
        for module in product_modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and node.name in OLD_CLASSES
    }
    assert names == set()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_guides = 1", ["guides"]),
        ("class GuideCompiler:", ["guide"]),
        ("# each has a lane of\n    # its own", ["of its own"]),
        ("the cost of its own steps", []),
        ('f"takes so "\n f"many"', ["so many"]),
        ("guided_json, llguidance, `guided_*`, headroom, discard, wildcard, a model card", []),
        ("It answers the request and gave\nthe answer.", ["the answer"]),
    ],
)
def test_the_search_reads_identifiers_comments_and_strings(text: str, words: list[str]) -> None:
    assert [found for _, found, _ in found_in(text)] == words


def test_excluded_files_exist() -> None:
    assert [path for path in EXCLUDED if not (ROOT / path).exists()] == []
