"""The keys that a server accepts: read from a file and the environment, verified once, then known by a fast hash."""

import asyncio
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from mpt_serve.access.api_key import ApiKey, KeyLineError, key_id, parse_key_lines
from mpt_serve.errors import BusyError

__all__ = ["KeyStore"]

logger = logging.getLogger(__name__)

_CHECK_PERIOD_S = 2.0
_MAX_PENDING = 16  # keys that are verified or wait for that
_MAX_REMEMBERED = 4096  # wrong keys
_PAUSE_FACTOR = 9  # a tenth of one core at most for wrong keys

_Signature = tuple[int, int, int]  # of a file: when it changed, its size, its inode


class KeyStore:
    """Verifies keys. The slow hash of a key is computed once in the life of the process, one key at a time.

    file, variable: where the lines are; at least one. environment: of the process.
    The constructor raises KeyLineError and OSError. Belongs to one event loop.
    """

    def __init__(
        self, file: Path | None, variable: str | None = None, environment: Mapping[str, str] = os.environ
    ) -> None:
        self._file = file
        self._fixed = [] if variable is None else list(_from_variable(variable, environment))
        # Digests are looked up in dictionaries, which take no constant time: nobody else can compute them.
        self._secret = secrets.token_bytes(32)
        self._verified: dict[bytes, ApiKey] = {}
        self._rejected: dict[bytes, None] = {}
        self._pending: dict[bytes, asyncio.Task[ApiKey | None]] = {}
        self._turns = asyncio.Lock()
        self._seen = _signature(file)
        self._keys = self._read()

    async def verify(self, key: str) -> ApiKey | None:
        """Return the record of a presented key, None for a wrong one.

        Raises BusyError while too many unknown keys are being verified; keys that are known never wait.
        """
        own_id = key_id(key)
        stated = None if own_id is None else self._keys.get(own_id)
        if stated is None:
            return None
        digest = hashlib.blake2b(key.encode(), digest_size=32, key=self._secret).digest()
        if self._verified.get(digest) == stated:
            return stated
        if digest in self._rejected:
            return None
        task = self._pending.get(digest)
        if task is None:
            if len(self._pending) >= _MAX_PENDING:
                raise BusyError("too many new API keys are being verified")
            task = self._pending[digest] = asyncio.create_task(self._verify(key, digest, stated))
        return await asyncio.shield(task)

    async def _verify(self, key: str, digest: bytes, stated: ApiKey) -> ApiKey | None:
        try:
            if await self._compute(key, stated):
                self._verified[digest] = stated
                return stated
            if len(self._rejected) >= _MAX_REMEMBERED:
                self._rejected.pop(next(iter(self._rejected)))
            self._rejected[digest] = None
            return None
        finally:
            del self._pending[digest]

    async def _compute(self, key: str, stated: ApiKey) -> bool:
        """Compute the slow hash of a key. Wrong ones have pauses after them: guessing costs the server little."""
        await self._turns.acquire()
        begun, right = time.monotonic(), False
        try:
            right = await asyncio.to_thread(stated.matches, key)
        finally:
            pause = 0.0 if right else _PAUSE_FACTOR * (time.monotonic() - begun)
            asyncio.get_running_loop().call_later(pause, self._turns.release)
        return right

    async def watch(self) -> None:
        """Read the file again whenever it has changed, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_PERIOD_S)
            await asyncio.to_thread(self.refresh)

    def refresh(self) -> None:
        """Read the file again if it has changed. Where that fails, the keys stay as they are, and the log says why."""
        seen = _signature(self._file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            keys = self._read()
        except (KeyLineError, OSError, UnicodeDecodeError) as error:
            logger.error("The API keys stay as they were: %s", error)
            return
        self._keys = keys
        self._verified = {digest: key for digest, key in self._verified.items() if keys.get(key.id) == key}
        self._rejected = {}
        logger.info("The key file has changed: %d API keys are accepted.", len(keys))

    def _read(self) -> dict[str, ApiKey]:
        stated = list(self._fixed)
        if self._file is not None:
            stated += parse_key_lines(self._file.read_text(encoding="utf-8"), str(self._file))
        keys: dict[str, ApiKey] = {}
        options: dict[str, tuple[int | None, int | None]] = {}
        for key in stated:
            own = key.requests_per_minute, key.tokens_per_minute
            if key.id in keys:
                raise KeyLineError(f"two lines have the id {key.id}; remove one of them")
            if options.setdefault(key.name, own) != own:
                raise KeyLineError(f"the keys of '{key.name}' must have the same options")
            keys[key.id] = key
        if not keys:
            logger.warning("There are no API keys: every request will be refused.")
        return keys


def _from_variable(variable: str, environment: Mapping[str, str]) -> list[ApiKey]:
    text = environment.get(variable)
    if text is None:
        raise KeyLineError(f"access.key_variable names '{variable}', which this node's environment does not have")
    return list(parse_key_lines(text.replace(";", "\n"), f"the variable {variable}"))


def _signature(file: Path | None) -> _Signature | None:
    """Return what changes with a file; None where there is none."""
    try:
        status = None if file is None else file.stat()
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)
