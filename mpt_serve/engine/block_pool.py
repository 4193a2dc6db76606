"""Who owns which block of the paged key-value cache. Plain Python: the blocks themselves live on the device."""

from collections import Counter, deque
from collections.abc import Iterable


class BlockPool:
    """Reference-counted cache blocks, numbered 0 ... num_blocks - 1.

    Invariants, checked by `check_integrity`:
    - a block is free (reference count 0, once in the free queue) or owned (count >= 1, not in the free queue);
    - a block's reference count is the number of sequences that hold it;
    - free + owned = num_blocks.

    A block is written only by the sequence that was given it by `allocate`; `retain` shares it for reading.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks with tokens, got num_blocks={num_blocks}, block_size={block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._reference_counts = [0] * num_blocks
        # First in, first out: the block freed longest ago is reused first.
        self._free: deque[int] = deque(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks, each with one reference. Raises `ValueError` when fewer are free."""
        if count > len(self._free):
            raise ValueError(f"asked for {count} blocks while {len(self._free)} of {self.num_blocks} are free")
        blocks = [self._free.popleft() for _ in range(count)]
        for block in blocks:
            self._reference_counts[block] = 1
        return blocks

    def retain(self, blocks: Iterable[int]) -> None:
        """Add one reference to each block; all must be owned."""
        for block in blocks:
            if self._reference_counts[block] == 0:
                raise ValueError(f"block {block} is free: it cannot be shared")
            self._reference_counts[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Drop one reference of each block; a block without references is free at once."""
        for block in blocks:
            if self._reference_counts[block] == 0:
                raise ValueError(f"block {block} is free already")
            self._reference_counts[block] -= 1
            if self._reference_counts[block] == 0:
                self._free.append(block)

    def check_integrity(self, owners: Iterable[Iterable[int]]) -> None:
        """Check the invariants against the blocks that each sequence says it holds. Raises `AssertionError`."""
        held = Counter(block for blocks in owners for block in blocks)
        free = set(self._free)
        if len(free) != len(self._free):
            raise AssertionError("a block is twice in the free queue")
        for block, count in enumerate(self._reference_counts):
            if count != held[block]:
                raise AssertionError(f"block {block} has {count} references and {held[block]} holders")
            if (count == 0) != (block in free):
                raise AssertionError(
                    f"block {block} has {count} references and is {'' if block in free else 'not '}free"
                )
