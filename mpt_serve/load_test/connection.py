"""Connections to the server: few instructions per token, so that the load generator does not limit the load."""

import asyncio
import json
import ssl
from dataclasses import dataclass, field

from mpt_serve.load_test.http_response import HttpResponse, HttpResponseError
from mpt_serve.load_test.record import Record, error_kind

__all__ = ["Connections", "Target"]

_MAX_ERROR_BODY = 64 * 1024


@dataclass(frozen=True)
class Target:
    """Where requests go. tls: None for plain HTTP."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class _Connection(asyncio.Protocol):
    """One connection, with at most one request at a time.

    was_used: for a request that has ended. responds: something has arrived for the last one.
    """

    def __init__(self) -> None:
        self.is_open = True
        self.was_used = False
        self.responds = False
        self._response = HttpResponse()
        self._record: Record | None = None
        self._body = b""
        self._ended: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def exchange(self, request: bytes, record: Record) -> None:
        """Send a request and read its response into the record. Raises HttpResponseError and OSError."""
        self._response, self._record, self._body, self.responds = HttpResponse(), record, b"", False
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._ended
        finally:
            self._record = self._ended = None
            self.was_used = True
            if not (self._response.complete and self._response.keeps_open):
                self.close()
        status = self._response.status
        if status != 200:
            record.error = f"HTTP {status} ({_kind(self._body)})"

    def data_received(self, data: bytes) -> None:
        self.responds = True
        record, response = self._record, self._response
        if record is None or self._ended is None or self._ended.done():
            self.close()  # nobody asked for this
            return
        try:
            body = response.feed(data)
        except HttpResponseError as error:
            self._ended.set_exception(error)
            return
        if body:
            if response.status == 200:
                record.feed(body)
            elif len(self._body) < _MAX_ERROR_BODY:
                self._body += body
        if response.complete:
            self._ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._ended is None or self._ended.done():
            return
        self._response.end_of_connection()
        if self._response.complete:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error or ConnectionResetError("the connection was closed"))

    def close(self) -> None:
        """End the connection."""
        self.is_open = False
        self._transport.abort()


@dataclass
class Connections:
    """The connections to one server; those that are free are used again."""

    target: Target
    timeout_s: float
    _free: list[_Connection] = field(default_factory=list)

    async def send(self, request: bytes, record: Record) -> None:
        """Send a request, and finish its record with what came: errors are kept there by their kind.

        The record of a request that is cancelled has no end.
        """
        connection: _Connection | None = None
        error: str | None = None
        try:
            async with asyncio.timeout(self.timeout_s):
                while True:
                    connection = await self._connect()
                    is_fresh = not connection.was_used
                    try:
                        await connection.exchange(request, record)
                    except ConnectionError:
                        # Servers close idle connections when they like, also while a request is on its way to them.
                        if is_fresh or connection.responds:
                            raise
                    else:
                        break
            error = ""
        except TimeoutError:
            error = "timeout"
        except HttpResponseError as failure:
            error = f"no HTTP ({failure})"
        except (OSError, ssl.SSLError) as failure:
            error = type(failure).__name__ if connection is not None else f"no connection ({type(failure).__name__})"
        finally:
            if error is not None:
                record.finish(error)
            if connection is not None and connection.is_open:
                self._free.append(connection)

    def close(self) -> None:
        """End all free connections."""
        for connection in self._free:
            connection.close()

    async def _connect(self) -> _Connection:
        while self._free:
            connection = self._free.pop()
            if connection.is_open:
                return connection
        target = self.target
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, target.host, target.port, ssl=target.tls)
        return connection


def _kind(body: bytes) -> str:
    try:
        return error_kind(json.loads(body))
    except ValueError:
        return "no JSON"
