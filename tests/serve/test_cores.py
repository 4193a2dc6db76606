"""The scheduling of the threads that carry tokens."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from mpt_serve.deployments.cores import leave_cores_to_kernels

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a policy of Linux")


def test_a_thread_waits_for_its_turn_and_others_do_not() -> None:
    def policy_of_a_thread() -> int:
        leave_cores_to_kernels()
        return os.sched_getscheduler(0)

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(policy_of_a_thread).result() == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_policy_that_is_forbidden_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbid)
    leave_cores_to_kernels()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
