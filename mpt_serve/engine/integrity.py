"""Checks of what a scheduler keeps."""

from collections.abc import Sequence
from itertools import pairwise

from mpt_serve.engine.request import Request

__all__ = ["check_requests"]


def check_requests(
    running: Sequence[Request], waiting: Sequence[Request], free_slots: Sequence[int], num_slots: int, block_size: int
) -> None:
    """Check the invariants of `Scheduler` that need no pool. Raises `AssertionError` that names a broken one."""
    for queue in (running, waiting):
        if any(a.order >= b.order for a, b in pairwise(queue)):
            raise AssertionError("requests are not in order")
    slots = [request.slot for request in running if request.slot is not None]
    if len(slots) != len(running) or sorted([*free_slots, *slots]) != list(range(num_slots)):
        raise AssertionError(f"slots {slots} of running requests and free slots {free_slots} do not add up")
    for request in running:
        if not 0 <= request.num_generated <= request.max_output:
            raise AssertionError(f"{request.request_id} generates more than {request.max_output} tokens")
        if request.num_computed > len(request.blocks) * block_size:
            raise AssertionError(f"{request.request_id} computed {request.num_computed} tokens without blocks")
        if request.num_published * block_size > request.num_computed:
            raise AssertionError(f"{request.request_id} published blocks that are not computed")
    for request in waiting:
        if request.blocks or request.slot is not None or request.num_computed:
            raise AssertionError(f"{request.request_id} waits, but holds blocks or a slot")
