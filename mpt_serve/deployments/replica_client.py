"""The machinery behind the HTTP routes, over handles to the other deployments."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence, Set
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from mpt_serve.deployments.admission import Admission
from mpt_serve.deployments.dispatch_queue import DispatchQueue
from mpt_serve.deployments.failover import FailoverStream
from mpt_serve.deployments.readiness import ReplicaWatch
from mpt_serve.engine.request import Delta
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.errors import RequestError
from mpt_serve.openai.backend import ModelInfo, Readiness
from mpt_serve.openai.errors import NotReadyError
from mpt_serve.text.bad_words import spellings
from mpt_serve.text.chat_template import ChatTemplateError, Message
from mpt_serve.text.detokenizer import IncrementalDetokenizer
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["ServeBackend"]

_BROADCAST_WAIT_S = 10.0


class ServeBackend:
    """Implements `mpt_serve.openai.backend.Backend`.

    text: the same tokenizer that the Tokenizer deployment has, for the way back from ids.
    """

    def __init__(
        self,
        model: ModelInfo,
        text: TextTokenizer,
        tokenizer: DeploymentHandle,
        generator: DeploymentHandle,
        admission: Admission,
    ) -> None:
        self.model = model
        self.queue = DispatchQueue(places=1)  # until the watch has seen the replicas
        self.watch = ReplicaWatch(generator, self._take_limits, self.queue.resize)
        self._text = text
        self._tokenizer = tokenizer
        # By gRPC rather than by Ray's object store: a delta is a few bytes, and costs half the time that way.
        self._generator = generator.options(stream=True, _by_reference=False)
        self._admission = admission
        self._endings: set[asyncio.Task[Any]] = set()

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the text's ids."""
        return await _ids(lambda: self._tokenizer.encode.remote(text, add_special_tokens))

    async def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool, continue_final_message: bool
    ) -> list[int]:
        """Return the ids of the rendered conversation. Raises ChatTemplateError."""
        chat = (list(messages), add_generation_prompt, continue_final_message)
        return await _ids(lambda: self._tokenizer.encode_chat.remote(*chat))

    async def decode(self, ids: Sequence[int]) -> str:
        """Return the ids' text, special tokens included."""
        return self._text.decode(ids)

    async def spellings(self, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Return the sequences of ids to forbid so that none of the words is written."""
        return await asyncio.to_thread(spellings, self._text, words)

    def token_bytes(self, token_id: int) -> bytes:
        """Return what the token adds to a text; nothing for an id without a token."""
        return self._text.token_bytes(token_id)

    def detokenizer(self, skip_special_tokens: bool, continues_text: bool = True) -> IncrementalDetokenizer:
        """Return a fresh detokenizer, for text that continues a prompt or for a prompt itself."""
        return IncrementalDetokenizer(self._text, skip_special_tokens, continues_text)

    def admit(self, prompts: Sequence[Sequence[int]], choices: int) -> AbstractContextManager[None]:
        """Hold the places of one HTTP request while entered, of so many choices for each prompt.

        Raises NotReadyError when the house is full.
        """
        return self._admission.admit([len(ids) for ids in prompts], choices)

    def generate(
        self, ids: Sequence[int], params: SamplingParams, request_id: str, unwanted: Set[int] = frozenset()
    ) -> AsyncGenerator[Delta, None]:
        """Start a request, which outlives its replica; closing the iterator ends it in the engine.

        unwanted: choices that the reader wants nothing more of; it adds to them while it reads.
        """

        async def open_stream(own: SamplingParams, generated: tuple[int, ...]) -> AsyncGenerator[Delta, None]:
            async with (
                self.queue.place(own.priority, begun=bool(generated)),
                aclosing(self._stream(list(ids), own, request_id, generated, unwanted)) as stream,
            ):
                async for delta in stream:
                    yield delta

        return FailoverStream(open_stream, len(ids), params, request_id, unwanted).deltas()

    async def readiness(self) -> Readiness:
        """Say whether a request would be served now."""
        return self.watch.readiness

    async def stats(self) -> list[dict[str, Any]]:
        """Return the engine's counters of every Generator replica that is there to tell them."""
        return await self._broadcast("stats")

    async def _stream(
        self,
        ids: list[int],
        params: SamplingParams,
        request_id: str,
        generated: tuple[int, ...],
        unwanted: Set[int],
    ) -> AsyncGenerator[Delta, None]:
        # Clients choose request ids, so two may be the same; the engine's own must not be.
        own_id = f"{request_id}/{secrets.token_hex(4)}"
        response = self._generator.generate.remote(ids, params, own_id, generated)
        unfinished = set(range(params.choice_index, params.choice_index + params.n))
        ending: set[int] = set()
        try:
            async for delta in response:
                if delta.finish_reason is not None:
                    unfinished.discard(delta.index)
                if delta.index not in ending:
                    yield delta
                if unfinished <= unwanted:
                    return
                for index in (unfinished & unwanted) - ending:
                    self._end_choice(own_id, index)
                    ending.add(index)
        except (RayTaskError, RayServeException) as error:
            raise _own(error) from error
        finally:
            if unfinished:  # leaving the loop alone would let the engine generate to the end
                response.cancel()

    def _end_choice(self, own_id: str, index: int) -> None:
        """Tell the replicas, one of which has the request; the answer does not wait for that."""

        task = asyncio.create_task(self._broadcast("end_choice", own_id, index))
        self._endings.add(task)  # the loop itself does not keep tasks alive
        task.add_done_callback(self._endings.discard)

    async def _broadcast(self, method: str, *args: object) -> list[Any]:
        """Call all Generator replicas; return the answers of those that give one in time."""
        call = self._generator.broadcast(method, *args)
        try:
            answers = await call.results_async(timeout_s=_BROADCAST_WAIT_S, return_exceptions=True)
        except (RayServeException, TimeoutError):  # there are no replicas now, or one neither lives nor dies
            return []
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def _take_limits(self, stats: dict[str, object]) -> None:
        max_model_len = stats["max_model_len"]
        assert isinstance(max_model_len, int)
        self.model = replace(self.model, max_model_len=max_model_len)


async def _ids(ask: Callable[[], DeploymentResponse]) -> list[int]:
    """Return a Tokenizer's answer; another replica is asked when the first dies, as nothing is lost with it."""
    try:
        try:
            ids: list[int] = await ask()
        except RayActorError:
            ids = await ask()
    except (RayTaskError, RayActorError, RayServeException) as error:
        raise _own(error) from error
    return ids


def _own(error: Exception) -> Exception:
    """Return what an error of Ray's means here; its own text may hold a traceback, which is no client's business."""
    if not isinstance(error, RayTaskError):
        return NotReadyError("No replica takes the request at this moment.")
    cause = error.cause
    return cause if isinstance(cause, (RequestError, ChatTemplateError)) else error
