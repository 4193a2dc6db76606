"""Calls to the Generator replicas, with their errors as this package's."""

import asyncio
import secrets
from collections.abc import Coroutine, Sequence, Set
from typing import Any, TypeVar

from ray.exceptions import RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from mpt_serve.deployments.delta_receiver import Delivery, DeltaReceiver
from mpt_serve.deployments.traced_app import current_carrier
from mpt_serve.engine.request import Delta
from mpt_serve.errors import RequestError
from mpt_serve.openai.backend import GenerationRequest, OnDelta
from mpt_serve.openai.errors import NotReadyError

__all__ = ["ReplicaClient", "translated"]

_BROADCAST_WAIT_S = 10.0

T = TypeVar("T")


class ReplicaClient:
    """Generates on whichever Generator replica Serve chooses, and calls all of them at once where it cannot choose.

    Each request has its own call, through which Serve balances and counts; its deltas come over the link of its
    replica, or as the items of the call where there is no link. What happens to them, either way, is `Delivery`.

    interval_s: see `DeltaReceiver`.
    """

    def __init__(self, generator: DeploymentHandle, interval_s: float) -> None:
        # By gRPC rather than by Ray's object store: an item is a few bytes, and costs half the time that way.
        self._generator = generator.options(stream=True, _by_reference=False)
        self.receiver = DeltaReceiver(interval_s)
        self._background: set[asyncio.Task[Any]] = set()

    async def generate(
        self,
        request: GenerationRequest,
        generated: Sequence[int],
        on_delta: OnDelta,
        stopped_choices: Set[int] = frozenset(),
    ) -> None:
        """Generate on one replica: as `Backend.generate`, after the ids that a request of one choice has already.

        Raises RayActorError when the replica dies, EngineClosedError when its link does, NotReadyError when no replica
        takes the request.
        """
        params = request.params
        # Clients choose request ids, so two may be the same; those in the engine must not be.
        engine_id = f"{request.request_id}/{secrets.token_hex(4)}"

        def end_choice(index: int) -> None:
            self._in_background(self._broadcast("end_choice", engine_id, index))

        choices = range(params.choice_index, params.choice_index + params.n)
        delivery = Delivery(choices, on_delta, stopped_choices, end_choice)
        with self.receiver.receive(delivery):
            address = await self.receiver.address(delivery.number)
            response = self._generator.generate.remote(
                list(request.ids),
                params,
                engine_id,
                tuple(generated),
                request.grammar,
                address,
                embeds=request.embeds,
                **current_carrier(),
            )
            reader = self._in_background(self._read(response, delivery))
            try:
                await delivery.ended
            finally:
                if delivery.unfinished:  # leaving the call alone would let the engine generate to the end
                    delivery.abort()
                    response.cancel()
                    reader.cancel()

    async def _read(self, response: DeploymentResponseGenerator, delivery: Delivery) -> None:
        """Read a call to its end, which Serve counts, or until it fails."""
        try:
            async for item in response:
                if isinstance(item, Delta):
                    delivery.deliver(item)
                else:
                    self.receiver.bind(delivery, item)
        except (RayTaskError, RayServeException) as error:
            delivery.fail(translated(error))
        except asyncio.CancelledError:
            delivery.ended.cancel()
            raise
        except Exception as error:
            delivery.fail(error)
        else:
            if delivery.connection is None:  # else the last deltas may still be on their way, or the link is lost
                delivery.end()

    def _in_background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a task that nobody awaits."""
        task = asyncio.create_task(work)
        self._background.add(task)  # the loop itself does not keep tasks alive
        task.add_done_callback(self._background.discard)
        return task

    async def _broadcast(self, method: str, *args: object) -> list[Any]:
        """Call all replicas; return the results of those that reply in time."""
        call = self._generator.broadcast(method, *args)
        try:
            results = await call.results_async(timeout_s=_BROADCAST_WAIT_S, return_exceptions=True)
        except (RayServeException, TimeoutError):  # there are no replicas now, or one neither lives nor dies
            return []
        return [result for result in results if not isinstance(result, BaseException)]


def translated(error: Exception) -> Exception:
    """Return what an error of Ray's means here; its own text may hold a traceback, which no client should see."""
    if not isinstance(error, RayTaskError):
        return NotReadyError("No replica takes the request at this moment.")
    cause = error.cause
    return cause if isinstance(cause, RequestError) else error
