"""Stop strings in text that comes in pieces."""

from collections.abc import Sequence

__all__ = ["StopMatcher"]


class StopMatcher:
    """Finds the first of several stop strings, however the text is cut into pieces.

    The first is the one that is complete first, as if characters came one at a time; of two that end together, the
    longer. Text that may still become part of a stop string is held back, so nothing of a match is ever emitted,
    unless `include_stop` asks for it. Raises ValueError for an empty stop string.

    unsearched: first pieces that are let through; with a piece for each token, these are tokens.
    """

    def __init__(self, stop_strings: Sequence[str], include_stop: bool = False, unsearched: int = 0) -> None:
        if "" in stop_strings:
            raise ValueError("a stop string must not be empty")
        self._stop_strings = tuple(stop_strings)
        self._include_stop = include_stop
        self._unsearched = unsearched
        self._prefixes = frozenset(stop[:n] for stop in stop_strings for n in range(1, len(stop)))
        self._longest_prefix = max(map(len, self._prefixes), default=0)
        self._held = ""

    @property
    def idle(self) -> bool:
        """There is nothing to find: text passes through as it comes."""
        return not self._stop_strings

    def push(self, text: str) -> tuple[str, str | None]:
        """Return the text that can leave and the stop string that was found. After a match push nothing more."""
        if self._unsearched > 0:
            self._unsearched -= 1
            return text, None
        text = self._held + text
        matches = [(start + len(stop), start, stop) for stop in self._stop_strings if (start := text.find(stop)) >= 0]
        if matches:
            end, start, stop = min(matches)
            self._held = ""
            return text[: end if self._include_stop else start], stop
        held = self._unfinished(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def finish(self, text: str = "") -> tuple[str, str | None]:
        """Return the rest, when no more than this text comes, and the stop string that even that may complete."""
        self._unsearched = 0
        found, matched = self.push(text)
        return found + self._held, matched

    def _unfinished(self, text: str) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        longest = min(self._longest_prefix, len(text))
        return next((n for n in range(longest, 0, -1) if text[-n:] in self._prefixes), 0)
