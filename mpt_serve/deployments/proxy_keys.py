"""Which requests have an API key, as Serve's proxy sees it: those without one have few separate places."""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from starlette.datastructures import Headers

from mpt_serve.access.api_key import KeyLineError
from mpt_serve.access.key_store import KeyStore
from mpt_serve.configuration.proxy_limits import KeySource
from mpt_serve.errors import BusyError
from mpt_serve.openai.authentication import presented_key

__all__ = ["ProxyKeys"]

logger = logging.getLogger("ray.serve")

_MOST_WITHOUT_KEY = 16  # requests that are with the Ingress replicas, which refuse them
_LONGEST_CHECK_S = 1.0  # the first check of a key takes a slow hash


class ProxyKeys:
    """Knows the keys that the applications behind this proxy accept.

    The Ingress decides who may do what. Here it matters only that requests which it will refuse take no places of those
    that it will serve. Belongs to one event loop.

    stores: of all applications.
    """

    def __init__(self, stores: Sequence[KeyStore]) -> None:
        self._stores = stores
        self._watches: list[asyncio.Task[None]] = []
        self.running_without_key = 0

    @classmethod
    def of(cls, sources: Iterable[KeySource]) -> "ProxyKeys | None":
        """Return the keys of some sources; None without any, and where one cannot be read on this node.

        Then requests without a key take the places of others, until an Ingress has refused them.
        """
        try:
            stores = [KeyStore(_expanded(source.file), source.variable) for source in sources]
        except (KeyLineError, OSError, UnicodeDecodeError) as error:
            logger.warning("Serve's proxy cannot read the API keys on this node (%s).", type(error).__name__)
            return None
        return cls(stores) if stores else None

    @property
    def is_full(self) -> bool:
        """Return whether another request without a key is refused here."""
        return self.running_without_key >= _MOST_WITHOUT_KEY

    async def owner(self, headers: list[tuple[bytes, bytes]]) -> str | None:
        """Return who owns a request's key, None if it has none of these applications. Takes a second at most."""
        key = presented_key(Headers(raw=headers))
        if not key:
            return None
        if not self._watches:
            self._watches = [asyncio.create_task(store.watch()) for store in self._stores]
        try:
            async with asyncio.timeout(_LONGEST_CHECK_S):
                for store in self._stores:
                    if (found := await store.verify(key)) is not None:
                        return found.name
        except (BusyError, TimeoutError):  # others try keys; whether this one is right, the Ingress will find out
            pass
        return None


def _expanded(file: str | None) -> Path | None:
    return None if file is None else Path(file).expanduser()
