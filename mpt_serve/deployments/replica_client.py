"""Calls to the Generator replicas, with their errors as this package's."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Sequence, Set
from typing import Any, TypeVar

from ray.exceptions import RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from mpt_serve.deployments.delta_receiver import Delivery, DeltaReceiver
from mpt_serve.deployments.link_receiver import Connection
from mpt_serve.deployments.request_wire import LinkRequest, encode_request
from mpt_serve.deployments.traced_app import current_carrier
from mpt_serve.engine.request import Delta
from mpt_serve.errors import RequestError
from mpt_serve.openai.backend import GenerationRequest, OnDelta
from mpt_serve.openai.errors import NotReadyError

__all__ = ["ReplicaClient", "translated"]

_BROADCAST_WAIT_S = 10.0
_MOST_LINK_IDS = 8192  # of a request that goes over a link, on which aborts of others wait for it

T = TypeVar("T")


class ReplicaClient:
    """Generates on whichever Generator replica Serve chooses, and calls all of them at once where it cannot choose.

    Each request has its own call, through which Serve balances and counts; its deltas come over the link of its
    replica, or as the items of the call where there is no link. What happens to them, either way, is `Delivery`.
    Where there is one replica, so that Serve has no choice, the request itself goes over the link too, and need not
    wait for the call, which takes milliseconds.

    only_connection: returns that of the one replica, if there is just one and it takes requests on its link.
    """

    def __init__(
        self, generator: DeploymentHandle, only_connection: Callable[[], Connection | None] = lambda: None
    ) -> None:
        self._only_connection = only_connection
        # By gRPC rather than by Ray's object store: an item is a few bytes, and costs half the time that way.
        self._generator = generator.options(stream=True, _by_reference=False)
        self.receiver = DeltaReceiver()
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
            begun = self._begin_over_link(request, engine_id, generated, delivery)
            if begun:
                response = self._generator.generate.remote((), params, engine_id, address=address, begun=True)
            else:
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
                if begun or delivery.unfinished:
                    delivery.abort()
                if delivery.unfinished:  # leaving the call alone would let the engine generate to the end
                    response.cancel()
                    reader.cancel()

    def _begin_over_link(
        self, request: GenerationRequest, engine_id: str, generated: Sequence[int], delivery: Delivery
    ) -> bool:
        """Send the request over the link of the one replica, and return whether it could be sent."""
        connection = self._only_connection()
        plain = request.grammar is None and request.embeds is None and not current_carrier()
        if connection is None or not plain or len(request.ids) + len(generated) > _MOST_LINK_IDS:
            return False
        delivery.connection = connection
        message = LinkRequest(delivery.number, engine_id, request.ids, request.params, generated)
        connection.send(encode_request(message))
        return True

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
