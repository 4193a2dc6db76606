"""Who owns which block of the paged key-value cache, and which blocks hold what could be used again.

Plain Python: the blocks themselves live on the device.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Reference-counted cache blocks, numbered 0 ... num_blocks - 1.

    A block can be published under the digest of all it depends on (`prefix_cache.extend_chain`). It then can be found
    by that digest as long as nobody needs its place: also after its last owner released it.

    Invariants, checked by `check_integrity`:
    - a block is free (reference count 0, once in the free queue) or owned (count >= 1, not in the free queue);
    - a block's reference count is the number of sequences that hold it;
    - free + owned = num_blocks;
    - a digest names one block, and a block has one digest at most.

    A block is written only by the sequence that was given it by `allocate`; `acquire` shares it for reading.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks with tokens, got num_blocks={num_blocks}, block_size={block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._reference_counts = [0] * num_blocks
        # Next to be allocated first: blocks that nobody can find, then the one released longest ago.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._block_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated; published ones among them are forgotten when that happens."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
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
        """Let an owned block be found. The first block of a digest stays the one that is found."""
        if self._reference_counts[block] == 0:
            raise ValueError(f"block {block} is free: what it holds may be overwritten")
        if digest not in self._block_of and block not in self._digest_of:
            self._block_of[digest] = block
            self._digest_of[block] = digest

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks of the longest run of digests, from the first on, that were published."""
        blocks = []
        for digest in digests:
            block = self._block_of.get(digest)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def free_among(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody owns: acquiring them takes as many from `num_free`."""
        return sum(self._reference_counts[block] == 0 for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block; each must be owned, or published."""
        for block in blocks:
            if self._reference_counts[block] == 0:
                if block not in self._digest_of:
                    raise ValueError(f"block {block} is free and holds nothing known: it cannot be shared")
                del self._free[block]
            self._reference_counts[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block of a sequence; a block without references is free at once.

        The end of a sequence is given away before its beginning, which more of other sequences have in common.
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
        """Check the invariants against the blocks that each sequence says it holds. Raises `AssertionError`."""
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
