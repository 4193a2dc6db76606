"""What clients may use, on a simulated clock."""

import pytest

from mpt_serve.access.api_key import new_key
from mpt_serve.access.client import Client, ClientLimits, Clients
from mpt_serve.errors import LimitExceededError

_, KEY = new_key("alice")
_, LIMITED = new_key("bob", requests_per_minute=2)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def refused_for(call: object) -> float:
    """Return the seconds after which a call that exceeds a limit may be repeated."""
    with pytest.raises(LimitExceededError) as error:
        call()  # type: ignore[operator]
    return error.value.retry_after_s


def test_requests_per_minute_refill_steadily(clock: Clock) -> None:
    client = Client("a", ClientLimits(requests_per_minute=60), clock)
    for _ in range(60):
        client.count_request()
    assert refused_for(client.count_request) == pytest.approx(1)
    clock.now += 0.4
    assert refused_for(client.count_request) == pytest.approx(0.6)
    clock.now += 0.7
    client.count_request()
    clock.now += 3600  # no more than a minute's worth is saved up
    for _ in range(60):
        client.count_request()
    refused_for(client.count_request)


def test_without_limits_nothing_is_refused(clock: Clock) -> None:
    client = Client("a", clock=clock)
    for _ in range(1000):
        client.count_request()
        with client.request() as usage:
            usage.admit(1000, 10**9)
            usage.generated_tokens = 10**9


def test_tokens_that_were_used_beyond_the_minute_are_owed(clock: Clock) -> None:
    client = Client("a", ClientLimits(tokens_per_minute=600), clock)
    with client.request() as usage:
        usage.admit(1, 500)
        usage.generated_tokens = 300

    def request() -> None:
        with client.request():
            pass

    assert refused_for(request) == pytest.approx(20.1)  # 200 owed and one more, 10 a second
    clock.now += 20.2
    request()


def test_a_failed_request_counts_too(clock: Clock) -> None:
    client = Client("a", ClientLimits(tokens_per_minute=60), clock)

    def fail() -> None:
        with client.request() as usage:
            usage.admit(1, 10)
            usage.generated_tokens = 100
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (client.choices, client.prompt_tokens) == (0, 0)
    with pytest.raises(LimitExceededError, match="may use 60 tokens per minute"), client.request():
        pass


def test_choices_and_prompts_at_the_same_time(clock: Clock) -> None:
    client = Client("a", ClientLimits(max_choices=4, max_prompt_tokens=100), clock)
    with client.request() as first:
        first.admit(3, 99)
        with client.request() as second:
            with pytest.raises(LimitExceededError, match="3 choices of this API key wait or run; it may have 4"):
                second.admit(2, 1)
            with pytest.raises(LimitExceededError, match="99 prompt tokens of this API key"):
                second.admit(1, 2)
            second.admit(1, 1)
            assert (client.choices, client.prompt_tokens) == (4, 100)
            with pytest.raises(LimitExceededError), client.request():
                pass
        assert (client.choices, client.prompt_tokens) == (3, 99)
    assert (client.choices, client.prompt_tokens) == (0, 0)


def test_one_large_request_alone_is_admitted(clock: Clock) -> None:
    client = Client("a", ClientLimits(max_choices=4, max_prompt_tokens=100), clock)
    with client.request() as usage:
        usage.admit(50, 5000)
        assert (client.choices, client.prompt_tokens) == (50, 5000)


def test_keys_of_a_name_share_their_limits(clock: Clock) -> None:
    clients = Clients(ClientLimits(requests_per_minute=5, tokens_per_minute=7, max_choices=3), clock)
    _, second = new_key("alice")
    assert clients.owner(KEY) is clients.owner(second)
    assert clients.owner(KEY).limits == ClientLimits(5, 7, 3)
    assert clients.owner(LIMITED).limits == ClientLimits(2, 7, 3)
    assert clients.owner(LIMITED) is not clients.owner(KEY)


def test_other_limits_hold_at_once(clock: Clock) -> None:
    clients = Clients(ClientLimits(), clock)
    before = clients.owner(KEY)
    _, changed = new_key("alice", requests_per_minute=1)
    assert clients.owner(changed) is not before
    clients.owner(changed).count_request()
    refused_for(clients.owner(changed).count_request)
