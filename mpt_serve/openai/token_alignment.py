"""Which tokens belong to which piece of a text."""

from collections import deque
from dataclasses import dataclass

from mpt_serve.engine.request import TokenLogprobs

__all__ = ["Token", "TokenAlignment"]


@dataclass(frozen=True, slots=True)
class Token:
    """A token with its place in the answer's text.

    offset: characters of the text before it; for part of a character, before that character.
    logprobs: None where they were not asked for, and for the first token of a prompt.
    """

    token_id: int
    offset: int
    logprobs: TokenLogprobs | None = None
    of_prompt: bool = False


class TokenAlignment:
    """Keeps a choice's tokens until the text that they write has left.

    A token leaves with the piece that completes its text: one inside a character, or without text of its own (a
    special token that is not shown), with the next character or at the end. A text that ends at a stop string has the
    tokens that begin before its end, so how it was cut into pieces makes no difference.

    start: characters of the answer before the first token (an echoed prompt's).
    """

    def __init__(self, start: int = 0) -> None:
        self._start = start
        self._waiting: deque[tuple[int, Token]] = deque()  # with the length of text at which the token may leave

    def add(self, token_id: int, logprobs: TokenLogprobs | None, begin: int, end: int, unfinished: bool) -> None:
        """Take the next token, whose own text is [begin, end); `unfinished` when it ends inside a character."""
        leaves_at = end + 1 if unfinished or begin == end else end
        self._waiting.append((leaves_at, Token(token_id, self._start + begin, logprobs)))

    def release(self, length: int) -> tuple[Token, ...]:
        """Return the next tokens whose text is complete in the first `length` characters."""
        released = []
        while self._waiting and self._waiting[0][0] <= length:
            released.append(self._waiting.popleft()[1])
        return tuple(released)

    def cut(self, length: int) -> tuple[Token, ...]:
        """Return the last tokens of a text that ends after `length` characters, at a stop string."""
        return tuple(token for token in self.rest() if token.offset < self._start + length)

    def rest(self) -> tuple[Token, ...]:
        """Return all tokens that are left."""
        rest = tuple(token for _, token in self._waiting)
        self._waiting.clear()
        return rest
