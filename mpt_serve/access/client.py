"""What the owner of a key uses of the server, and how much of it that may be."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mpt_serve.access.api_key import ApiKey
from mpt_serve.errors import LimitExceededError

__all__ = ["Budget", "Client", "ClientLimits", "Clients", "Usage"]

_RETRY_AFTER_S = 1.0  # when some of the client's other requests may have ended


@dataclass(frozen=True)
class ClientLimits:
    """What one client may use; None: without limit.

    max_choices, max_prompt_tokens: that wait or run at the same time.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_choices: int | None = None
    max_prompt_tokens: int | None = None


class Budget:
    """An amount per minute. It refills steadily up to that of one minute; what is used beyond it is owed."""

    def __init__(self, per_minute: int | None, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute or 0)
        self._at = clock()

    def wait_s(self, amount: float) -> float:
        """Return the seconds until `amount` is available, 0 if it is."""
        if self._per_minute is None:
            return 0.0
        self._refill(self._per_minute)
        return max(0.0, (min(amount, self._per_minute) - self._level) * 60 / self._per_minute)

    def use(self, amount: int) -> None:
        """Take an amount, whether or not it is available."""
        if self._per_minute is not None:
            self._refill(self._per_minute)
            self._level -= amount

    def _refill(self, per_minute: int) -> None:
        now = self._clock()
        self._level = min(per_minute, self._level + (now - self._at) * per_minute / 60)
        self._at = now


class Client:
    """One owner of keys. Belongs to one event loop.

    name: empty for everyone, where no keys are required.
    """

    def __init__(
        self, name: str = "", limits: ClientLimits = ClientLimits(), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.limits = limits
        self.choices = 0
        self.prompt_tokens = 0
        self._requests = Budget(limits.requests_per_minute, clock)
        self._tokens = Budget(limits.tokens_per_minute, clock)

    def count_request(self) -> None:
        """Count one HTTP request. Raises LimitExceededError if it is one too many for this minute."""
        wait = self._requests.wait_s(1)
        if wait > 0:
            limit = self.limits.requests_per_minute
            raise LimitExceededError(f"this API key may send {limit} requests per minute; retry later", wait)
        self._requests.use(1)

    @contextmanager
    def request(self) -> Iterator["Usage"]:
        """Count a request to generate while the context is entered, as one choice until `Usage.admit`.

        Raises LimitExceededError.
        """
        wait = self._tokens.wait_s(1)
        if wait > 0:
            limit = self.limits.tokens_per_minute
            raise LimitExceededError(f"this API key may use {limit} tokens per minute; retry later", wait)
        self._check(self.choices, 1, 0)
        usage = Usage(self)
        self.choices += 1
        try:
            yield usage
        finally:
            self.choices -= usage.choices
            self.prompt_tokens -= usage.prompt_tokens
            self._tokens.use(usage.generated_tokens)

    def admit(self, usage: "Usage", choices: int, prompt_tokens: int) -> None:
        """Count a request by what it asks for. Raises LimitExceededError, which leaves everything as it is."""
        others = self.choices - usage.choices
        self._check(others, choices, prompt_tokens)
        self.choices = others + choices
        self.prompt_tokens += prompt_tokens
        usage.choices, usage.prompt_tokens = choices, prompt_tokens
        self._tokens.use(prompt_tokens)

    def _check(self, others: int, choices: int, prompt_tokens: int) -> None:
        """Raise LimitExceededError for choices beside others that are too many. What is alone is always admitted."""
        limits = self.limits
        if limits.max_choices is not None and others and others + choices > limits.max_choices:
            message = f"{others} choices of this API key wait or run; it may have {limits.max_choices}"
            raise LimitExceededError(message, _RETRY_AFTER_S)
        most = limits.max_prompt_tokens
        if most is not None and self.prompt_tokens and self.prompt_tokens + prompt_tokens > most:
            message = f"{self.prompt_tokens} prompt tokens of this API key wait or run; it may have {most}"
            raise LimitExceededError(message, _RETRY_AFTER_S)


class Usage:
    """What one request to generate uses. generated_tokens: set it before the request's context ends."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.choices = 1
        self.prompt_tokens = 0
        self.generated_tokens = 0

    def admit(self, choices: int, prompt_tokens: int) -> None:
        """Count the request by what it asks for, once that is known. Raises LimitExceededError."""
        self._client.admit(self, choices, prompt_tokens)


class Clients:
    """The owners of keys by their names. defaults: limits of those whose lines state none."""

    def __init__(self, defaults: ClientLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._defaults = defaults
        self._clock = clock
        self._clients: dict[str, Client] = {}

    def owner(self, key: ApiKey) -> Client:
        """Return the owner of a verified key; one whose limits have changed begins with new budgets."""
        defaults = self._defaults
        limits = ClientLimits(
            key.requests_per_minute or defaults.requests_per_minute,
            key.tokens_per_minute or defaults.tokens_per_minute,
            defaults.max_choices,
            defaults.max_prompt_tokens,
        )
        client = self._clients.get(key.name)
        if client is None or client.limits != limits:
            client = self._clients[key.name] = Client(key.name, limits, self._clock)
        return client
