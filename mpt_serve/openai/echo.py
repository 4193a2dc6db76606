"""The prompt as the beginning of an output (`echo`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mpt_serve.engine.request import TokenLogprobs
from mpt_serve.openai.output_choice import Token
from mpt_serve.text.detokenizer import IncrementalDetokenizer
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["Echo"]


@dataclass(frozen=True)
class Echo:
    """A prompt's text, special tokens included, and its tokens with their positions in it."""

    text: str
    tokens: tuple[Token, ...]

    @classmethod
    def of(cls, ids: Sequence[int], tokenizer: TextTokenizer) -> "Echo":
        """Build from a prompt's ids: the text is what the model read, after normalisation and truncation."""
        detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
        pieces: list[str] = []
        tokens = []
        length = 0
        for token_id in ids:
            tokens.append(Token(token_id, length, of_prompt=True))
            pieces.append(detokenizer.push((token_id,)))
            length += len(pieces[-1])
        return cls("".join(pieces) + detokenizer.flush(), tuple(tokens))

    def with_logprobs(self, logprobs: Sequence[TokenLogprobs | None]) -> tuple[Token, ...]:
        """Return the tokens with their log probabilities."""
        return tuple(replace(token, logprobs=own) for token, own in zip(self.tokens, logprobs, strict=True))
