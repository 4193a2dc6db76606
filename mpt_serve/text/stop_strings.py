"""Stop strings in text that arrives in pieces."""

from collections.abc import Sequence

__all__ = ["StopMatcher"]


class StopMatcher:
    """Finds the first of several stop strings, however the text is cut into pieces.

    The first is the one that is complete first, as if characters arrived one at a time; of two that end together, the
    longer. Text that may still become part of a stop string is held back, so no part of a match is ever emitted,
    unless `include_stop` is set. Raises ValueError for an empty stop string.

    unsearched: number of pieces at the beginning that are not searched; with one piece per token, these are tokens.
    until: the text from this string on is not searched, if that comes before every stop string.
    """

    def __init__(
        self, stop_strings: Sequence[str], include_stop: bool = False, unsearched: int = 0, until: str | None = None
    ) -> None:
        if "" in stop_strings:
            raise ValueError("a stop string must not be empty")
        self._stop_strings = tuple(stop_strings)
        self._until = until
        self._strings = self._stop_strings if until is None or not stop_strings else (*self._stop_strings, until)
        self._include_stop = include_stop
        self._unsearched = unsearched
        self._prefixes = frozenset(stop[:n] for stop in self._strings for n in range(1, len(stop)))
        self._longest_prefix = max(map(len, self._prefixes), default=0)
        self._held = ""

    @property
    def idle(self) -> bool:
        """Return whether there are no stop strings, so that text passes through unchanged."""
        return not self._stop_strings

    def push(self, text: str) -> tuple[str, str | None]:
        """Return the text that can be emitted and the stop string that was found. After a match push nothing more."""
        if self._unsearched > 0:
            self._unsearched -= 1
            return text, None
        text = self._held + text
        matches = [(start + len(stop), start, stop) for stop in self._strings if (start := text.find(stop)) >= 0]
        if matches:
            end, start, stop = min(matches)
            self._held = ""
            if stop == self._until:
                self._strings, self._prefixes = (), frozenset()
                return text, None
            return text[: end if self._include_stop else start], stop
        held = self._unfinished(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def finish(self, text: str = "") -> tuple[str, str | None]:
        """Return the rest, when this text is the last, and the stop string that even that may complete."""
        self._unsearched = 0
        found, matched = self.push(text)
        return found + self._held, matched

    def _unfinished(self, text: str) -> int:
        """Return the length of the longest suffix of the text that begins a stop string."""
        longest = min(self._longest_prefix, len(text))
        return next((n for n in range(longest, 0, -1) if text[-n:] in self._prefixes), 0)
