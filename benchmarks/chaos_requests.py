"""The requests of `chaos.py`, what their responses must be, and a client that notices every way of losing one."""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Client", "Outcome", "Request", "catalogue"]

_TEXT = "the little dog ran to a big red boat and found one happy friend who had some cake for her mother"
_WORDS = _TEXT.split()
_SCHEMA = {"type": "object", "properties": {"name": {"enum": ["Tom", "Sue"]}, "old": {"type": "boolean"}}}


@dataclass(frozen=True)
class Request:
    """One request whose response is always the same: greedy, or sampled with a seed."""

    name: str
    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    kind: "complete", "refused" (503 in the API's form), "broken off" (a stream that ends with an error event and
    [DONE]) or "lost". content: what a complete response says, without ids and times. detail: of the others.
    """

    kind: str
    content: Any = None
    detail: str = ""


def catalogue(count: int, source: random.Random) -> list[Request]:
    """Return requests of all kinds, streamed and whole, short and long."""
    makers = [_greedy, _sampled, _choices, _logprobs, _schema, _chat, _stopped, _long_prompt]
    requests = []
    for number in range(count):
        path, body = makers[number % len(makers)](source)
        if number // len(makers) % 3 != 2:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        requests.append(Request(f"{number} {makers[number % len(makers)].__name__[1:]}", path, body))
    return requests


def _text(source: random.Random, words: int) -> str:
    return " ".join(source.choice(_WORDS) for _ in range(words))


def _greedy(source: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"prompt": _text(source, 12), "max_tokens": source.randrange(20, 300), "temperature": 0, "ignore_eos": True}
    return "/v1/completions", body


def _sampled(source: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"prompt": _text(source, 20), "max_tokens": source.randrange(20, 200), "seed": source.randrange(10**6)}
    return "/v1/completions", {**body, "temperature": 1.1, "top_p": 0.9, "frequency_penalty": 0.3}


def _choices(source: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"prompt": [_text(source, 9), _text(source, 5)], "n": 2, "max_tokens": source.randrange(10, 60)}
    return "/v1/completions", {**body, "seed": source.randrange(10**6)}


def _logprobs(source: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"prompt": _text(source, 30), "max_tokens": source.randrange(10, 80), "temperature": 0, "logprobs": 3}
    return "/v1/completions", body


def _schema(source: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"prompt": _text(source, 9), "max_tokens": 60, "seed": source.randrange(10**6)}
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": _SCHEMA}}
    return "/v1/completions", {**body, "response_format": schema}


def _chat(source: random.Random) -> tuple[str, dict[str, Any]]:
    messages = [{"role": "user", "content": _text(source, source.randrange(3, 60))}]
    return "/v1/chat/completions", {"messages": messages, "max_tokens": 100, "temperature": 0}


def _stopped(source: random.Random) -> tuple[str, dict[str, Any]]:
    body = {"prompt": _text(source, 15), "max_tokens": 200, "temperature": 0, "stop": [source.choice(_WORDS), "."]}
    return "/v1/completions", body


def _long_prompt(source: random.Random) -> tuple[str, dict[str, Any]]:
    ids = [source.randrange(300, 1700) for _ in range(source.randrange(300, 700))]
    return "/v1/completions", {"prompt": ids, "max_tokens": source.randrange(10, 200), "temperature": 0}


class Client:
    """Speaks HTTP/1.1 over raw sockets, one connection per request."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._host = host
        self._port = port
        self._timeout_s = timeout_s

    async def send(self, request: Request) -> Outcome:
        """Send a request, read its response to the end, and say what became of it."""
        try:
            async with asyncio.timeout(self._timeout_s):
                raw = await self.exchange(request.path, json.dumps(request.body).encode())
        except TimeoutError:
            return Outcome("lost", detail=f"no end within {self._timeout_s:g} s")
        except OSError as error:
            return Outcome("lost", detail=f"{type(error).__name__}: {error}")
        return outcome_of(raw)

    async def exchange(self, path: str, body: bytes, headers: str = "") -> bytes:
        """Return everything that comes back until the server closes the connection."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self.head(path, len(body), headers) + body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()

    async def vanish(self, request: Request, after_bytes: int) -> None:
        """Send a request and leave in the middle of its response."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        body = json.dumps(request.body).encode()
        try:
            writer.write(self.head(request.path, len(body)) + body)
            async with asyncio.timeout(self._timeout_s):
                await reader.read(after_bytes)
        except (OSError, TimeoutError):
            pass
        finally:
            writer.transport.abort()

    def head(self, path: str, length: int, headers: str = "") -> bytes:
        """Return the head of a POST request."""
        fixed = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        return f"{fixed}{headers}Content-Length: {length}\r\n\r\n".encode()

    async def status(self, path: str, timeout_s: float = 10.0) -> int:
        """Return the status of a GET request, 0 if there is no response."""
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n\r\n".encode())
                    return int((await reader.readline()).split()[1])
                finally:
                    writer.close()
        except (OSError, TimeoutError, IndexError, ValueError):
            return 0

    async def stats(self) -> list[dict[str, Any]]:
        """Return the counters of the Generators; none while they cannot be had."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(f"GET /stats HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n\r\n".encode())
            status, body, complete = parse(await reader.read())
        finally:
            writer.close()
        return list(json.loads(body)["replicas"]) if status == 200 and complete else []


def parse(raw: bytes) -> tuple[int, bytes, bool]:
    """Return a response's status and body, and whether it is complete. Raises ValueError if it is no response."""
    head, separator, rest = raw.partition(b"\r\n\r\n")
    if not separator:
        raise ValueError(f"no response: {raw[:80]!r}")
    lines = head.lower().split(b"\r\n")
    status = int(lines[0].split()[1])
    headers = dict(line.partition(b":")[::2] for line in lines[1:])
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        body, complete = _chunks(rest)
        return status, body, complete
    return status, rest, len(rest) == int(headers.get(b"content-length", len(rest)))


def _chunks(rest: bytes) -> tuple[bytes, bool]:
    parts = []
    while True:
        size, separator, rest = rest.partition(b"\r\n")
        if not separator:
            return b"".join(parts), False
        length = int(size, 16)
        if length == 0:
            return b"".join(parts), True
        parts.append(rest[:length])
        rest = rest[length + 2 :]


def outcome_of(raw: bytes) -> Outcome:
    """Say what a response is."""
    try:
        status, body, complete = parse(raw)
        if not complete:
            return Outcome("lost", detail=f"{status}, cut after {len(body)} bytes")
        if status == 200:
            return _stream(body) if body.startswith((b"data:", b":")) else Outcome("complete", _content(body))
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError) as error:
        return Outcome("lost", detail=f"{error!r}: {raw[:200]!r}")
    kind = "refused" if status == 503 else "lost"
    return Outcome(kind, detail=f"{status} {code}" + ("" if kind == "refused" else f": {body[:300]!r}"))


def _content(body: bytes) -> Any:
    """Return a whole response without its id and times, and without how much of its prompts was cached."""
    response = json.loads(body)
    response["usage"].pop("prompt_tokens_details", None)
    return {"choices": response["choices"], "usage": response["usage"]}


def _stream(body: bytes) -> Outcome:
    """Join the events of each choice: how many tokens an event has depends on the speed of its reader."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    ends = [event for event in _events(body) if isinstance(event, str)]
    for event in _events(body):
        if isinstance(event, str):
            continue
        if "error" in event:
            kind = "broken off" if ends else "lost"
            return Outcome(kind, detail=f"an error event: {event['error']['code']}: {event['error']['message']}")
        if event.get("usage"):
            usage = {name: event["usage"][name] for name in ("prompt_tokens", "completion_tokens")}
        for part in event["choices"]:
            _join(choices.setdefault(part["index"], {"text": "", "logprobs": [], "reason": None}), part)
    if ends != ["[DONE]"]:
        return Outcome("lost", detail="a stream without [DONE]")
    return Outcome("complete", {"choices": choices, "usage": usage})


def _events(body: bytes) -> Iterator[Any]:
    for line in body.split(b"\n"):
        if line.startswith(b"data: "):
            data = line[6:].strip()
            yield data.decode() if data == b"[DONE]" else json.loads(data)


def _join(choice: dict[str, Any], part: dict[str, Any]) -> None:
    choice["text"] += part["delta"].get("content") or "" if "delta" in part else part["text"]
    choice["reason"] = part["finish_reason"] or choice["reason"]
    if part.get("logprobs"):
        choice["logprobs"] += zip(*(part["logprobs"][name] for name in ("tokens", "token_logprobs")), strict=True)
