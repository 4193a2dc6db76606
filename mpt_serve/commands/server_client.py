"""Calls to an OpenAI-style server, whose errors become messages."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.server_url import ServerUrl
from mpt_serve.configuration.limits import IGNORED_FIELDS_HEADER

__all__ = ["ServerClient", "error_message", "refusal"]

_CONNECT_S = 10.0
_MAX_MESSAGE = 2000


class ServerClient:
    """One server; a context manager. Every method raises CommandError where the server refuses or cannot be reached.

    Fields of requests that the server says it ignores are named on stderr, once.
    """

    def __init__(self, url: str, key: str | None) -> None:
        self.url = ServerUrl(url)
        self._ignored: str | None = None
        headers = {} if not key else {"Authorization": f"Bearer {key}"}
        try:
            # A response may begin late, where requests wait: only connecting has a limit.
            self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=_CONNECT_S))
        except UnicodeEncodeError as error:
            raise CommandError("--key must be ASCII", status=2) from error

    def __enter__(self) -> "ServerClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """Return the server's models, as it describes them."""
        models = self._call("GET", f"{self.url.api}/models").get("data")
        if not isinstance(models, list) or not all(isinstance(model, dict) and "id" in model for model in models):
            raise CommandError(f"{self.url.api}/models does not list models; --url must be that of an OpenAI-style API")
        return models

    def first_model(self) -> str:
        """Return the id of the server's first model."""
        models = self.models()
        if not models:
            raise CommandError(f"{self.url} serves no model")
        return str(models[0]["id"])

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON that the server responds with. path: from the server's root, such as /tokenize."""
        return self._call("POST", f"{self.url.root}{path}", body)

    def post_api(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON that the server responds with. path: of the API, such as /completions."""
        return self._call("POST", f"{self.url.api}{path}", body)

    @contextmanager
    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Send a request that streams, and return its events; leaving the context ends it. path: of the API."""
        with self._failures(), self._http.stream("POST", f"{self.url.api}{path}", json=body) as response:
            if response.status_code != httpx.codes.OK:
                response.read()
                raise CommandError(refusal(response))
            self._note_ignored(response)
            yield _events(response)

    def _call(self, method: str, url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._failures():
            response = self._http.request(method, url, json=body)
        if response.status_code != httpx.codes.OK:
            raise CommandError(refusal(response))
        self._note_ignored(response)
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise CommandError(f"{url} does not respond with a JSON object; --url must be that of an OpenAI-style API")
        return content

    def _note_ignored(self, response: httpx.Response) -> None:
        ignored = response.headers.get(IGNORED_FIELDS_HEADER)
        if ignored and ignored != self._ignored:
            print(f"note: {self.url} ignores {ignored}", file=sys.stderr)
            self._ignored = ignored

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CommandError(f"{self.url}: {str(error) or type(error).__name__}") from error


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yield the JSON of server-sent events up to [DONE]. Raises CommandError for an event with an error."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise CommandError(f"the server ended its response: {error_message(event)}")
        yield event


def refusal(response: httpx.Response) -> str:
    """Return a message about a response that is an error."""
    try:
        message = error_message(response.json())
    except ValueError:
        message = response.text.strip()[:_MAX_MESSAGE]
    has_no_key = response.status_code == httpx.codes.UNAUTHORIZED
    hint = " --key or the variable OPENAI_API_KEY sets it here." if has_no_key else ""
    return f"{response.url} responds {response.status_code}: {message or response.reason_phrase}{hint}"


def error_message(body: Any) -> str:
    """Return the message in the JSON of an error: OpenAI's form, and those of other servers."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message if message is not None else error)[:_MAX_MESSAGE]
