"""How many requests Serve's proxy passes on while Ingress replicas refuse some."""

import pytest

from mpt_serve.deployments import proxy_admission
from mpt_serve.deployments.proxy_admission import ProxyAdmission


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Ingress:
    """Has capacity for a number of requests; what the proxy passes on beyond that is refused."""

    def __init__(self, admission: ProxyAdmission, capacity: int) -> None:
        self.admission = admission
        self.capacity = capacity
        self.running = 0
        self.refused = 0

    def offer(self, requests: int) -> int:
        """Offer requests to the proxy, and return how many are accepted."""
        passed = sum(self.admission.begin() for _ in range(requests))
        accepted = min(passed, self.capacity - self.running)
        self.running += accepted
        for _ in range(passed - accepted):
            self.refused += 1
            self.admission.end_refused(5.5)
        return accepted

    def finish(self, requests: int) -> None:
        self.running -= requests
        for _ in range(requests):
            self.admission.end()


def test_without_a_refusal_everything_passes(clock: Clock) -> None:
    ingress = Ingress(ProxyAdmission(clock=clock), 1000)
    assert ingress.offer(1000) == 1000


def test_what_is_known_at_first_bounds_the_first_burst(clock: Clock) -> None:
    ingress = Ingress(ProxyAdmission(64, clock), 64)
    assert ingress.offer(64) == 64
    assert ingress.admission.begin()  # the first one beyond that finds out whether there is more
    ingress.admission.end_refused(1.0)
    assert ingress.offer(1000) == 0
    assert ingress.refused == 0


def test_each_end_lets_one_pass(clock: Clock) -> None:
    ingress = Ingress(ProxyAdmission(clock=clock), 64)
    ingress.offer(100)
    for _ in range(50):
        ingress.finish(3)
        assert not ingress.admission.is_full
        assert ingress.offer(100) == 3
        assert ingress.admission.is_full
    assert ingress.refused == 36


def test_a_few_a_second_find_out_whether_there_is_more(clock: Clock) -> None:
    """An overload of a minute costs an Ingress a few refusals a second, however many clients there are."""
    ingress = Ingress(ProxyAdmission(clock=clock), 64)
    ingress.offer(64)
    for _ in range(6000):
        clock.now += 0.01
        ingress.offer(10)
        assert ingress.running == 64
    assert 100 < ingress.refused <= 300


@pytest.mark.parametrize("capacity", [65, 100, 640])
def test_more_capacity_is_found(clock: Clock, capacity: int) -> None:
    ingress = Ingress(ProxyAdmission(clock=clock), 64)
    ingress.offer(100)
    ingress.capacity = capacity
    for _ in range(1000):
        clock.now += 0.01
        ingress.offer(10)
    assert ingress.running == capacity


def test_less_capacity_is_found(clock: Clock) -> None:
    ingress = Ingress(ProxyAdmission(clock=clock), 64)
    ingress.offer(100)
    ingress.finish(50)
    ingress.capacity = 14
    ingress.offer(100)
    refused = ingress.refused
    ingress.finish(14)
    assert ingress.offer(100) == 14
    assert ingress.refused == refused


def test_what_was_scarce_is_forgotten_once_there_is_capacity(clock: Clock) -> None:
    ingress = Ingress(ProxyAdmission(64, clock), 1)
    ingress.offer(10)
    ingress.finish(1)
    ingress.capacity = 64
    clock.now += 2.1
    assert ingress.offer(64) == 64


def test_there_is_always_place_for_one(clock: Clock) -> None:
    """Another proxy's requests may take all the capacity; when they have ended nothing here says so."""
    admission = ProxyAdmission(clock=clock)
    assert admission.begin()
    admission.end_refused(1.0)
    assert not admission.is_full
    assert admission.begin()
    assert admission.is_full


def full(clock: Clock, spread: float = 0.5) -> ProxyAdmission:
    """A proxy with 8 requests that drain within 40 s."""
    admission = ProxyAdmission(8, clock, lambda: spread)
    for _ in range(8):
        admission.begin()
    for _ in range(40):
        clock.now += 1.0
        admission.begin()
        admission.end_refused(22.0)  # the mean of those that an Ingress spreads over 40 s
    return admission


def test_the_refused_return_one_after_the_other(clock: Clock) -> None:
    """Eight that run end in 40 s, one each 5 s: of the refused, one returns each 2.5 s."""
    admission = full(clock)
    waits = [admission.retry_after_s() for _ in range(100)]
    assert waits == pytest.approx([4 + 2.5 * (number + 1) for number in range(100)])
    clock.now += 100
    assert admission.retry_after_s() == pytest.approx(waits[-1] - 100 + 2.5)
    clock.now += 1000
    assert admission.retry_after_s() == pytest.approx(6.5)


def test_the_wait_follows_what_the_ingress_replicas_measure(clock: Clock) -> None:
    assert ProxyAdmission(1, clock, lambda: 0.5).retry_after_s() == pytest.approx(3.0)  # nothing has been measured
    admission = full(clock)
    clock.now += 1.0
    admission.begin()
    admission.end_refused(11.0)
    assert admission.retry_after_s() == pytest.approx(3.5 + 35 / 8 / 2)


def test_more_refusals_than_can_return_are_spread(clock: Clock) -> None:
    admission = ProxyAdmission(8, clock)
    for _ in range(8):
        admission.begin()
    admission.begin()
    admission.end_refused(5.5)
    waits = [admission.retry_after_s() for _ in range(3000)]
    assert max(waits) <= 121
    late = sorted(waits[1000:])
    assert late[0] < 3
    assert late[-1] > 97
    assert 45 < late[1000] < 55


def test_refusals_are_held_back_when_they_are_very_many(clock: Clock) -> None:
    admission = ProxyAdmission(1, clock)
    assert [admission.hold_s() for _ in range(100)] == pytest.approx([0.0] * 100)
    holds = [admission.hold_s() for _ in range(1000)]
    assert holds[:500] == pytest.approx([0.01 * (number + 1) for number in range(500)])
    assert holds[500:] == pytest.approx([5.0] * 500)  # nobody waits longer than that
    clock.now += 1.0
    assert admission.hold_s() == pytest.approx(4.01)
    clock.now += 100.0
    assert admission.hold_s() == 0.0


def test_refusals_are_logged_together(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[tuple[object, ...]] = []
    monkeypatch.setattr(proxy_admission.logger, "warning", lambda *arguments: lines.append(arguments[1:]))
    admission = full(clock)
    for _ in range(30):
        admission.hold_s()
        clock.now += 1.0
    assert lines == [(8, 1), (8, 10), (8, 10)]
