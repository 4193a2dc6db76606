"""/v1/files: what clients upload for batches, and the results of these."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Literal, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from mpt_serve.batches.file_store import StorageFullError, StoredFile
from mpt_serve.openai.authentication import client_of
from mpt_serve.openai.batching import Batching
from mpt_serve.openai.errors import InvalidValueError, ObjectNotFoundError
from mpt_serve.openai.multipart import FormPart
from mpt_serve.openai.object_page import page_of
from mpt_serve.openai.protocol.batches import FileBody, FileDeletion, FileList, FileUpload
from mpt_serve.openai.server_context import ServerContext

__all__ = ["FileEndpoints"]

_CHUNK_BYTES = 256 * 1024
_QUERY = frozenset({"purpose", "limit", "after", "order"})


class FileEndpoints:
    """The endpoints of files. batching: raises NotEnabledError where the settings have no folder for them."""

    def __init__(self, context: ServerContext, batching: Callable[[], Batching]) -> None:
        self._context = context
        self._batching = batching

    async def upload(self, request: Request) -> Response:
        """Store a file."""
        store = self._batching().files
        async with self._context.bodies.form(request) as parts:
            fields = {part.name: part for part in parts}
            if len(fields) < len(parts):
                raise InvalidValueError("The form has two parts with one name.")
            upload = FileUpload.parse(_texts(fields))
            if upload.expires_anchor is not None and upload.expires_seconds is None:
                name = "expires_after[seconds]"
                raise InvalidValueError(f"'{name}' is required with 'expires_after[anchor]'.", param=name)
            file = fields["file"]
            headers = self._context.ignored_fields_header(FileUpload.unknown_fields(fields))
            owner, name = client_of(request.scope).name, file.filename or "file"
            details = (owner, name, upload.purpose, file.content, upload.expires_seconds)
            try:
                stored = await asyncio.to_thread(store.add, *details)
            except StorageFullError as error:
                raise InvalidValueError(f"'file' cannot be stored: {error}.", param="file") from error
        return JSONResponse(_body(stored), headers=dict(headers))

    async def list(self, request: Request) -> Response:
        """Return the client's files."""
        store, query = self._batching().files, request.query_params
        files: Sequence[StoredFile] = await asyncio.to_thread(store.all_of, client_of(request.scope).name)
        if "purpose" in query:
            files = [file for file in files if file.purpose == query["purpose"]]
        page, has_more = page_of(files, query, most=10_000, default=10_000)
        data = [_body(file) for file in page]
        first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
        body: FileList = {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more}
        return JSONResponse(body, headers=self._context.ignored_fields_header(sorted(set(query) - _QUERY)))

    async def get(self, request: Request) -> Response:
        """Return what is known of a file."""
        return JSONResponse(_body(await self._file(request)))

    async def delete(self, request: Request) -> Response:
        """Delete a file. A batch that has it as its input has its content nevertheless."""
        owner, file_id = client_of(request.scope).name, request.path_params["id"]
        if not await asyncio.to_thread(self._batching().files.delete, owner, file_id):
            raise _not_found()
        body: FileDeletion = {"id": file_id, "object": "file", "deleted": True}
        return JSONResponse(body)

    async def content(self, request: Request) -> Response:
        """Return a file's bytes."""
        file = await self._file(request)
        path = self._batching().files.path(client_of(request.scope).name, file.id)
        try:
            descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise _not_found() from None
        headers = {
            "content-length": str(os.fstat(descriptor).st_size),
            "content-disposition": f'attachment; filename="{file.id}.jsonl"',
            "x-content-type-options": "nosniff",
        }
        return StreamingResponse(_chunks(descriptor), headers=headers, media_type="application/jsonl")

    async def _file(self, request: Request) -> StoredFile:
        """Return the file that a path names. Raises ObjectNotFoundError."""
        owner, file_id = client_of(request.scope).name, request.path_params["id"]
        file = await asyncio.to_thread(self._batching().files.get, owner, file_id)
        if file is None:
            raise _not_found()
        return file


def _texts(fields: dict[str, FormPart]) -> dict[str, Any]:
    """Return the fields of a form as a request has them. Raises InvalidValueError."""
    if "file" in fields and fields["file"].filename is None:
        raise InvalidValueError("'file' must be a file: its part of the form has no filename.", param="file")
    try:
        return {name: "" if name == "file" else part.content.decode() for name, part in fields.items()}
    except UnicodeDecodeError:
        raise InvalidValueError("A field of the form is not UTF-8.") from None


async def _chunks(descriptor: int) -> AsyncIterator[bytes]:
    try:
        while chunk := await asyncio.to_thread(os.read, descriptor, _CHUNK_BYTES):
            yield chunk
    finally:
        os.close(descriptor)


def _not_found() -> ObjectNotFoundError:
    return ObjectNotFoundError("There is no file with this id; GET /v1/files lists those that there are.")


def _body(file: StoredFile) -> FileBody:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": cast(Literal["batch", "batch_output"], file.purpose),
        "status": "processed",
        "status_details": None,
    }
