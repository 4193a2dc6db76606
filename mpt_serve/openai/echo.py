"""The prompt as the beginning of an answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpt_serve.engine.request import TokenLogprobs
from mpt_serve.openai.backend import Detokenizer
from mpt_serve.openai.token_alignment import Token

__all__ = ["Echo"]


@dataclass(frozen=True)
class Echo:
    """A prompt's text, special tokens included, and its tokens with their places in it."""

    text: str
    tokens: tuple[Token, ...]

    @classmethod
    def of(cls, ids: Sequence[int], detokenizer: Detokenizer) -> "Echo":
        """Read a prompt. The text is that of the ids: what the model read, after normalisation and truncation."""
        pieces: list[str] = []
        tokens = []
        length = 0
        for token_id in ids:
            tokens.append(Token(token_id, length, of_prompt=True))
            pieces.append(detokenizer.push((token_id,)))
            length += len(pieces[-1])
        return cls("".join(pieces) + detokenizer.flush(), tuple(tokens))

    def with_logprobs(self, logprobs: Sequence[TokenLogprobs | None]) -> tuple[Token, ...]:
        """Return the tokens with what the engine says about each."""
        return tuple(replace(token, logprobs=own) for token, own in zip(self.tokens, logprobs, strict=True))
