"""The machinery behind /v1/files and /v1/batches: where they are kept, and how their requests run."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from mpt_serve.access.client import Client
from mpt_serve.batches.batch_counters import BatchCounters
from mpt_serve.batches.batch_run import LaterError
from mpt_serve.batches.batch_store import ENDED, BatchStore
from mpt_serve.batches.file_store import FileStore
from mpt_serve.batches.input_lines import BatchLine
from mpt_serve.batches.results import Result
from mpt_serve.batches.runner import BatchRunner
from mpt_serve.configuration.batches import BatchSettings
from mpt_serve.configuration.limits import Limits
from mpt_serve.openai.arriving_bodies import received_again
from mpt_serve.openai.backend import Backend
from mpt_serve.openai.background import BackgroundBackend
from mpt_serve.openai.background_turns import BackgroundTurns
from mpt_serve.openai.chat import prepare_chat
from mpt_serve.openai.completions import prepare_completion
from mpt_serve.openai.embeddings import prepare_embeddings
from mpt_serve.openai.endpoint import GenerationEndpoint
from mpt_serve.openai.errors import as_api_error, error_body
from mpt_serve.openai.ids import new_id
from mpt_serve.openai.responses import prepare_response
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.server_metrics import ServerMetrics

__all__ = ["BatchRequests", "Batching"]

_WEEK_S = 7 * 24 * 3600.0  # a request of a batch may wait for long until there is nothing else to do
_LATER = frozenset({429, 503})


@dataclass(frozen=True)
class Batching:
    """Files, batches, and what runs these."""

    files: FileStore
    batches: BatchStore
    runner: BatchRunner
    metrics: ServerMetrics  # of the batches' requests

    @classmethod
    def of(cls, settings: BatchSettings, backend: Backend, limits: Limits) -> "Batching | None":
        """Return what the settings offer; None if they name no folder. Raises OSError where that cannot be made."""
        if settings.folder is None:
            return None
        folder = Path(settings.folder).expanduser()
        for name in ("owners", "active"):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        files = FileStore(folder, settings.max_files, settings.max_stored_bytes)
        batches = BatchStore(folder, files, settings.max_unfinished, settings.max_requests)
        requests = BatchRequests(backend, limits)
        return cls(files, batches, BatchRunner(batches, requests.send, settings.max_running), requests.metrics)

    @staticmethod
    def counters(batching: "Batching | None") -> dict[str, Any]:
        """Return what was counted of batches as plain data, which other processes can read; None: there are none."""
        own = BatchCounters() if batching is None else batching.runner.counters
        histograms = ServerMetrics().histograms if batching is None else batching.metrics.histograms
        return {
            "batches_unfinished": own.unfinished,
            "batches_running": own.running,
            "batches_ended": {status: own.ended[status] for status in sorted(ENDED)},
            "batch_requests_running": own.requests_running,
            "batch_requests": {outcome: own.requests[outcome] for outcome in ("completed", "failed")},
            "batch_tokens": {
                "prompt": int(histograms["prompt_tokens"].total),
                "generated": int(histograms["output_tokens"].total),
            },
        }


class BatchRequests:
    """Sends requests of batches through the endpoints that their URLs name, in this process.

    They count neither towards the server's capacity, nor towards the limits of their owner, nor in the metrics of
    requests that somebody waits for. metrics: of these requests.
    """

    def __init__(self, backend: Backend, limits: Limits) -> None:
        patient = limits.replace(request_timeout_s=max(_WEEK_S, limits.request_timeout_s))
        context = ServerContext(BackgroundBackend(backend), patient)
        self.metrics = context.metrics
        self._turns = BackgroundTurns(backend.load)
        self._endpoints: Mapping[str, ASGIApp] = {
            "/v1/completions": GenerationEndpoint(context, prepare_completion),
            "/v1/chat/completions": GenerationEndpoint(context, prepare_chat),
            "/v1/embeddings": GenerationEndpoint(context, prepare_embeddings),
            "/v1/responses": GenerationEndpoint(context, prepare_response),
        }

    async def send(self, owner: str, line: BatchLine) -> Result:
        """Return the result of a request. Raises LaterError where the server cannot serve it now."""
        await self._turns.wait()
        request_id = new_id("req")
        exchange = _Exchange(json.dumps(line.body).encode())
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": line.url,
            "headers": [(b"content-type", b"application/json")],
            "state": {"request_id": request_id, "started": perf_counter(), "client": Client(owner)},
        }
        try:
            await self._endpoints[line.url](scope, exchange.receive, exchange.send)
        except Exception as error:
            api_error = as_api_error(error)
            if api_error.status in _LATER:
                raise LaterError(api_error.message) from error
            return Result.of_response(line.custom_id, api_error.status, request_id, error_body(api_error))
        return Result.of_response(line.custom_id, exchange.status, request_id, json.loads(exchange.body))


class _Exchange:
    """One request without a connection, and its response."""

    def __init__(self, content: bytes) -> None:
        self.status = 0
        self.body = b""
        self.receive = received_again(content, _never)

    async def send(self, message: Message) -> None:
        """Take the response."""
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")


async def _never() -> Message:
    """Wait for a client that never leaves."""
    never: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    return await never
