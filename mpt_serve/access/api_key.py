"""API keys, and the lines of a key file, which state them without containing them.

A line: `ID NAME SCOPES HASH [OPTION=VALUE ...]`. NAME is the owner; SCOPES are joined by commas; HASH is
`scrypt:N:R:P:SALT:DIGEST`, the last two in hexadecimal digits. Empty lines and lines that begin with `#` are left out.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mpt_serve.errors import MptServeError

__all__ = ["SCOPES", "ApiKey", "KeyLineError", "append_line", "key_id", "new_key", "parse_key_lines", "record_of"]

# What a key may be used for: the API, and the operators' endpoints.
SCOPES = ("api", "admin")

_KEY = re.compile(r"sk-mpt-(?P<id>[0-9a-f]{12})-[0-9a-f]{64}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)
_NAME = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_HASH = re.compile(r"scrypt:(\d{1,8}):(\d{1,3}):(\d{1,3}):([0-9a-f]{32,128}):([0-9a-f]{64})", re.ASCII)
_OPTIONS = ("requests_per_minute", "tokens_per_minute")
_N, _R, _P = 2**14, 8, 1  # 16 MiB and some 50 ms
_MAX_MEMORY = 256 * 1024**2


class KeyLineError(MptServeError, ValueError):
    """A line that states no key. The message names the line's number, and quotes nothing of it."""


@dataclass(frozen=True)
class ApiKey:
    """One line of a key file.

    name: of the owner; all keys of a name share limits and turns. n, r, p: the cost of scrypt.
    requests_per_minute, tokens_per_minute: None for those of the settings.
    """

    id: str
    name: str
    scopes: frozenset[str]
    n: int
    r: int
    p: int
    salt: bytes
    digest: bytes
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def matches(self, key: str) -> bool:
        """Return whether a presented key is this one: takes the time and memory that the line states."""
        return hmac.compare_digest(_derive(key, self.salt, self.n, self.r, self.p), self.digest)

    def line(self) -> str:
        """Return the line that states this key."""
        scopes = ",".join(scope for scope in SCOPES if scope in self.scopes)
        options = [f"{name}={value}" for name in _OPTIONS if (value := getattr(self, name)) is not None]
        kdf = f"scrypt:{self.n}:{self.r}:{self.p}:{self.salt.hex()}:{self.digest.hex()}"
        return " ".join([self.id, self.name, scopes, kdf, *options])


def new_key(
    name: str,
    scopes: Iterable[str] = ("api",),
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> tuple[str, ApiKey]:
    """Return a new key of 256 random bits, which is kept nowhere, and the record of it.

    Raises ValueError for a name or a scope that a line cannot hold.
    """
    key = f"sk-mpt-{secrets.token_hex(6)}-{secrets.token_hex(32)}"
    return key, record_of(key, name, scopes, requests_per_minute, tokens_per_minute)


def record_of(
    key: str,
    name: str,
    scopes: Iterable[str] = ("api",),
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
) -> ApiKey:
    """Return a new record of a key, with its own salt.

    Raises ValueError for what has not the form of a key, and for a name or a scope that a line cannot hold.
    """
    own_id, own = key_id(key), frozenset(scopes)
    if own_id is None:
        raise ValueError("a key has the form sk-mpt-, 12 hexadecimal digits, -, 64 hexadecimal digits")
    if not _NAME.fullmatch(name):
        raise ValueError("the name must have 1 to 64 letters, digits, '_', '.', '@' or '-'")
    if not own or not own <= set(SCOPES):
        raise ValueError(f"the scopes must be some of {', '.join(SCOPES)}")
    salt = secrets.token_bytes(16)
    digest = _derive(key, salt, _N, _R, _P)
    return ApiKey(own_id, name, own, _N, _R, _P, salt, digest, requests_per_minute, tokens_per_minute)


def append_line(file: Path, key: ApiKey) -> None:
    """Append a key's line to a key file, which is made, readable for its owner alone, where there is none.

    One write at the file's end: a server that reads it meanwhile sees the whole line or nothing. Raises OSError.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        begins_line = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
        os.write(descriptor, f"{'' if begins_line else chr(10)}{key.line()}\n".encode())
    finally:
        os.close(descriptor)


def key_id(key: str) -> str | None:
    """Return the id in a presented key, by which its line is found; None for what has not the form of a key."""
    match = _KEY.fullmatch(key)
    return None if match is None else match["id"]


def parse_key_lines(text: str, source: str) -> Iterator[ApiKey]:
    """Yield the keys that the lines state. Raises KeyLineError, which names the source and the line."""
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if fields and not line.lstrip().startswith("#"):
            try:
                yield _parse(fields)
            except ValueError as error:
                raise KeyLineError(f"{source}, line {number}: {error}") from None


def _parse(fields: list[str]) -> ApiKey:
    if len(fields) < 4:
        raise ValueError("a key has an id, a name, scopes and a hash; `mpt-serve keys NAME` prints a whole line")
    own_id, name, scopes, kdf, *options = fields
    if not _ID.fullmatch(own_id):
        raise ValueError("the id must have 12 hexadecimal digits")
    if not _NAME.fullmatch(name):
        raise ValueError("the name must have 1 to 64 letters, digits, '_', '.', '@' or '-'")
    own_scopes = frozenset(scopes.split(","))
    if not own_scopes <= set(SCOPES):
        raise ValueError(f"the scopes must be some of {', '.join(SCOPES)}, joined by commas")
    match = _HASH.fullmatch(kdf)
    if match is None:
        raise ValueError("the hash must have the form scrypt:N:R:P:SALT:DIGEST")
    n, r, p = (int(match[index]) for index in (1, 2, 3))
    if n < 2**14 or n & (n - 1) or r < 1 or not 1 <= p <= 16 or 128 * n * r > _MAX_MEMORY:
        raise ValueError("scrypt's N must be a power of two from 16384, P at most 16, and 128 * N * R at most 256 MiB")
    salt, digest = bytes.fromhex(match[4]) if len(match[4]) % 2 == 0 else b"", bytes.fromhex(match[5])
    if not salt:
        raise ValueError("the salt must have an even number of hexadecimal digits")
    return ApiKey(own_id, name, own_scopes, n, r, p, salt, digest, **dict(map(_option, options)))


def _option(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if name not in _OPTIONS:
        raise ValueError(f"an option must be one of {', '.join(_OPTIONS)}")
    if not (value.isascii() and value.isdecimal()) or not 0 < len(value) < 13 or int(value) < 1:
        raise ValueError(f"{name} must be an integer of at least 1")
    return name, int(value)


def _derive(key: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(key.encode(), salt=salt, n=n, r=r, p=p, maxmem=_MAX_MEMORY + 2**24, dklen=32)
