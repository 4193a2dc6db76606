"""Who has had how much of the Generators: virtual token counters.

After Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024.
"""

import time
from collections.abc import Callable

__all__ = ["FairShares", "Share"]

_PROMPT_WEIGHT = 1  # of one token of a prompt
_OUTPUT_WEIGHT = 2  # of a generated one, which takes a row of a step rather than a part of one
_REMEMBER_S = 60.0  # after its last request a client still has slots kept free
_KEPT_FREE = 1 / 8  # of the sequences that run, while there are several clients
_CREDIT = 1024  # weighted tokens that a client which was idle may have had less: some requests with short prompts
_LITTLE = 1 / 2  # of its part: with more, a client's requests are not expedited; clients with equal loads pause nobody


class Share:
    """What one client has had and has.

    counter: weighted tokens so far. waiting, held: its choices that wait, and that are with a Generator.
    """

    def __init__(self) -> None:
        self.counter = 0
        self.waiting = 0
        self.held = 0
        self.last_request = 0.0

    @property
    def active(self) -> bool:
        """Return whether the client has requests."""
        return self.waiting > 0 or self.held > 0

    def charge_output(self, tokens: int) -> None:
        """Count generated tokens."""
        self.counter += _OUTPUT_WEIGHT * tokens


class FairShares:
    """The shares of all clients. The one with the lowest counter is next.

    A client that was idle does not save up: its counter rises to the lowest of those that have requests, less some
    tokens, so that what it sends together starts together. While there are several clients, none waits behind another's
    requests in an engine: no more choices are dispatched than run at the same time, and of those the last eighth is for
    the client with the lowest counter while it has less than its part. A client that comes back therefore starts at
    once, and need not wait for the end of another's output. While it has less than half of its part, its requests are
    expedited: others pause for a step while a prompt is computed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shares: dict[str, Share] = {}
        self._lowest = 0  # of the clients that had requests last

    def arrive(self, client: str, choices: int) -> Share:
        """Count choices as waiting, and return their client's share."""
        share = self._shares.setdefault(client, Share())
        if not share.active:
            counters = [other.counter for other in self._shares.values() if other.active]
            self._lowest = max(self._lowest, min(counters, default=0))
            share.counter = max(share.counter, self._lowest - _CREDIT)
        share.waiting += choices
        share.last_request = self._clock()
        return share

    def start(self, share: Share, choices: int, prompt_tokens: int) -> None:
        """Count choices that waited as dispatched, and the tokens of their prompt."""
        share.waiting -= choices
        share.held += choices
        share.counter += _PROMPT_WEIGHT * prompt_tokens

    def leave(self, share: Share, choices: int, *, started: bool) -> None:
        """Count choices no longer."""
        if started:
            share.held -= choices
        else:
            share.waiting -= choices
        if not any(other.active for other in self._shares.values()):  # whoever comes next begins from here
            self._lowest = max(self._lowest, share.counter)

    def may_start(self, share: Share, choices: int, running: int) -> bool:
        """Return whether a client's next choices may be dispatched.

        running: choices that the Generators run at the same time, together.
        """
        since = self._clock() - _REMEMBER_S
        clients = sum(other.active or other.last_request > since for other in self._shares.values())
        held = sum(other.held for other in self._shares.values())
        if clients < 2 or held == 0:
            return True
        kept_free = 0 if self._has_little(share, choices, running / clients) else max(1, int(running * _KEPT_FREE))
        return held + choices <= running - kept_free

    def is_behind(self, share: Share, choices: int, running: int) -> bool:
        """Return whether a client's next choices are expedited: others have requests now, and have had more.

        running: as for `may_start`.
        """
        active = sum(other.active for other in self._shares.values())
        return active > 1 and self._has_little(share, choices, _LITTLE * running / active)

    def _has_little(self, share: Share, choices: int, part: float) -> bool:
        """Return whether a client has no more than its part with further choices, and has had least."""
        lowest = min(other.counter for other in self._shares.values() if other.active)
        return share.held + choices <= part and share.counter <= lowest
