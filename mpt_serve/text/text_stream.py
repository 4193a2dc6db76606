"""From generated ids to text: detokenized incrementally, and ended at the first stop string."""

from collections.abc import Sequence

from mpt_serve.text.detokenizer import IncrementalDetokenizer
from mpt_serve.text.stop_strings import StopMatcher
from mpt_serve.text.token_alignment import TextToken, TokenAlignment
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["TextStream"]


class TextStream:
    """Turns the ids of one output, as they are generated, into text that never has to be taken back.

    Unfinished characters, and text that may become part of a stop string, wait for the next ids.

    stop_strings: end the text; the first that is complete wins. include_stop: keep it at the end of the text.
    min_tokens: the text of that many ids is not searched for stop strings.
    track_tokens: also report which tokens each piece of text completes (`take_tokens`).
    stop_until: stop strings count before this string alone.
    text_offset: characters before the text (of an echoed prompt), which the tokens' offsets count.
    Raises ValueError for an empty stop string.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        stop_strings: Sequence[str] = (),
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
        track_tokens: bool = False,
        stop_until: str | None = None,
        text_offset: int = 0,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens, continues_text=True)
        self._matcher = StopMatcher(stop_strings, include_stop, min_tokens, stop_until)
        self._alignment = TokenAlignment(text_offset) if track_tokens else None
        self._whole_deltas = self._alignment is None and self._matcher.idle  # nothing depends on single ids
        self._decoded = self._emitted = 0  # characters
        self._matched = self._finished = False

    @property
    def tracks_tokens(self) -> bool:
        """Return whether `take_tokens` reports the tokens."""
        return self._alignment is not None

    def push(self, ids: Sequence[int]) -> tuple[str, int, str | None]:
        """Return the text that can leave, how many of the ids were taken, and the stop string that ended the text.

        All ids are taken unless a stop string ends the text. After that push nothing more.
        """
        if self._whole_deltas:
            return self._detokenizer.push(ids), len(ids), None
        pieces = []
        for count, token_id in enumerate(ids, start=1):
            piece, matched = self._matcher.push(self._decode(token_id))
            pieces.append(piece)
            if matched is not None:
                return self._emit("".join(pieces), matched), count, matched
        return self._emit("".join(pieces), None), len(ids), None

    def finish(self, end_ids: Sequence[int] = ()) -> tuple[str, str | None]:
        """Return the text that waits, when no more ids come, and the stop string that even that may complete.

        end_ids: generated ids that ended the text and are not part of it.
        """
        self._finished = True
        if self._alignment is not None:
            for token_id in end_ids:
                self._alignment.add(token_id, self._decoded, self._decoded, unfinished=False)
        text, matched = self._matcher.finish(self._detokenizer.flush())
        return self._emit(text, matched), matched

    def take_tokens(self) -> tuple[TextToken, ...]:
        """Return the tokens completed by the text since the last call, in order; after the end, all that are left."""
        if self._alignment is None:
            return ()
        if self._matched:
            return self._alignment.cut(self._emitted)
        return self._alignment.rest() if self._finished else self._alignment.release(self._emitted)

    def _decode(self, token_id: int) -> str:
        text = self._detokenizer.push((token_id,))
        begin, self._decoded = self._decoded, self._decoded + len(text)
        if self._alignment is not None:
            self._alignment.add(token_id, begin, self._decoded, self._detokenizer.unfinished)
        return text

    def _emit(self, text: str, matched: str | None) -> str:
        self._emitted += len(text)
        self._matched = matched is not None
        return text
