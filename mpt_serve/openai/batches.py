"""/v1/batches: files of requests that run when nothing else does."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mpt_serve.batches.batch_store import ENDED, Batch, BatchState
from mpt_serve.batches.file_store import StoredFile
from mpt_serve.openai.authentication import client_of
from mpt_serve.openai.batching import Batching
from mpt_serve.openai.errors import InvalidValueError, ObjectNotFoundError
from mpt_serve.openai.object_page import page_of
from mpt_serve.openai.protocol.batches import BatchBody, BatchErrors, BatchList, BatchRequest, window_seconds
from mpt_serve.openai.server_context import ServerContext

__all__ = ["BatchEndpoints"]

_QUERY = frozenset({"limit", "after"})


class BatchEndpoints:
    """The endpoints of batches. batching: raises NotEnabledError where the settings have no folder for them."""

    def __init__(self, context: ServerContext, batching: Callable[[], Batching]) -> None:
        self._context = context
        self._batching = batching

    async def create(self, request: Request) -> Response:
        """Create a batch of an uploaded file."""
        batching, owner = self._batching(), client_of(request.scope).name
        content = await self._context.bodies.read_json_object(request)
        parsed = BatchRequest.parse(content)
        file = await asyncio.to_thread(batching.files.get, owner, parsed.input_file_id)
        if file is None or file.purpose != "batch":
            raise _no_input()
        batch = await asyncio.to_thread(_create, batching, owner, file, parsed)
        batching.runner.wake()
        headers = self._context.ignored_fields_header(BatchRequest.unknown_fields(content))
        return JSONResponse(self._body(batch, BatchState()), headers=dict(headers))

    async def list(self, request: Request) -> Response:
        """Return the client's batches."""
        store, query = self._batching().batches, request.query_params
        batches = await asyncio.to_thread(store.all_of, client_of(request.scope).name)
        page, has_more = page_of(batches, {name: query[name] for name in _QUERY & set(query)}, most=100, default=20)
        data = [self._body(batch, await asyncio.to_thread(store.state, batch)) for batch in page]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        body: BatchList = {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}
        return JSONResponse(body, headers=self._context.ignored_fields_header(sorted(set(query) - _QUERY)))

    async def get(self, request: Request) -> Response:
        """Return how far a batch is."""
        return JSONResponse(self._body(*await self._batch(request)))

    async def cancel(self, request: Request) -> Response:
        """End a batch: what has a result keeps it."""
        batch, state = await self._batch(request)
        if state.status in ENDED:
            raise InvalidValueError(f"The batch cannot be cancelled: it is {state.status}.")
        store = self._batching().batches
        await asyncio.to_thread(store.cancel, batch)
        self._batching().runner.wake()
        return JSONResponse(self._body(batch, await asyncio.to_thread(store.state, batch)))

    async def _batch(self, request: Request) -> tuple[Batch, BatchState]:
        """Return the batch that a path names, and how far it is. Raises ObjectNotFoundError."""
        store = self._batching().batches
        batch = await asyncio.to_thread(store.get, client_of(request.scope).name, request.path_params["id"])
        if batch is None:
            raise ObjectNotFoundError("There is no batch with this id; GET /v1/batches lists those that there are.")
        return batch, await asyncio.to_thread(store.state, batch)

    def _body(self, batch: Batch, state: BatchState) -> BatchBody:
        ended = state.status in ENDED
        moments = {
            f"{status}_at": state.times.get(status)
            for status in ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        }
        body: dict[str, Any] = {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "model": self._context.backend.model.id,
            "errors": _errors(state),
            "input_file_id": batch.input_file_id,
            "completion_window": batch.completion_window,
            "status": state.status,
            "output_file_id": batch.output_file_id if ended and state.completed else None,
            "error_file_id": batch.error_file_id if ended and state.failed else None,
            "created_at": batch.created_at,
            "expires_at": batch.expires_at,
            **moments,
            "request_counts": {"total": state.total, "completed": state.completed, "failed": state.failed},
            "metadata": batch.metadata,
        }
        return cast(BatchBody, body)


def _create(batching: Batching, owner: str, file: StoredFile, request: BatchRequest) -> Batch:
    expiry = request.output_expires_after
    try:
        return batching.batches.create(
            owner,
            file,
            request.endpoint,
            request.completion_window,
            window_seconds(request.completion_window),
            request.metadata,
            None if expiry is None else expiry.seconds,
        )
    except FileNotFoundError:
        raise _no_input() from None


def _no_input() -> InvalidValueError:
    name = "input_file_id"
    return InvalidValueError(f"'{name}' must be the id of a file with the purpose 'batch'.", param=name)


def _errors(state: BatchState) -> BatchErrors | None:
    if not state.errors:
        return None
    data = [{"code": code, "message": message, "param": None, "line": None} for code, message in state.errors]
    return cast(BatchErrors, {"object": "list", "data": data})
