"""The block tables of requests: the blocks of the pool that hold their keys and values."""

from collections.abc import Sequence

from mpt_serve.engine.block_pool import BlockPool
from mpt_serve.engine.request import Request


class BlockTables:
    """Gives requests their blocks, and takes them back.

    prefix_caching: publish full blocks of known ids, for later requests with the same prefix.
    """

    def __init__(self, pool: BlockPool, prefix_caching: bool) -> None:
        self.pool = pool
        self._prefix_caching = prefix_caching

    def max_blocks(self, num_prompt_tokens: int, max_output: int) -> int:
        """Return the number of blocks of a request at its end. The last generated token is never computed or stored."""
        return self.pool.blocks_for(num_prompt_tokens + max(0, max_output - 1))

    def can_grow(self, request: Request) -> bool:
        """Return whether the request may need more blocks than it has."""
        return len(request.blocks) < self.max_blocks(len(request.prompt_ids), request.max_output)

    def find(self, request: Request) -> list[int]:
        """Return the published blocks with the request's first tokens.

        Not the last one's, as its logits are needed, and none whose hidden states or logits the request returns.
        """
        most = request.num_tokens - 1
        if request.wants_prompt_logprobs:
            most = min(most, len(request.prompt_logprobs) - 1)
        if request.pooled is not None:
            most = min(most, request.pooled.begin)
        if self._prefix_caching:
            request.extend_digests(request.num_known, self.pool.block_size)
        return self.pool.find(request.digests[: most // self.pool.block_size])

    def assign(self, request: Request, found: Sequence[int]) -> None:
        """Give a request blocks for all its tokens: the found ones, which it shares, and new ones."""
        self.pool.acquire(found)
        request.blocks = [*found, *self.pool.allocate(self.pool.blocks_for(request.num_tokens) - len(found))]
        request.num_published = len(found)

    def grow(self, request: Request) -> bool:
        """Make space for one more token; False when that takes a block and none is free."""
        if request.num_computed < len(request.blocks) * self.pool.block_size:
            return True
        if self.pool.num_free == 0:
            return False
        request.blocks += self.pool.allocate(1)
        return True

    def grow_for_drafts(self, request: Request, num_drafts: int, reserved: int) -> int:
        """Make space for draft tokens after the next token, and return how many of them fit.

        reserved: free blocks that are left to others.
        """
        missing = self.pool.blocks_for(request.num_computed + 1 + num_drafts) - len(request.blocks)
        request.blocks += self.pool.allocate(max(0, min(missing, self.pool.num_free - reserved)))
        return len(request.blocks) * self.pool.block_size - request.num_computed - 1

    def publish(self, request: Request, limit: int | None = None) -> None:
        """Publish the full blocks of known ids that a dispatched step writes: only later steps read them.

        limit: the number of its first tokens that this is about; None for all that were dispatched.
        """
        if not self._prefix_caching or request.slot is None:
            return
        known = min(request.num_computed, request.num_known)
        if limit is not None:  # later tokens are of a step that may be abandoned
            known = min(known, limit)
        full = known // self.pool.block_size
        if full > request.num_published:
            request.extend_digests(known, self.pool.block_size)
            for block, digest in zip(
                request.blocks[request.num_published : full], request.digests[request.num_published : full], strict=True
            ):
                self.pool.publish(block, digest)
            request.num_published = full

    def withdraw(self, request: Request) -> None:
        """Publish no more what the request, or another one with the same first tokens, has written."""
        self.pool.withdraw(request.digests)

    def release(self, request: Request) -> None:
        """Take a request's blocks back."""
        self.pool.release(request.blocks)
        request.blocks, request.num_published = [], 0
