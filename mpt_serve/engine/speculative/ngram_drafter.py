"""Prompt lookup: drafts for an output that repeats its prompt, itself, or what other requests generated.

Three candidates compete at every position: what followed the longest earlier occurrence of the sequence's end; where
the output left a copy for a few other ids, what follows them in the original; and what followed in past outputs. The
one that was right more often is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mpt_serve.engine.request import Request
from mpt_serve.engine.speculative.acceptance import AcceptanceRates
from mpt_serve.engine.speculative.draft_policy import draft_lengths
from mpt_serve.engine.speculative.drafter import Drafter, before_stop
from mpt_serve.engine.speculative.ngram_index import Match, NgramIndex
from mpt_serve.engine.speculative.past_outputs import PastFollower, PastOutputs

# Ids of a prompt that one call indexes, and of an output that it follows: about 3 ms each. More take several steps.
_IDS_PER_CALL, _GENERATED_PER_CALL = 4096, 512
# A copy that differs for a few ids (a renamed word) mostly continues after them: how often, by 1 + the number of ids
# since then that were as in the original.
_RESUMED_RATES = {1: 0.4, 2: 0.6, 3: 0.7, 5: 0.8}
_COPY = 3  # ids in common that make a match a copy
_PATIENCE = 3  # wrong drafts after which a copy is not resumed
# What a step of several rows must take for each of them: the host's work for drafts is a tenth to a third of that.
_SECONDS_PER_ROW = 1e-4


class _Sequence:
    """A request's ids as far as they are indexed, where they match now, and how often matches were right.

    Every generated id shows whether its prediction was right, drafted or not: a request that does not repeat itself
    costs nothing but this comparison, and one that starts to is noticed.

    past: outputs of other requests; None where the request has no part in them.
    """

    def __init__(self, past: PastOutputs | None = None) -> None:
        self._past = past
        self._follower: PastFollower | None = None  # of the past, once the prompt is indexed
        self._index = NgramIndex()
        self._rates = AcceptanceRates()
        self._match: Match | None = None
        self._resumed_rates = AcceptanceRates(_RESUMED_RATES)
        self._resumed: Match | None = None  # of a copy that was left: length is 1 + the number of right ids since then
        self._misses = 0

    def advance(self, request: Request) -> bool:
        """Index what the host knows of the request; False while a part of it is left for the next call."""
        known, prompt = len(self._index.ids), len(request.prompt_ids)
        if known < prompt:
            stop = min(prompt, known + _IDS_PER_CALL)
            self._index.extend(request.known_ids(known, stop))
            if stop < prompt:
                return False
            self._match = self._index.match()
            if self._past is not None:
                self._follower = PastFollower(self._past, request.prompt_ids)
            known = prompt
        stop = min(request.num_known, known + _GENERATED_PER_CALL)
        for token in request.known_ids(known, stop):
            self._append(token)
        return stop == request.num_known

    def _append(self, token: int) -> None:
        match, index = self._match, self._index
        hit = match is not None and index.ids[match.source] == token
        self._resume(token, hit)
        if match is not None:
            self._rates.observe(match.length, hit)
        index.extend((token,))
        if self._follower is not None:
            self._follower.advance(token)
        self._match = index.match()
        # The continued match may be older than those that `match` compares.
        if match is not None and hit and (self._match is None or match.length >= self._match.length):
            self._match = index.extended(match)

    def _resume(self, token: int, hit: bool) -> None:
        """Follow the copy that was left, or start to follow one that is left now."""
        resumed, match = self._resumed, self._match
        if resumed is not None:
            right = self._index.ids[resumed.source] == token
            self._resumed_rates.observe(resumed.length, right)
            if right:
                self._resumed = Match(resumed.source + 1, resumed.length + 1)
            elif resumed.length > 1:
                self._resumed, self._misses = Match(resumed.source + 1, 1), 1  # left once more
            elif self._misses < _PATIENCE:
                self._misses += 1  # several ids instead of one
            else:
                self._resumed = None
        if match is not None and not hit and match.length >= _COPY:
            self._resumed, self._misses = Match(match.source + 1, 1), 1

    def survivals(self, count: int, in_flight: int) -> list[float]:
        """Return the survivals of `count` draft tokens after `in_flight` ids that are predicted too."""
        best = self._best()
        return [] if best is None else best.survivals(in_flight + count)[in_flight:]

    def draft(self, count: int) -> list[int]:
        """Return `count` draft tokens, or fewer."""
        best = self._best()
        return [] if best is None else best.ids(count)

    def _best(self) -> "_Copy | PastFollower | None":
        """Return what to draft from: what is right more often."""
        candidates: list[_Copy | PastFollower] = [
            _Copy(self._index, match, rates)
            for match, rates in ((self._match, self._rates), (self._resumed, self._resumed_rates))
            if match is not None
        ]
        if self._follower is not None:
            candidates.append(self._follower)
        return max(candidates, key=lambda candidate: candidate.rate, default=None)


@dataclass(frozen=True, slots=True)
class _Copy:
    """What follows a match in the sequence itself. rates: of such matches."""

    index: NgramIndex
    match: Match
    rates: AcceptanceRates

    @property
    def rate(self) -> float:
        return self.rates.rate(self.match.length)

    def survivals(self, count: int) -> list[float]:
        length = self.match.length
        return self.rates.survivals(range(length, length + count))

    def ids(self, count: int) -> list[int]:
        return self.index.continuation(self.match.source, count)


class NgramDrafter(Drafter):
    """Drafts copies of earlier text in prompt or output, or in the outputs of requests that have ended.

    `draft_lengths` decides how many ids it drafts, from each request's acceptance rates and the measured durations of
    steps.

    past_output_tokens: how many ids of past outputs to keep, at most; None for none.
    """

    def __init__(
        self, step_sizes: Sequence[int], max_draft_tokens: int = 11, past_output_tokens: int | None = None
    ) -> None:
        super().__init__(step_sizes, max_draft_tokens)
        self._past = None if past_output_tokens is None else PastOutputs(past_output_tokens)
        self._sequences: dict[Request, _Sequence] = {}

    def worth_reading(self, requests: Sequence[Request], num_rows: int) -> bool:
        if not self._has_time(num_rows):
            return False
        return any(draft_lengths([self._survivals(request) for request in requests], num_rows, self._costs))

    def plan(self, requests: Sequence[Request], num_rows: int) -> list[int]:
        if self._past is not None:
            self._past.count()
        if not self._has_time(num_rows):
            return [0] * len(requests)
        survivals = [[] if request.in_flight else self._survivals(request) for request in requests]
        return draft_lengths(survivals, num_rows, self._costs)

    def draft(self, requests: Sequence[Request], lengths: Sequence[int]) -> list[list[int]]:
        return [
            before_stop(request, self._sequences[request].draft(length)) if length else []
            for request, length in zip(requests, lengths, strict=True)
        ]

    def forget(self, request: Request) -> None:
        self._sequences.pop(request, None)
        past = self._past_of(request)
        if past is not None and request.finish_reason != "error":
            past.add(request)

    def _past_of(self, request: Request) -> PastOutputs | None:
        return None if request.params.cache_salt else self._past

    def _has_time(self, num_rows: int) -> bool:
        """Return whether steps take long enough for what drafts cost the host; those of one row do."""
        costs = self._costs
        return num_rows == 1 or not costs.known or costs.cost(num_rows) >= num_rows * _SECONDS_PER_ROW

    def _survivals(self, request: Request) -> list[float]:
        count = self.max_drafts(request)
        if count == 0:
            return []
        sequence = self._sequences.get(request)
        if sequence is None:
            sequence = self._sequences[request] = _Sequence(self._past_of(request))
        return sequence.survivals(count, request.in_flight) if sequence.advance(request) else []
