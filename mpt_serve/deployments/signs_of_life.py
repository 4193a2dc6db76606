"""What is heard of the replicas on their links: deltas, and a few bytes four times a second (`heartbeat`).

A replica that is frozen, or whose node cannot be reached, falls silent at once. One that merely has too little of a
busy machine does not: the thread that sends these bytes needs next to nothing, where a call needs many turns of several
processes.
"""

import asyncio
import math
from collections.abc import Iterable

from mpt_serve.deployments.link_receiver import Connection, LinkReceiver

__all__ = ["PERIOD_S", "SignsOfLife"]

PERIOD_S = 0.4  # between two looks: above the period of `heartbeat`
_SILENT_LOOKS = 3


class SignsOfLife:
    """Counts how often it has looked since a replica was last heard.

    Looks are counted rather than seconds: while this process itself does not run, nobody falls silent.
    receiver: of the links.
    """

    def __init__(self, receiver: LinkReceiver) -> None:
        self._receiver = receiver
        self._links: dict[str, str] = {}
        self._received: dict[str, int] = {}
        self._looks: dict[str, float] = {}

    async def run(self) -> None:
        """Look periodically until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S)
            self.look()

    def note(self, replica: str, link_id: str) -> None:
        """Note the link of a replica."""
        if self._links.get(replica) != link_id:
            self._links[replica] = link_id
            self._received[replica] = -1
            self._looks[replica] = 0

    def connection(self, replica: str) -> Connection | None:
        """Return the connection on which a replica is heard; None while there is none, or it is silent."""
        link_id = self._links.get(replica)
        return None if link_id is None or self.is_silent(replica) else self._receiver.connection(link_id)

    def keep(self, replicas: Iterable[str]) -> None:
        """Forget all other replicas."""
        for replica in self._links.keys() - set(replicas):
            del self._links[replica], self._received[replica], self._looks[replica]

    def look(self) -> None:
        """Count one more look."""
        for replica, link_id in self._links.items():
            connection = self._receiver.connection(link_id)
            if connection is None:  # its process has ended, or the network between us fails
                self._looks[replica] = math.inf
            elif connection.received != self._received[replica]:
                self._received[replica] = connection.received
                self._looks[replica] = 0
            else:
                self._looks[replica] += 1

    def is_silent(self, replica: str) -> bool:
        """Return whether a replica was heard before, and no more."""
        return self._looks.get(replica, 0) >= _SILENT_LOOKS

    def heard_within(self, replica: str, seconds: float) -> bool:
        """Return whether something was heard of a replica during the last looks."""
        return self._looks.get(replica, math.inf) * PERIOD_S < seconds
