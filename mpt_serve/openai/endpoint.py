"""The way of a generating request, from its body to the last byte of its answer."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import BusyError, EngineClosedError, RequestError
from mpt_serve.openai.body import read_json_object
from mpt_serve.openai.disconnect import ClientDisconnectedError, run_while_connected
from mpt_serve.openai.echo import Echo
from mpt_serve.openai.errors import ApiError, DeadlineError, InvalidValueError, as_api_error
from mpt_serve.openai.output_choice import OutputChoice
from mpt_serve.openai.prompt_stream import PromptStream
from mpt_serve.openai.request_stream import RequestStream
from mpt_serve.openai.response_builder import ResponseBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.sse import EventStream
from mpt_serve.openai.streaming import StreamedResponse, whole_response
from mpt_serve.openai.token_alignment import TokenAlignment
from mpt_serve.openai.token_names import TokenNames
from mpt_serve.text.stop_strings import StopMatcher

__all__ = ["GenerationEndpoint", "Prepared"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A request that is valid so far: its prompts as ids, and how to answer it."""

    prompts: Sequence[list[int]]
    param: str  # the field that the prompts came from
    options: SamplingOptions
    default_max_tokens: int | None  # None: as many as the context leaves
    answer: type[ResponseBuilder]
    unknown: Sequence[str]  # fields that nobody knows


class GenerationEndpoint:
    """An ASGI endpoint that answers with generated text; `prepare` knows the endpoint's own fields."""

    def __init__(
        self, service: ServerContext, prepare: Callable[[ServerContext, Mapping[str, Any]], Awaitable[Prepared]]
    ) -> None:
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
        headers = self._service.ignored_fields_header(prepared.unknown)
        backend = self._service.backend
        jobs = await self._jobs(prepared)
        names = TokenNames(backend.token_bytes, options.output.tokens_as_ids)
        prompts = [job.ids for job in jobs]
        answer = prepared.answer(backend.model.id, options.output, names, prompts, options.request.n)
        with backend.admit(prompts, options.request.num_choices), _guide_errors(options.grammar_field):
            async with RequestStream(backend, jobs, request_id) as generation:
                if not options.request.stream:
                    response = await whole_response(generation, answer, options)
                    response.headers.update(headers)
                    return response
                stream.headers.update(headers)
                await StreamedResponse(generation, answer, stream, options, self._service.limits).send()
                return None

    async def _jobs(self, prepared: Prepared) -> list[PromptStream]:
        """Check each prompt against the context. Raises ContextLengthError or InvalidValueError."""
        options, backend = prepared.options, self._service.backend
        default = prepared.default_max_tokens
        prompts = [options.fit(prompt, backend.model, default, prepared.param) for prompt in prepared.prompts]
        _check_prompt_logprobs(prompts, options, self._service.limits)
        bad_words = await backend.spellings(options.request.bad_words) if options.request.bad_words else ()
        jobs: list[PromptStream] = []
        params_with = cache(lambda max_tokens: options.params(max_tokens, bad_words))  # they may hold long lists of ids
        for ids in prompts:
            params = params_with(options.max_tokens_for(len(ids), backend.model, default))
            echo = await self._echo(ids) if options.output.echo else None
            first = len(jobs) * options.request.num_choices
            choices = [self._choice(first + i, options, params, echo) for i in range(options.request.num_choices)]
            jobs.append(PromptStream(ids, params, choices, echo))
        return jobs

    async def _echo(self, ids: Sequence[int]) -> Echo:
        detokenizer = self._service.backend.detokenizer(False, continues_text=False)
        return await asyncio.to_thread(Echo.of, ids, detokenizer)

    def _choice(self, index: int, options: SamplingOptions, params: SamplingParams, echo: Echo | None) -> OutputChoice:
        return OutputChoice(
            index,
            self._service.backend.detokenizer(options.request.skip_special_tokens),
            StopMatcher(options.request.stop, options.request.include_stop_str_in_output, params.min_tokens),
            stop_token_ids=params.stop_token_ids,
            include_stop=options.request.include_stop_str_in_output,
            tokens=TokenAlignment(len(echo.text) if echo else 0) if options.output.by_token else None,
        )


def _check_prompt_logprobs(prompts: Sequence[Sequence[int]], options: SamplingOptions, limits: Limits) -> None:
    """Bound what an answer repeats for each of its choices."""
    count = options.output.engine_prompt_logprobs
    if count is None:
        return
    numbers = sum(map(len, prompts)) * options.request.n * (count + 1)
    if numbers > limits.max_prompt_logprobs:
        param = "logprobs" if options.output.prompt_logprobs is None else "prompt_logprobs"
        raise InvalidValueError(
            f"'{param}' would make {numbers} log probabilities of prompts; an answer has at most"
            f" {limits.max_prompt_logprobs}. Ask for fewer alternatives, choices or prompts.",
            param=param,
        )


@contextlib.contextmanager
def _guide_errors(param: str | None) -> Iterator[None]:
    """Name the field of the guide in the engine's refusals: all else in a request has been checked before."""
    try:
        yield
    except RequestError as error:
        if param is None or isinstance(error, (BusyError, EngineClosedError)):
            raise
        raise InvalidValueError(as_api_error(error).message, param=param) from error


def _deadline_error(seconds: float) -> ApiError:
    return DeadlineError(f"The request was not finished within {seconds:g} s, this server's limit.")
