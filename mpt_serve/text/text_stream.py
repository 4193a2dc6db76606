"""The text of an answer while its ids come, up to the first stop string."""

from collections.abc import Sequence

from mpt_serve.text.detokenizer import IncrementalDetokenizer
from mpt_serve.text.stop_strings import StopMatcher
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["TextStream"]


class TextStream:
    """Turns ids that follow a prompt into text that never has to be taken back, and ends it at stop strings.

    Unfinished characters, and what may become part of a stop string, wait for the next ids. min_tokens: the text of so
    many ids is not searched for stop strings. Raises ValueError for an empty stop string.
    """

    def __init__(self, tokenizer: TextTokenizer, stop_strings: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, continues_text=True)
        self._matcher = StopMatcher(stop_strings, unsearched=min_tokens)

    def push(self, ids: Sequence[int]) -> tuple[str, int, str | None]:
        """Return the text that can leave, how many of the ids it took, and the stop string that ended it.

        It takes all of them unless a stop string ends the text. After that push nothing more.
        """
        if self._matcher.idle:
            return self._detokenizer.push(ids), len(ids), None
        text = ""
        for count, token_id in enumerate(ids, start=1):
            found, matched = self._matcher.push(self._detokenizer.push((token_id,)))
            text += found
            if matched is not None:
                return text, count, matched
        return text, len(ids), None

    def finish(self) -> tuple[str, str | None]:
        """Return what waits, when no more ids come, and the stop string that even that may complete."""
        return self._matcher.finish(self._detokenizer.flush())
