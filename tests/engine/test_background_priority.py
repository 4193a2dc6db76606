"""The priority of a thread while it computes in the background."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.engine.background_priority import BackgroundPriority

T = TypeVar("T")

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="a policy of Linux")


class Kernel:
    """The policies of threads, as an operating system keeps them.

    may_return: whether a thread may leave SCHED_IDLE. yields: how often a thread has offered its core.
    """

    def __init__(self, policy: int = os.SCHED_OTHER, may_return: bool = True) -> None:
        self.may_return = may_return
        self.yields = 0
        self._first = policy
        self._policies: dict[int, int] = {}

    def getscheduler(self, thread: int) -> int:
        return self._policies.get(thread or threading.get_native_id(), self._first)

    def setscheduler(self, thread: int, policy: int, param: os.sched_param) -> None:
        assert param.sched_priority == 0
        thread = thread or threading.get_native_id()
        if self.getscheduler(thread) == os.SCHED_IDLE and policy != os.SCHED_IDLE and not self.may_return:
            raise PermissionError
        self._policies[thread] = policy

    def sched_yield(self) -> None:
        self.yields += 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    install(monkeypatch, kernel)
    return kernel


def install(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", kernel.getscheduler)
    monkeypatch.setattr(os, "sched_setscheduler", kernel.setscheduler)
    monkeypatch.setattr(os, "sched_yield", kernel.sched_yield)


def on_a_thread(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result()


@pytest.mark.parametrize("policy", [os.SCHED_OTHER, os.SCHED_BATCH])
def test_the_thread_has_the_lowest_priority_within_and_its_own_after(
    monkeypatch: pytest.MonkeyPatch, policy: int
) -> None:
    kernel = Kernel(policy)
    install(monkeypatch, kernel)
    priority = BackgroundPriority()
    for _ in range(2):
        with priority.lowered():
            assert os.sched_getscheduler(0) == os.SCHED_IDLE
        assert os.sched_getscheduler(0) == policy
    with pytest.raises(KeyError), priority.lowered():
        raise KeyError
    assert os.sched_getscheduler(0) == policy
    assert kernel.yields == 0


def test_another_thread_restores_it(kernel: Kernel) -> None:
    priority = BackgroundPriority()
    priority.restore()  # nothing is lowered yet
    with priority.lowered():
        on_a_thread(priority.restore)
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
        with priority.lowered():
            assert os.sched_getscheduler(0) == os.SCHED_IDLE
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_where_a_thread_could_not_return_it_offers_its_core(kernel: Kernel) -> None:
    kernel.may_return = False
    priority = BackgroundPriority()
    for count in range(3):
        with priority.lowered():
            assert os.sched_getscheduler(0) == os.SCHED_OTHER
            on_a_thread(priority.restore)
            assert kernel.yields == count
        assert kernel.yields == count + 1


def test_a_thread_with_a_special_policy_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(os.SCHED_FIFO)
    install(monkeypatch, kernel)
    with BackgroundPriority().lowered():
        assert os.sched_getscheduler(0) == os.SCHED_FIFO
    assert kernel.yields == 1


def test_other_systems_have_no_such_policy(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "SCHED_IDLE")
    with BackgroundPriority().lowered():
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    monkeypatch.delattr(os, "sched_yield")
    with BackgroundPriority().lowered():
        pass
    assert kernel.yields == 1


def test_a_thread_that_has_ended_needs_no_priority(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    priority = BackgroundPriority()
    with priority.lowered():
        with monkeypatch.context() as gone:
            gone.setattr(os, "sched_setscheduler", _no_such_thread)
            priority.restore()
        assert os.sched_getscheduler(0) == os.SCHED_IDLE


def _no_such_thread(*_: object) -> None:
    raise ProcessLookupError


@given(st.lists(st.booleans(), max_size=20))
def test_the_system_itself(restored: list[bool]) -> None:
    """Whatever this process may do, the thread has its own policy afterwards."""
    priority = BackgroundPriority()

    def run() -> int:
        for restore in restored:
            with priority.lowered():
                if restore:
                    on_a_thread(priority.restore)
                    assert os.sched_getscheduler(0) == before
        return os.sched_getscheduler(0)

    before = os.sched_getscheduler(0)
    assert on_a_thread(run) == before
