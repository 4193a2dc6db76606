"""The way of a generating request, from its body to the last byte of its answer."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mpt_serve.openai.answer import Answer
from mpt_serve.openai.body import read_json_object
from mpt_serve.openai.choice import Choice
from mpt_serve.openai.disconnect import ClientDisconnectedError, run_while_connected
from mpt_serve.openai.errors import ApiError, DeadlineError, as_api_error
from mpt_serve.openai.generation import Generation, Job
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.service import Service
from mpt_serve.openai.sse import EventStream
from mpt_serve.openai.streaming import StreamedAnswer, whole_answer
from mpt_serve.text.stop import StopMatcher

__all__ = ["GenerateRoute", "Prepared"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A request that is valid so far: its prompts as ids, and how to answer it."""

    prompts: Sequence[list[int]]
    param: str  # the field that the prompts came from
    options: SamplingOptions
    default_max_tokens: int | None  # None: as many as the context leaves
    answer: Answer
    unknown: Sequence[str]  # fields that nobody knows


class GenerateRoute:
    """An ASGI endpoint that answers with generated text; `prepare` knows the endpoint's own fields."""

    def __init__(self, service: Service, prepare: Callable[[Service, Mapping[str, Any]], Awaitable[Prepared]]) -> None:
        self._service = service
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        stream = EventStream(send)
        limits = self._service.limits
        try:
            async with asyncio.timeout(limits.request_timeout_s) as deadline:
                body = await read_json_object(request, limits)
                work = self._answer(body, request.state.request_id, stream)
                response = await run_while_connected(receive, work)
        except (ClientDisconnect, ClientDisconnectedError):
            logger.info("%s: the client left", request.state.request_id)
            return
        except Exception as error:
            api_error = _deadline_error(limits.request_timeout_s) if deadline.expired() else as_api_error(error)
            if not stream.started:
                raise api_error from error
            with contextlib.suppress(ClientDisconnectedError):
                await stream.fail(api_error)
            return
        if response is not None:
            await response(scope, receive, send)

    async def _answer(self, body: Mapping[str, Any], request_id: str, stream: EventStream) -> Response | None:
        """Return the response, or None when it went out as a stream."""
        prepared = await self._prepare(self._service, body)
        options = prepared.options
        headers = self._service.ignored_fields_header((*prepared.unknown, *options.unknown))
        backend, jobs = self._service.backend, self._jobs(prepared)
        with backend.admit([job.ids for job in jobs]):
            async with Generation(backend, jobs, request_id) as generation:
                if not options.stream:
                    response = await whole_answer(generation, prepared.answer)
                    response.headers.update(headers)
                    return response
                stream.headers.update(headers)
                streamed = StreamedAnswer(generation, prepared.answer, stream, options, self._service.limits)
                await streamed.send(len(prepared.prompts))
                return None

    def _jobs(self, prepared: Prepared) -> list[Job]:
        """Check each prompt against the context. Raises ContextLengthError or InvalidValueError."""
        options, backend = prepared.options, self._service.backend
        jobs = []
        for index, prompt in enumerate(prepared.prompts):
            ids = options.fit(prompt, backend.model, prepared.param)
            params = options.params(len(ids), backend.model, prepared.default_max_tokens)
            choice = Choice(
                index,
                len(ids),
                backend.detokenizer(options.skip_special_tokens),
                StopMatcher(options.stop, options.include_stop),
                stop_token_ids=params.stop_token_ids,
                include_stop=options.include_stop,
                min_tokens=params.min_tokens,
            )
            jobs.append(Job(ids, params, choice))
        return jobs


def _deadline_error(seconds: float | None) -> ApiError:
    return DeadlineError(f"The request was not finished within {seconds:g} s, this server's limit.")
