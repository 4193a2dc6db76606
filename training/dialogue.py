"""The two kinds of training document, and their text form (ChatML for dialogues)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

ENDOFTEXT = "<|endoftext|>"
PADDING = "<|padding|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"

Role = Literal["system", "user", "assistant", "tool"]
Check = Callable[[str, str], bool]
"""`check(answer, reference)` returns whether a generated answer is right."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


def exact(answer: str, reference: str) -> bool:
    """Return whether the answer is the reference, up to surrounding white space."""
    return answer.strip() == reference.strip()


def same_json(answer: str, reference: str) -> bool:
    """Return whether both parse to the same JSON value (in any key order and spacing)."""
    try:
        return bool(json.loads(answer) == json.loads(reference))
    except json.JSONDecodeError:
        return False


@dataclass(frozen=True)
class Dialogue:
    """A conversation that ends with the assistant's turn; `check` scores that last turn."""

    task: str
    turns: tuple[Turn, ...]
    check: Check = field(default=exact, compare=False)

    @property
    def reference(self) -> str:
        """The right answer to the last user turn."""
        return self.turns[-1].content

    @property
    def prompt(self) -> str:
        """ChatML text up to the point where the last answer begins."""
        return "".join(map(_chatml, self.turns[:-1])) + f"{IM_START}assistant\n"


@dataclass(frozen=True)
class PlainText:
    """A document without roles, for plain text completion."""

    task: str
    text: str


Document = Dialogue | PlainText


@dataclass(frozen=True)
class Piece:
    """A run of text; `answer` marks text that the model learns at full weight."""

    text: str
    answer: bool


def _chatml(turn: Turn) -> str:
    return f"{IM_START}{turn.role}\n{turn.content}{IM_END}\n"


def pieces(document: Document) -> list[Piece]:
    """Split a document into context and answer pieces; their concatenation is the document's text."""
    if isinstance(document, PlainText):
        return [Piece(document.text, True)]
    result = []
    for turn in document.turns:
        if turn.role == "assistant":
            result.append(Piece(f"{IM_START}assistant\n", False))
            result.append(Piece(turn.content + IM_END, True))
            result.append(Piece("\n", False))
        else:
            result.append(Piece(_chatml(turn), False))
    return result


def text_of(document: Document) -> str:
    """Return the whole text of a document, without the closing end-of-text mark."""
    return "".join(piece.text for piece in pieces(document))


def ask(task: str, question: str, answer: str, check: Check = exact) -> Dialogue:
    """Return a dialogue of one question and one answer."""
    return Dialogue(task, (Turn("user", question), Turn("assistant", answer)), check)
