"""Sends the requests of a batch to a server, several at once, until each has a result."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from mpt_serve.batches.backoff import backoff_s
from mpt_serve.batches.input_lines import BatchLine, read_lines
from mpt_serve.batches.pending import pending
from mpt_serve.batches.result_files import ResultFiles
from mpt_serve.batches.results import Result
from mpt_serve.commands.failure import CommandError
from mpt_serve.commands.server_client import refusal
from mpt_serve.commands.server_url import ServerUrl
from mpt_serve.errors import MptServeError

__all__ = ["BatchRun"]

_CONNECT_S = 10.0
_BUSY = frozenset({429, 502, 503})  # the server takes requests later
_FAILING = frozenset({408, 409, 500, 504})  # the same request may succeed when it is sent again, or never
_DENIED = frozenset({401, 403})  # so are all others
_RETRIES = 2
_LONGEST_WAIT_S = 30.0


class _LaterError(MptServeError):
    """The server does not take requests now. wait_s: as it says; None where it says nothing."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class BatchRun:
    """One run over an input file. results: entered. defaults: fields of requests that lack them.

    max_wait_s: how long requests may be refused, or not reach the server, without any response to one.
    num_lines: lines of the input that are not empty. notice: what to show beside the counters.
    """

    def __init__(
        self,
        url: str,
        key: str | None,
        requests: Path,
        results: ResultFiles,
        defaults: Mapping[str, Any],
        concurrency: int,
        max_wait_s: float,
    ) -> None:
        self.results = results
        self.notice = ""
        self.num_lines = sum(1 for _ in read_lines(requests))
        self._url = ServerUrl(url)
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._lines = pending(requests, results)
        self._defaults = defaults
        self._concurrency = concurrency
        self._max_wait_s = max_wait_s
        self._responded_at = time.monotonic()

    @property
    def num_finished(self) -> int:
        """Return how many lines have results, those of earlier runs included."""
        return self.results.completed + self.results.failed

    async def run(self) -> None:
        """Return when every line has its result. Raises CommandError when the server is away, or denies access."""
        limits = httpx.Limits(max_connections=self._concurrency)
        timeout = httpx.Timeout(None, connect=_CONNECT_S)  # a response may begin late, where requests wait
        try:
            async with (
                httpx.AsyncClient(headers=self._headers, limits=limits, timeout=timeout) as http,
                asyncio.TaskGroup() as tasks,
            ):
                for _ in range(self._concurrency):
                    tasks.create_task(self._send_one_after_another(http))
        except* (CommandError, OSError) as errors:
            raise _first(errors) from None
        except* UnicodeEncodeError as errors:
            raise CommandError("--key must be ASCII", status=2) from errors

    async def _send_one_after_another(self, http: httpx.AsyncClient) -> None:
        for line in self._lines:
            result = line if isinstance(line, Result) else await self._result(http, line)
            self.results.append(result)

    async def _result(self, http: httpx.AsyncClient, line: BatchLine) -> Result:
        """Return the result of a request, however often it has to be sent for that. Raises CommandError."""
        failures, waits = 0, 0
        while True:
            try:
                result = await self._send(http, line)
            except _LaterError as error:
                away_s = time.monotonic() - self._responded_at
                if away_s > self._max_wait_s:
                    kept = f"the results so far are in {self.results.outputs}; the same command continues"
                    raise CommandError(f"{error}\nno response for {away_s:.0f} s: {kept}") from error
                self.notice = " waiting for the server"
                waits += 1
                await asyncio.sleep(backoff_s(waits, _LONGEST_WAIT_S, wanted_s=error.wait_s))
                continue
            self._responded_at, self.notice, waits = time.monotonic(), "", 0
            status = (result.record["response"] or {}).get("status_code")
            if status not in _FAILING or failures == _RETRIES:
                return result
            failures += 1
            await asyncio.sleep(backoff_s(failures, _LONGEST_WAIT_S))

    async def _send(self, http: httpx.AsyncClient, line: BatchLine) -> Result:
        """Send a request once. Raises _LaterError and CommandError."""
        url = self._url.api + line.url.removeprefix("/v1")
        try:
            response = await http.post(url, json={**self._defaults, **line.body})
        except httpx.InvalidURL as error:
            raise CommandError(f"{self._url}: {error}", status=2) from error
        except httpx.HTTPError as error:
            raise _LaterError(f"{self._url}: {str(error) or type(error).__name__}") from error
        except ValueError:  # JSON has forms of characters and numbers that nothing else has
            return Result.of_failure(line.custom_id, "invalid_body", f"Line {line.number}: 'body' cannot be sent.")
        if response.status_code in _DENIED:
            raise CommandError(refusal(response))
        try:
            body = response.json()
        except ValueError:
            if response.status_code in (404, *_BUSY):  # of what stands before a server that starts
                raise _LaterError(refusal(response)) from None
            body = {"error": {"message": refusal(response)}}
        if response.status_code in _BUSY:
            raise _LaterError(refusal(response), _retry_after_s(response))
        request_id = response.headers.get("x-request-id", "")
        return Result.of_response(line.custom_id, response.status_code, request_id, body)


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    return next(error for error in _leaves(errors))


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        yield error
        return
    for inner in error.exceptions:
        yield from _leaves(inner)


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None
