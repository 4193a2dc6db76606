"""What a cache block depends on, as a digest: two sequences may share a block exactly where its digests are equal.

Keys and values of a token depend on all tokens before it, so digests form a chain: each is the SHA-256 of the one
before and of the block's ids. The first link is the salt, which keeps apart what must not be shared.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def chain_start(salt: str) -> bytes:
    """The link before the first block's digest."""
    return hashlib.sha256(salt.encode(errors="surrogatepass")).digest()


def extend_chain(digests: list[bytes], ids: Sequence[int], block_size: int, start: bytes) -> None:
    """Append the digests of further full blocks to those of the first len(digests).

    ids: the ids from position len(digests) * block_size on; what does not fill a block is left out.
    start: `chain_start`, for the first block.
    """
    link = digests[-1] if digests else start
    words = np.asarray(ids, np.int32)
    for begin, end in pairwise(range(0, len(words) + 1, block_size)):
        link = hashlib.sha256(link + words[begin:end].tobytes()).digest()
        digests.append(link)
