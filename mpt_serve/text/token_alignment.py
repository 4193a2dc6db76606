"""Which tokens belong to which piece of a text."""

from collections import deque
from dataclasses import dataclass

__all__ = ["TextToken", "TokenAlignment"]


@dataclass(frozen=True, slots=True)
class TextToken:
    """A token and its position in a text.

    offset: characters of the text before it; for part of a character, before that character.
    adds_text: whether it is part of the text. The token that ended the text is not, nor is a special one left out.
    """

    token_id: int
    offset: int
    adds_text: bool = True


class TokenAlignment:
    """Keeps the tokens of a text until the characters that they write have been emitted.

    A token is released with the piece that completes its text. One that ends inside a character, or that has no text
    (a special token that is not shown), is released with the next character or at the end. A text that ends at a stop
    string has the tokens that begin before its end, so the tokens do not depend on how it was cut into pieces.

    start: characters before the first token (of an echoed prompt).
    """

    def __init__(self, start: int = 0) -> None:
        self._start = start
        self._waiting: deque[tuple[int, TextToken]] = deque()  # with the length of text at which it may be released

    def add(self, token_id: int, begin: int, end: int, unfinished: bool) -> None:
        """Add the next token, whose text is [begin, end); `unfinished` when it ends inside a character."""
        released_at = end + 1 if unfinished or begin == end else end
        self._waiting.append((released_at, TextToken(token_id, self._start + begin, unfinished or begin < end)))

    def release(self, length: int) -> tuple[TextToken, ...]:
        """Return the next tokens whose text is complete in the first `length` characters."""
        released = []
        while self._waiting and self._waiting[0][0] <= length:
            released.append(self._waiting.popleft()[1])
        return tuple(released)

    def cut(self, length: int) -> tuple[TextToken, ...]:
        """Return the last tokens of a text that ends after `length` characters, at a stop string."""
        return tuple(token for token in self.rest() if token.offset < self._start + length)

    def rest(self) -> tuple[TextToken, ...]:
        """Return all tokens that are left."""
        rest = tuple(token for _, token in self._waiting)
        self._waiting.clear()
        return rest
