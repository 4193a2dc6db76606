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


def test_a_published_block_is_found_until_its_place_is_needed() -> None:
    pool = BlockPool(3, 4)
    blocks = pool.allocate(2)
    pool.publish(blocks[0], b"a")
    pool.publish(blocks[1], b"b")
    assert pool.find([b"a", b"b", b"c"]) == blocks
    assert pool.find([b"c", b"a"]) == []  # not from the beginning on
    pool.release(blocks)
    assert (pool.num_free, pool.find([b"a", b"b"])) == (3, blocks)
    pool.acquire(pool.find([b"a"]))
    pool.check_integrity([blocks[:1]])
    assert pool.num_free == 2
    pool.allocate(1)  # the block that holds nothing goes first
    assert pool.find([b"a", b"b"]) == blocks
    pool.allocate(1)
    assert pool.find([b"a", b"b"]) == blocks[:1]


def test_the_end_of_a_sequence_is_overwritten_before_its_beginning_and_old_ones_before_new() -> None:
    pool = BlockPool(4, 4)
    old, new = pool.allocate(2), pool.allocate(2)
    for block, digest in zip([*old, *new], [b"a", b"b", b"c", b"d"], strict=True):
        pool.publish(block, digest)
    pool.release(old)
    pool.release(new)
    assert [pool.allocate(1)[0] for _ in range(4)] == [old[1], old[0], new[1], new[0]]


def test_the_first_block_of_a_digest_is_the_one_that_is_found() -> None:
    pool = BlockPool(2, 4)
    first, second = pool.allocate(2)
    pool.publish(first, b"a")
    pool.publish(second, b"a")
    assert pool.find([b"a"]) == [first]
    pool.check_integrity([[first, second]])
    pool.release([first, second])
    with pytest.raises(ValueError, match="may be overwritten"):
        pool.publish(first, b"b")


def test_a_withdrawn_block_is_found_no_more_and_stays_its_owners() -> None:
    pool = BlockPool(3, 4)
    kept, released, other = pool.allocate(3)
    for block, digest in ((kept, b"a"), (released, b"b"), (other, b"c")):
        pool.publish(block, digest)
    pool.release([other, released])
    pool.withdraw([b"a", b"b", b"unknown"])
    assert pool.find([b"a"]) == pool.find([b"b"]) == []
    assert pool.find([b"c"]) == [other]
    pool.check_integrity([[kept]])
    assert pool.allocate(1) == [released]  # before the block that may still be found
    pool.publish(kept, b"a")
    assert pool.find([b"a"]) == [kept]


def test_check_integrity_sees_a_used_block_that_is_free_and_a_digest_without_its_block() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1)
    pool._free[block] = None
    with pytest.raises(AssertionError, match=f"block {block} has 1 references and is free"):
        pool.check_integrity([[block]])
    del pool._free[block]
    pool._digest_of[block] = b"digest"
    with pytest.raises(AssertionError, match="digests and blocks do not name each other"):
        pool.check_integrity([[block]])
