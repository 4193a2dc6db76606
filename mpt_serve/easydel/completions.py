"""Prompts to the server that `JAXServer` runs, and the text that comes back."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from mpt_serve.errors import MptServeError

__all__ = ["ServerRequestError", "stream_completion"]

_TIMEOUT = httpx.Timeout(30, read=None)


class ServerRequestError(MptServeError):
    """The server refused a request. status: of its response."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def stream_completion(
    url: str, request: Mapping[str, Any], max_new_tokens: int, longest_prompt: int
) -> Iterator[tuple[str, int]]:
    """Yield the text so far and its number of tokens after each event of a streamed completion.

    request: of /v1/chat/completions if it has `messages`, of /v1/completions otherwise. max_new_tokens: the end of the
    context may come earlier. longest_prompt: of a longer one the last tokens are used, where it is a text.
    Raises ServerRequestError.
    """
    try:
        yield from _stream(url, request, max_new_tokens, longest_prompt)
    except httpx.TransportError as error:
        raise ServerRequestError(f"the server does not respond ({type(error).__name__}: {error})", 503) from error


def _stream(
    url: str, request: Mapping[str, Any], max_new_tokens: int, longest_prompt: int
) -> Iterator[tuple[str, int]]:
    chat = "messages" in request
    prompt = {"messages": request["messages"]} if chat else {"prompt": request["prompt"]}
    with httpx.Client(base_url=url, timeout=_TIMEOUT) as client:
        counted = _json(client.post("/tokenize", json=prompt))
        kept = counted["count"] if chat else min(counted["count"], longest_prompt)
        body = {**request, "stream": True, "return_token_ids": True}
        if not chat:
            body["prompt"] = counted["tokens"][-kept:] if kept else request["prompt"]
        body["max_tokens"] = max(min(max_new_tokens, counted["max_model_len"] - kept), 1)
        path = "/v1/chat/completions" if chat else "/v1/completions"
        text, count = "", 0
        with client.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                response.read()
                _json(response)
            for event in _events(response):
                for choice in event["choices"]:
                    text += (choice["delta"].get("content") if chat else choice["text"]) or ""
                    count += len(choice.get("token_ids") or ())
                yield text, count


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data == line or data == "[DONE]":
            continue
        event: dict[str, Any] = json.loads(data)
        if "error" in event:
            raise ServerRequestError(str(event["error"].get("message")), 500)
        yield event


def _json(response: httpx.Response) -> dict[str, Any]:
    """Return a response's JSON. Raises ServerRequestError for an error."""
    if response.status_code == 200:
        data: dict[str, Any] = response.json()
        return data
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):  # of Serve itself, in plain text
        message = response.text[:200]
    raise ServerRequestError(message, response.status_code)
