"""The machinery behind the HTTP routes, over handles to the other deployments."""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import replace
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from mpt_serve.deployments.admission import Admission
from mpt_serve.deployments.readiness import GeneratorWatch
from mpt_serve.engine.request import Delta, EngineClosedError, RequestError
from mpt_serve.engine.sampling_params import SamplingParams
from mpt_serve.openai.backend import ModelInfo, Readiness
from mpt_serve.text.chat_template import ChatTemplateError, Message
from mpt_serve.text.detokenizer import IncrementalDetokenizer
from mpt_serve.text.tokenizer import TextTokenizer

__all__ = ["ServeBackend"]

logger = logging.getLogger("ray.serve")

_STATS_WAIT_S = 10.0
_MAX_MOVES = 3  # times one request is taken to another replica
_MOVE_PAUSE_S = 1.0  # before the second move; twice that before the third


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
        self.watch = GeneratorWatch(generator, self._take_limits)
        self._text = text
        self._tokenizer = tokenizer
        # By gRPC rather than by Ray's object store: a delta is a few bytes, and costs half the time that way.
        self._generator = generator.options(stream=True, _by_reference=False)
        self._admission = admission

    async def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Return the text's ids."""
        return await _ids(self._tokenizer.encode.remote(text, add_special_tokens))

    async def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool, continue_final_message: bool
    ) -> list[int]:
        """Return the ids of the rendered conversation. Raises ChatTemplateError."""
        chat = (list(messages), add_generation_prompt, continue_final_message)
        return await _ids(self._tokenizer.encode_chat.remote(*chat))

    async def decode(self, ids: Sequence[int]) -> str:
        """Return the ids' text, special tokens included."""
        return self._text.decode(ids)

    def detokenizer(self, skip_special_tokens: bool) -> IncrementalDetokenizer:
        """Return a fresh detokenizer for text that continues a prompt."""
        return IncrementalDetokenizer(self._text, skip_special_tokens, continues_text=True)

    def admit(self, prompts: Sequence[Sequence[int]]) -> AbstractContextManager[None]:
        """Hold the places of one HTTP request's prompts while entered. Raises NotReadyError when the house is full."""
        return self._admission.admit([len(ids) for ids in prompts])

    async def generate(
        self, ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> AsyncGenerator[Delta, None]:
        """Start a request; closing the iterator ends it in the engine.

        A request outlives its replica: when that dies or shuts its engine down, another goes on from prompt and answer
        so far. Random numbers depend on seed and position alone, so it goes on as the first one would have. A request
        whose own step failed is not taken further: it could fail every replica in turn.
        """
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(63))
        answer: list[int] = []
        moves = 0
        while True:
            stream = self._stream([*ids, *answer], _remaining(params, len(answer)), request_id)
            try:
                async with aclosing(stream):  # its request is cancelled before this one's end is seen
                    async for delta in stream:
                        answer += delta.token_ids
                        if delta.finish_reason == "cancelled":  # not by us: the engine shuts down
                            raise EngineClosedError("the engine was closed")
                        yield replace(delta, num_prompt_tokens=len(ids))
                        if delta.finish_reason is not None:
                            return
            except (RayActorError, EngineClosedError) as error:
                moves += 1
                if moves > _MAX_MOVES:
                    raise
                logger.warning("%s: %s after %d tokens; moving on", request_id, type(error).__name__, len(answer))
                if len(answer) == params.max_tokens:  # only the news of its end was lost
                    yield Delta((), "length", None, len(ids))
                    return
                await asyncio.sleep(_MOVE_PAUSE_S * (moves - 1))

    async def readiness(self) -> Readiness:
        """Say whether a request would be served now."""
        return self.watch.readiness

    async def stats(self) -> list[dict[str, Any]]:
        """Return the engine's counters of every Generator replica."""
        replicas: list[dict[str, Any]] = await self._generator.broadcast("stats").results_async(timeout_s=_STATS_WAIT_S)
        return replicas

    async def _stream(self, ids: list[int], params: SamplingParams, request_id: str) -> AsyncGenerator[Delta, None]:
        # Clients choose request ids, so two may be the same; the engine's own must not be.
        response = self._generator.generate.remote(ids, params, f"{request_id}/{secrets.token_hex(4)}")
        finished = False
        try:
            async for delta in response:
                finished = delta.finish_reason is not None
                yield delta
        except RayTaskError as error:
            raise _own(error) from error
        finally:
            if not finished:  # leaving the loop alone would let the engine generate to the end
                response.cancel()

    def _take_limits(self, stats: dict[str, object]) -> None:
        max_model_len = stats["max_model_len"]
        assert isinstance(max_model_len, int)
        self.model = replace(self.model, max_model_len=max_model_len)


async def _ids(call: DeploymentResponse) -> list[int]:
    try:
        ids: list[int] = await call
    except RayTaskError as error:
        raise _own(error) from error
    return ids


def _own(error: RayTaskError) -> Exception:
    """Return the exception that the other deployment raised: Ray's carries the remote traceback in its text."""
    cause = error.cause
    return cause if isinstance(cause, (RequestError, ChatTemplateError)) else error


def _remaining(params: SamplingParams, generated: int) -> SamplingParams:
    """Return the parameters of the rest of a request of which `generated` tokens exist."""
    left = max(1, params.max_tokens - generated)
    return replace(params, max_tokens=left, min_tokens=max(0, min(left, params.min_tokens - generated)))
