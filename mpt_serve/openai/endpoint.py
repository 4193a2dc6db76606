"""The endpoint of requests that generate text: from the request's body to the last byte of its response."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from time import perf_counter
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mpt_serve.access.client import Usage
from mpt_serve.configuration.limits import Limits
from mpt_serve.engine.prompt_embeds import PromptEmbeds
from mpt_serve.engine.sampling_params import Pooling, SamplingParams
from mpt_serve.errors import BusyError, EngineClosedError, RequestError
from mpt_serve.openai.authentication import client_of
from mpt_serve.openai.backend import GenerationRequest, Reservation
from mpt_serve.openai.disconnect import ClientDisconnectedError, run_while_connected
from mpt_serve.openai.echo import Echo
from mpt_serve.openai.errors import ApiError, DeadlineError, InvalidValueError, as_api_error
from mpt_serve.openai.output_choice import OutputChoice
from mpt_serve.openai.prompt_stream import PromptStream
from mpt_serve.openai.protocol.field_names import OF_CHAT, FieldNames
from mpt_serve.openai.request_stream import RequestStream
from mpt_serve.openai.response_builder import ResponseBasis, ResponseBuilder, WholeBuilder
from mpt_serve.openai.sampling import SamplingOptions
from mpt_serve.openai.server_context import ServerContext
from mpt_serve.openai.server_metrics import ServerMetrics, TokenTimer
from mpt_serve.openai.sse import EventStream
from mpt_serve.openai.streaming import StreamedResponse, whole_response
from mpt_serve.openai.token_names import TokenNames
from mpt_serve.text.text_stream import TextStream
from mpt_serve.text.tool_format import CALL_TAG

__all__ = ["ON_READ", "GenerationEndpoint", "Prepared"]

ON_READ = "mpt_serve.on_read"  # in a request's scope: called when nothing is left but to generate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A validated request: its prompts as ids, and how to generate and respond."""

    prompts: Sequence[Sequence[int]]
    param: str  # the field that the prompts came from
    options: SamplingOptions
    default_max_tokens: int | None  # None: as many as the context leaves
    builder: Callable[[ResponseBasis], WholeBuilder]
    unknown: Sequence[str] = ()  # unknown fields, which are ignored
    names: FieldNames = OF_CHAT  # of fields in errors
    scored_from: Sequence[int] = ()  # where only these ids of each prompt and those after them have log probabilities
    pooling: Pooling | None = None  # for hidden states of the prompts
    normalize: bool = False
    at_once: int | None = None  # prompts that wait or run at the same time; None: all
    embeds: Sequence[PromptEmbeds] = ()  # the first prompts, whose ids stand for nothing


@dataclass(frozen=True)
class _Call:
    """One HTTP request: its id, who sent it when, and its parts of what the client and the server have.

    on_read: called when it has been admitted.
    """

    request_id: str
    client: str
    started: float  # by `perf_counter`
    usage: Usage
    reservation: Reservation
    on_read: Callable[[], None]

    def admit(self, prompts: Sequence[int], choices: int, at_once: int | None = None) -> None:
        """Count the request by the tokens of its prompts and the choices of each. Raises LimitExceededError, ApiError.

        What the server refuses costs the client nothing of its tokens. at_once: prompts that wait or run at the same
        time; the others take no capacity.
        """
        together = sorted(prompts, reverse=True)[:at_once]
        self.reservation.admit(together, choices)
        self.usage.admit(len(together) * choices, sum(prompts))
        self.on_read()


class GenerationEndpoint:
    """An ASGI endpoint that responds with generated text; `prepare` parses the endpoint's own fields."""

    def __init__(
        self, context: ServerContext, prepare: Callable[[ServerContext, Mapping[str, Any]], Awaitable[Prepared]]
    ) -> None:
        self._context = context
        self._prepare = prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        stream = EventStream(send)
        limits = self._context.limits
        client = client_of(scope)
        try:
            async with asyncio.timeout(limits.request_timeout_s) as deadline:
                with client.request() as usage:
                    request.state.usage = usage
                    body = await self._context.bodies.read_json_object(request)
                    with self._context.backend.reserve() as reservation:
                        started = request.state.started
                        on_read = scope.get(ON_READ, _nothing)
                        call = _Call(request.state.request_id, client.name, started, usage, reservation, on_read)
                        work = self._respond(body, call, stream)
                        del body  # the work drops it too when it has read it
                        response = await run_while_connected(receive, work, lambda: stream.at_disconnect())
        except (ClientDisconnect, ClientDisconnectedError):
            logger.debug("%s: the client disconnected", request.state.request_id)
            return
        except Exception as error:
            # No local variable here may hold the error, which refers to this call: only the garbage collector would
            # free them, and it stops all streams.
            if stream.started:
                await self._fail(stream, error, deadline.expired())
                return
            if deadline.expired():
                raise _deadline_error(limits.request_timeout_s) from error
            if isinstance(error, ApiError):
                raise
            raise as_api_error(error) from error
        if response is not None:
            await response(scope, receive, send)

    async def _fail(self, stream: EventStream, error: Exception, expired: bool) -> None:
        api_error = _deadline_error(self._context.limits.request_timeout_s) if expired else as_api_error(error)
        self._context.metrics.refusals[str(api_error.code)] += 1
        with contextlib.suppress(ClientDisconnectedError):
            await stream.fail(api_error)

    async def _respond(self, body: Mapping[str, Any], call: _Call, stream: EventStream) -> Response | None:
        """Return the response, or None if it was sent as a stream."""
        prepared = await self._prepare(self._context, body)
        del body
        headers = self._context.ignored_fields_header(prepared.unknown)
        with prepared.names.in_errors():
            return await self._generate(prepared, call, stream, headers)

    async def _generate(
        self, prepared: Prepared, call: _Call, stream: EventStream, headers: Mapping[str, str]
    ) -> Response | None:
        """Return the response, with some headers, or None if it was sent as a stream."""
        options = prepared.options
        backend = self._context.backend
        prompts = await self._prompt_streams(prepared, call)
        names = TokenNames(backend.tokenizer.token_bytes, options.output.tokens_as_ids)
        ids = [prompt.request.ids for prompt in prompts]
        basis = ResponseBasis(backend.model.id, options.output, names, ids, options.request.n, len(prepared.embeds))
        builder = prepared.builder(basis)
        call.admit([len(prompt) for prompt in ids], options.request.num_choices, prepared.at_once)
        with _grammar_errors(options.grammar_field, self._context.metrics):
            async with RequestStream(backend, prompts, prepared.at_once) as output:
                stream.at_disconnect = output.cancel
                try:
                    if not options.request.stream:
                        response = await whole_response(output, builder, options)
                        response.headers.update(headers)
                        return response
                    assert isinstance(builder, ResponseBuilder)  # of the endpoints that have streams
                    stream.headers.update(headers)
                    stream.form, stream.failure = builder.form, builder.failure
                    await StreamedResponse(output, builder, stream, options, self._context.limits).send()
                    return None
                finally:
                    call.usage.generated_tokens = output.usage.completion_tokens
                    self._measure(call, prompts)

    def _measure(self, call: _Call, prompts: Sequence[PromptStream]) -> None:
        """Count a request that ends."""
        metrics = self._context.metrics
        metrics.observe("request_time", perf_counter() - call.started)
        for prompt in prompts:
            metrics.observe("prompt_tokens", len(prompt.request.ids))
            for choice in prompt.choices:
                metrics.observe("output_tokens", choice.completion_tokens)

    async def _prompt_streams(self, prepared: Prepared, call: _Call) -> list[PromptStream]:
        """Check each prompt against the context. Raises ContextLengthError or InvalidValueError."""
        options, backend = prepared.options, self._context.backend
        default = prepared.default_max_tokens
        embeds = dict(enumerate(prepared.embeds))
        prompts = [
            options.fit(prompt, backend.model, default, "prompt_embeds" if number in embeds else prepared.param)
            for number, prompt in enumerate(prepared.prompts)
        ]
        if not prepared.scored_from:  # else the response holds sums alone
            _check_prompt_logprobs(prompts, options, self._context.limits)
        bad_words: tuple[tuple[int, ...], ...] = ()
        if options.request.bad_words:
            bad_words = await asyncio.to_thread(backend.tokenizer.spellings, options.request.bad_words)
        streams: list[PromptStream] = []

        @cache  # they may hold long lists of ids
        def params_with(max_tokens: int) -> SamplingParams:
            own = options.params(max_tokens, bad_words)
            if prepared.pooling is None:
                return own
            return replace(own, pooling=prepared.pooling, normalize=prepared.normalize)

        for number, ids in enumerate(prompts):
            params = params_with(options.max_tokens_for(len(ids), backend.model, default))
            if prepared.scored_from:
                params = replace(params, prompt_logprobs_start=prepared.scored_from[number])
            name = call.request_id if len(prompts) == 1 else f"{call.request_id}-{number}"
            echo = await asyncio.to_thread(Echo.of, ids, backend.tokenizer) if options.output.echo else None
            first = number * options.request.num_choices
            choices = [self._choice(first + i, options, params, echo) for i in range(options.request.num_choices)]
            request = GenerationRequest(ids, params, options.grammar, name, call.client, embeds.get(number))
            timer = TokenTimer(self._context.metrics, call.started, len(choices))
            streams.append(PromptStream(request, choices, echo, timer))
        return streams

    def _choice(self, index: int, options: SamplingOptions, params: SamplingParams, echo: Echo | None) -> OutputChoice:
        text = TextStream(
            self._context.backend.tokenizer,
            options.request.stop,
            include_stop=options.request.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            skip_special_tokens=options.request.skip_special_tokens,
            track_tokens=options.output.by_token,
            stop_until=CALL_TAG if options.grammar is not None and options.grammar.kind == "tools" else None,
            text_offset=len(echo.text) if echo else 0,
        )
        return OutputChoice(index, text, params.stop_token_ids, options.request.include_stop_str_in_output)


def _nothing() -> None:
    """Do nothing."""


def _check_prompt_logprobs(prompts: Sequence[Sequence[int]], options: SamplingOptions, limits: Limits) -> None:
    """Raise InvalidValueError if the response would hold too many log probabilities of prompts."""
    count = options.output.engine_prompt_logprobs
    if count is None:
        return
    numbers = sum(map(len, prompts)) * options.request.n * (count + 1)
    if numbers > limits.max_prompt_logprobs:
        param = "logprobs" if options.output.prompt_logprobs is None else "prompt_logprobs"
        raise InvalidValueError(
            f"'{param}' would return {numbers} log probabilities of prompts; a response can hold at most"
            f" {limits.max_prompt_logprobs}. Request fewer alternatives, choices or prompts.",
            param=param,
        )


@contextlib.contextmanager
def _grammar_errors(field: str | None, metrics: ServerMetrics) -> Iterator[None]:
    """Attribute the engine's refusals to the field of the grammar: all other fields have been checked before."""
    try:
        yield
    except RequestError as error:
        if field is None or isinstance(error, (BusyError, EngineClosedError)):
            raise
        metrics.structured_output_failures += 1
        raise InvalidValueError(as_api_error(error).message, param=field) from error


def _deadline_error(seconds: float) -> ApiError:
    return DeadlineError(f"The request was not finished within {seconds:g} s, this server's limit.")
