"""The block pool alone: references add up, and misuse is an error."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpt_serve.engine.block_pool import BlockPool


@settings(deadline=None)
@given(
    num_blocks=st.integers(1, 12),
    actions=st.lists(st.tuples(st.sampled_from(["allocate", "share", "release"]), st.integers(0, 5))),
)
def test_blocks_are_free_or_held(num_blocks: int, actions: list[tuple[str, int]]) -> None:
    pool = BlockPool(num_blocks, 4)
    owners: list[list[int]] = []
    for action, number in actions:
        if action == "allocate" and number <= pool.num_free:
            owners.append(pool.allocate(number))
        elif action == "share" and owners:
            shared = owners[number % len(owners)]
            pool.acquire(shared)
            owners.append(list(shared))
        elif action == "release" and owners:
            pool.release(owners.pop(number % len(owners)))
        pool.check_integrity(owners)
        assert pool.num_free == num_blocks - len({block for blocks in owners for block in blocks})


def test_a_shared_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(1, 4)
    blocks = pool.allocate(1)
    pool.acquire(blocks)
    pool.release(blocks)
    assert pool.num_free == 0
    pool.release(blocks)
    assert pool.num_free == 1


def test_misuse_is_an_error() -> None:
    pool = BlockPool(2, 4)
    blocks = pool.allocate(1)
    with pytest.raises(ValueError, match="asked for 2 blocks while 1 of 2 are free"):
        pool.allocate(2)
    pool.release(blocks)
    with pytest.raises(ValueError, match="free already"):
        pool.release(blocks)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.acquire(blocks)
    with pytest.raises(ValueError, match="num_blocks=0"):
        BlockPool(0, 4)


def test_check_integrity_sees_a_leak_and_a_double() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    with pytest.raises(AssertionError, match="1 references and 0 holders"):
        pool.check_integrity([])
    with pytest.raises(AssertionError, match="1 references and 2 holders"):
        pool.check_integrity([[block], [block]])


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_blocks_for(tokens: int, blocks: int) -> None:
    assert BlockPool(4, 4).blocks_for(tokens) == blocks
