"""Ownership of the paged KV cache's blocks, and the prefix hashes by which their content is found again.

Plain Python: the blocks themselves are on the device. Keys and values of a token depend on all tokens before it, so the
digests of blocks form a chain: each is the SHA-256 of the digest before and of the block's ids. The first link is a
salt, which separates requests that must not share blocks. Two sequences may share a block exactly where its digests are
equal.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np


class BlockPool:
    """Reference-counted cache blocks, numbered 0 ... num_blocks - 1.

    A block can be published under the digest of everything it depends on (`extend_digests`). It can then be found by
    that digest until the block is allocated again: also after its last owner has released it.

    Invariants, checked by `check_integrity`:
    - a block is free (reference count 0, once in the free queue) or owned (count >= 1, not in the free queue);
    - a block's reference count is the number of sequences that hold it;
    - free + owned = num_blocks;
    - a digest names one block, and a block has one digest at most.

    Only the sequence that got a block from `allocate` writes it; `acquire` shares it for reading.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"block_size and num_blocks must be at least 1, got {block_size=} and {num_blocks=}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._reference_counts = [0] * num_blocks
        # In order of allocation: blocks without a digest first, then the one released longest ago.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Return the number of blocks that can be allocated; allocating a published block ends its publication."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one reference. Raises `ValueError` when fewer are free."""
        if count > len(self._free):
            raise ValueError(f"asked for {count} blocks while {len(self._free)} of {self.num_blocks} are free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._reference_counts[block] = 1
            digest = self._digest_of.pop(block, None)
            if digest is not None:
                del self._block_of[digest]
        return blocks

    def publish(self, block: int, digest: bytes) -> None:
        """Make an owned block available to `find`. The first block published under a digest stays the one found."""
        if self._reference_counts[block] == 0:
            raise ValueError(f"block {block} is free: its content may be overwritten")
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def withdraw(self, digests: Iterable[bytes]) -> None:
        """End the publication of blocks, so that `find` returns them no more; their owners keep them."""
        for digest in digests:
            block = self._block_of.pop(digest, None)
            if block is not None:
                del self._digest_of[block]
                if block in self._free:
                    self._free.move_to_end(block, last=False)

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Return the blocks of the longest run of published digests, from the first digest on."""
        blocks = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def free_among(self, blocks: Iterable[int]) -> int:
        """Count the blocks without an owner: acquiring them takes that many from `num_free`."""
        return sum(self._reference_counts[block] == 0 for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block; each must be owned, or published."""
        for block in blocks:
            if self._reference_counts[block] == 0:
                if block not in self._digest_of:
                    raise ValueError(f"block {block} is free and not published: it cannot be shared")
                del self._free[block]
            self._reference_counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block of a sequence; a block without references is free at once.

        The end of a sequence is allocated again before its beginning, which more other sequences have in common.
        """
        for block in reversed(blocks):
            if self._reference_counts[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._reference_counts[block] -= 1
            if self._reference_counts[block] == 0:
                self._free[block] = None
                if block not in self._digest_of:
                    self._free.move_to_end(block, last=False)

    def check_integrity(self, owners: Iterable[Iterable[int]]) -> None:
        """Check the invariants against the blocks that each sequence holds. Raises `AssertionError`."""
        held = Counter(block for blocks in owners for block in blocks)
        for block, count in enumerate(self._reference_counts):
            if count != held[block]:
                raise AssertionError(f"block {block} has {count} references and {held[block]} holders")
            if (count == 0) != (block in self._free):
                raise AssertionError(
                    f"block {block} has {count} references and is {'' if block in self._free else 'not '}free"
                )
        if {digest: block for block, digest in self._digest_of.items()} != self._block_of:
            raise AssertionError("digests and blocks do not name each other")


def first_link(salt: str) -> bytes:
    """Return the link before the first block's digest."""
    return hashlib.sha256(salt.encode(errors="surrogatepass")).digest()


def extend_digests(
    digests: list[bytes],
    ids: Sequence[int],
    block_size: int,
    first: bytes,
    content: Callable[[int, int], bytes] | None = None,
) -> None:
    """Append the digests of further full blocks to those of the first len(digests).

    ids: the ids from position len(digests) * block_size on; a last block that is not full is left out.
    first: `first_link`, for the first block. content: what else stands at positions from one to before another.
    """
    link = digests[-1] if digests else first
    words = np.asarray(ids, np.int32)
    start = len(digests) * block_size
    for begin, end in pairwise(range(0, len(words) + 1, block_size)):
        own = b"" if content is None else content(start + begin, start + end)
        link = hashlib.sha256(link + words[begin:end].tobytes() + own).digest()
        digests.append(link)
