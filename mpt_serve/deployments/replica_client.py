"""Calls to the Generator replicas, with their errors as this package's."""

import asyncio
import secrets
from collections.abc import Callable, Sequence, Set
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mpt_serve.engine.request import Delta
from mpt_serve.errors import RequestError
from mpt_serve.openai.backend import GenerationRequest, OnDelta
from mpt_serve.openai.errors import NotReadyError
from mpt_serve.text.chat_template import ChatTemplateError

__all__ = ["ReplicaClient", "translated"]

_BROADCAST_WAIT_S = 10.0


class ReplicaClient:
    """Generates on whichever Generator replica Serve chooses, and calls all of them at once where it cannot choose.

    Each request has its own stream from its replica. What happens to a delta, however it arrives, is `_Delivery`.
    """

    def __init__(self, generator: DeploymentHandle) -> None:
        # By gRPC rather than by Ray's object store: a delta is a few bytes, and costs half the time that way.
        self._generator = generator.options(stream=True, _by_reference=False)
        self._background: set[asyncio.Task[Any]] = set()

    async def generate(
        self,
        request: GenerationRequest,
        generated: Sequence[int],
        on_delta: OnDelta,
        stopped_choices: Set[int] = frozenset(),
    ) -> None:
        """Generate on one replica: as `Backend.generate`, after the ids that a request of one choice has already.

        Raises RayActorError when the replica dies, NotReadyError when none takes the request.
        """
        params = request.params
        # Clients choose request ids, so two may be the same; those in the engine must not be.
        engine_id = f"{request.request_id}/{secrets.token_hex(4)}"

        def end_choice(index: int) -> None:
            self._call_in_background("end_choice", engine_id, index)

        choices = range(params.choice_index, params.choice_index + params.n)
        delivery = _Delivery(choices, on_delta, stopped_choices, end_choice)
        response = self._generator.generate.remote(
            list(request.ids), params, engine_id, tuple(generated), request.grammar
        )
        try:
            async for delta in response:
                delivery.deliver(delta)
                if delivery.done:
                    return
        except (RayTaskError, RayServeException) as error:
            raise translated(error) from error
        finally:
            if delivery.unfinished:  # leaving the loop alone would let the engine generate to the end
                response.cancel()

    def _call_in_background(self, method: str, *args: object) -> None:
        """Call all replicas, one of which has the request; no output waits for that."""
        task = asyncio.create_task(self._broadcast(method, *args))
        self._background.add(task)  # the loop itself does not keep tasks alive
        task.add_done_callback(self._background.discard)

    async def _broadcast(self, method: str, *args: object) -> list[Any]:
        """Call all replicas; return the results of those that reply in time."""
        call = self._generator.broadcast(method, *args)
        try:
            results = await call.results_async(timeout_s=_BROADCAST_WAIT_S, return_exceptions=True)
        except (RayServeException, TimeoutError):  # there are no replicas now, or one neither lives nor dies
            return []
        return [result for result in results if not isinstance(result, BaseException)]


class _Delivery:
    """Passes one request's deltas on, and ends its choices in the engine when they are stopped.

    unfinished: choices whose last delta has not come.
    """

    def __init__(
        self,
        choices: Sequence[int],
        on_delta: OnDelta,
        stopped_choices: Set[int],
        end_choice: Callable[[int], None],
    ) -> None:
        self.unfinished = set(choices)
        self._on_delta = on_delta
        self._stopped_choices = stopped_choices
        self._end_choice = end_choice
        self._ending: set[int] = set()

    @property
    def done(self) -> bool:
        """Return whether each choice has had its last delta or is stopped."""
        return not self.unfinished or (bool(self._stopped_choices) and self.unfinished <= self._stopped_choices)

    def deliver(self, delta: Delta) -> None:
        """Pass a delta on, then end the choices that this has stopped."""
        if delta.finish_reason is not None:
            self.unfinished.discard(delta.index)
        if delta.index not in self._ending:
            self._on_delta(delta)
        if self._stopped_choices and not self.done:
            for index in (self.unfinished & self._stopped_choices) - self._ending:
                self._ending.add(index)
                self._end_choice(index)


def translated(error: Exception) -> Exception:
    """Return what an error of Ray's means here; its own text may hold a traceback, which no client should see."""
    if not isinstance(error, RayTaskError):
        return NotReadyError("No replica takes the request at this moment.")
    cause = error.cause
    return cause if isinstance(cause, (RequestError, ChatTemplateError)) else error
