"""HTTP/1.1 responses, read from the bytes of a connection as they arrive."""

from mpt_serve.errors import MptServeError

__all__ = ["HttpResponse", "HttpResponseError"]

_MAX_HEAD = 64 * 1024
_HEAD_END = b"\r\n\r\n"


class HttpResponseError(MptServeError):
    """What arrived is no HTTP/1.1 response."""


class HttpResponse:
    """One response. status: 0 until its head has arrived. complete: its body has ended.

    keeps_open: the connection may be used again afterwards.
    """

    def __init__(self) -> None:
        self.status = 0
        self.complete = False
        self.keeps_open = True
        self._buffer = b""
        self._chunked = False
        self._left: int | None = None  # bytes of the body, or of the chunk; None: up to the connection's end
        self._in_trailer = False

    def feed(self, data: bytes) -> bytes:
        """Return the bytes of the body in what arrived. Raises HttpResponseError."""
        if not self.status:
            self._buffer += data
            head, found, data = self._buffer.partition(_HEAD_END)
            if not found:
                if len(head) > _MAX_HEAD:
                    raise HttpResponseError("a head without an end")
                return b""
            self._buffer = b""
            if not self._read_head(head):  # an interim response
                return self.feed(data)
        return self._read_chunks(data) if self._chunked else self._read_body(data)

    def end_of_connection(self) -> None:
        """Take note that nothing more will arrive, which ends a body without a length."""
        self.keeps_open = False
        if self.status and not self._chunked and self._left is None:
            self.complete = True

    def _read_head(self, head: bytes) -> bool:
        """Read status and headers; return False for an interim response, which another one follows."""
        first, *lines = head.split(b"\r\n")
        words = first.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise HttpResponseError("no status line")
        status = int(words[1])
        if status < 200:
            return False
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        self._chunked = headers.get(b"transfer-encoding", b"").lower().endswith(b"chunked")
        length = headers.get(b"content-length")
        if not self._chunked:
            if length is not None and not length.isdigit():
                raise HttpResponseError("a bad length")
            self._left = 0 if status in (204, 304) else None if length is None else int(length)
            self.complete = self._left == 0
        closes = b"close" in headers.get(b"connection", b"").lower() or words[0] == b"HTTP/1.0"
        self.keeps_open = not closes and (self._chunked or self._left is not None)
        self.status = status
        return True

    def _read_body(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        body = data[: self._left]
        self._left -= len(body)
        self.complete = self._left == 0
        return body

    def _read_chunks(self, data: bytes) -> bytes:
        """Return the contents of chunks; what is incomplete waits in the buffer."""
        data = self._buffer + data if self._buffer else data
        pieces, at = [], 0
        while not self.complete:
            if self._left:
                piece = data[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._left = 0
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            line, at = data[at:end], end + 2
            self._read_line(line)
        self._buffer = data[at:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_line(self, line: bytes) -> None:
        """Read a line between chunks: the end of the one before, the size of the next, or one of the trailer."""
        if self._in_trailer:
            self.complete = not line
        elif self._left == 0 and not line:
            self._left = None
        elif self._left == 0:
            raise HttpResponseError("a chunk longer than its size")
        else:
            try:
                self._left = int(line.split(b";")[0], 16)
            except ValueError:
                raise HttpResponseError("a bad size of a chunk") from None
            if self._left == 0:
                self._in_trailer = True
