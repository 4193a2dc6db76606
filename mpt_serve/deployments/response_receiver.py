"""The proxy's end of the links that carry streamed responses; see `response_link`."""

from dataclasses import dataclass
from itertools import count
from typing import Any

from starlette.types import Receive, Send

from mpt_serve.deployments.link_receiver import Connection, LinkReceiver
from mpt_serve.deployments.linked_response import LinkedResponse, Waiting
from mpt_serve.deployments.response_wire import LINK_HEADER, Note, NoteKind, Part, decode, joined, link_header

__all__ = ["IngressReplica", "ResponseReceiver"]

MAX_WAITING_BYTES = 64 * 1024 * 1024  # for clients that read slowly; one that does not read at all is soon dropped


@dataclass
class IngressReplica:
    """An Ingress that takes requests over its link. running: those that this proxy has passed to it directly."""

    connection: Connection
    running: int = 0


class ResponseReceiver(LinkReceiver):
    """Takes the responses that Ingresses send to this proxy.

    key: proves to an Ingress that a request comes from a proxy. replicas: by their names in Serve.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = key
        self._numbers = count()
        self._responses: dict[int, LinkedResponse] = {}
        self.replicas: dict[str, IngressReplica] = {}
        self.waiting = Waiting()

    async def open(
        self, receive: Receive, send: Send, path: str, request_id: tuple[bytes, bytes]
    ) -> "LinkedResponse | None":
        """Return a response to be, for a request to this path; None to leave it all to Serve.

        request_id: the header with it, which Serve adds to the responses that it carries.
        """
        number = next(self._numbers)
        address = await self.address(number)
        if address is None:
            return None
        header = (LINK_HEADER, link_header(address, self._key))
        response = LinkedResponse(number, path, header, request_id, receive, send, self.waiting)
        self._responses[number] = response
        return response

    def close_response(self, response: "LinkedResponse") -> None:
        """Forget a response."""
        del self._responses[response.number]

    def take_frames(self, connection: Connection, frames: list[Any]) -> None:
        """Pass on what has come, the parts of each response joined."""
        responses: dict[int, list[Part]] = {}
        notes: list[tuple[int, Note]] = []
        for number, entry in (decode(entry) for frame in frames for entry in frame):
            if isinstance(entry, Part):
                responses.setdefault(number, []).append(entry)
            else:
                notes.append((number, entry))
        for number, parts in responses.items():
            part = joined(parts)
            response = self._responses.get(number)
            if response is not None and not response.ended:
                response.connection = connection
                response.take(part)
            elif not part.ends:
                connection.send(number)  # its client has left
        for number, note in notes:
            self._take_note(connection, number, note)
        while self.waiting.bytes > MAX_WAITING_BYTES:
            most = max(self._responses.values(), key=lambda response: response.waiting_bytes)
            if most.waiting_bytes == 0:  # what waits belongs to responses that have been closed
                break
            most.drop()

    def _take_note(self, connection: Connection, number: int, note: Note) -> None:
        if note.kind == NoteKind.REPLICA:
            self.replicas[note.text] = IngressReplica(connection)
        elif (response := self._responses.get(number)) is not None:
            response.take_note(note.kind)

    def lose(self, connection: Connection) -> None:
        """End what depends on a connection that is lost, unless nothing of it has come: that is left to Serve."""
        self.replicas = {name: own for name, own in self.replicas.items() if own.connection is not connection}
        for response in self._responses.values():
            if response.connection is connection:
                response.lose()
