"""Calls to the Tokenizer replicas: short texts over their links, all others through Serve, which balances them."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from mpt_serve.deployments.encoding_lanes import SHORT_CHARS
from mpt_serve.deployments.link_calls import LinkCalls
from mpt_serve.deployments.link_receiver import Connection
from mpt_serve.deployments.replica_client import translated
from mpt_serve.deployments.traced_app import current_carrier
from mpt_serve.deployments.watchdog import ReplicaLostError, Watchdog
from mpt_serve.errors import EngineClosedError
from mpt_serve.text.chat_template import Message

__all__ = ["TokenizerClient"]

_RETRIES = 2  # the first may still reach the replica that is ended since it froze


class TokenizerClient:
    """Encodes on whichever Tokenizer replica is free.

    connections: returns those of the replicas that may be called over links. calls: over these.
    """

    def __init__(
        self,
        tokenizer: DeploymentHandle,
        watchdog: Watchdog,
        connections: Callable[[], Sequence[Connection]],
        calls: LinkCalls,
    ) -> None:
        self._tokenizer = tokenizer
        self._watchdog = watchdog
        self._connections = connections
        self._calls = calls

    async def encode(self, text: str, add_special_tokens: bool, parse_special_tokens: bool) -> Sequence[int]:
        """Return the text's ids; see `Tokenizer.encode`."""
        return await self._ids("encode", (text, add_special_tokens, parse_special_tokens), len(text))

    async def encode_chat(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]],
        add_special_tokens: bool,
    ) -> Sequence[int]:
        """Return the ids of the rendered conversation; see `Tokenizer.encode_chat`."""
        arguments = (list(messages), add_generation_prompt, continue_final_message, list(tools), add_special_tokens)
        size = sum(len(message["content"]) for message in messages)
        return await self._ids("encode_chat", arguments, size)

    async def _ids(self, method: str, arguments: Sequence[Any], characters: int) -> Sequence[int]:
        """Return a replica's result; if it dies or freezes, another is called: nothing is lost with it."""
        if characters <= SHORT_CHARS:
            with suppress(EngineClosedError):
                ids = await self._over_link(method, arguments)
                if ids is not None:
                    return ids
        try:
            for _ in range(_RETRIES):
                with suppress(RayActorError, ReplicaLostError):
                    return await self._through_serve(method, arguments)
            return await self._through_serve(method, arguments)
        except (RayError, RayServeException, ReplicaLostError) as error:
            raise translated(error) from error

    async def _over_link(self, method: str, arguments: Sequence[Any]) -> Sequence[int] | None:
        """Return the ids; None where no link can be used, or the call failed, for a reason that Serve's call tells.

        Raises EngineClosedError when the replica is lost.
        """
        connection = min(self._connections(), key=self._calls.waiting, default=None)
        if connection is None:
            return None
        async with self._watchdog.watch("encode"):
            try:
                ids = await self._calls.call(connection, method, (*arguments, current_carrier().get("carrier")))
            except (TypeError, ValueError, OverflowError):  # a lone surrogate, or a number beyond 64 bits in a tool
                return None
        return None if ids is None else array("i", ids).tolist()

    async def _through_serve(self, method: str, arguments: Sequence[Any]) -> Sequence[int]:
        """Return the ids. Raises ReplicaLostError when a Tokenizer has frozen meanwhile."""
        async with self._watchdog.watch("encode"):
            call = getattr(self._tokenizer, method)
            ids: Sequence[int] = await call.remote(*arguments, **current_carrier())
            return ids
