"""Digests of blocks: equal exactly where everything before is equal."""

from hypothesis import given
from hypothesis import strategies as st

from mpt_serve.engine.block_pool import extend_digests, first_link

ids = st.lists(st.integers(0, 2), max_size=12)


def digests(sequence: list[int], salt: str, block_size: int = 3) -> list[bytes]:
    chain: list[bytes] = []
    extend_digests(chain, sequence, block_size, first_link(salt))
    return chain


@given(a=ids, b=ids, salts=st.tuples(st.text(max_size=2), st.text(max_size=2)))
def test_digests_are_equal_where_salts_and_all_ids_so_far_are(
    a: list[int], b: list[int], salts: tuple[str, str]
) -> None:
    chains = digests(a, salts[0]), digests(b, salts[1])
    assert [len(chain) for chain in chains] == [len(a) // 3, len(b) // 3]
    for i, pair in enumerate(zip(*chains, strict=False)):
        end = 3 * (i + 1)
        assert (pair[0] == pair[1]) == (salts[0] == salts[1] and a[:end] == b[:end])


@given(sequence=ids, cut=st.integers(0, 12))
def test_a_chain_grows_as_ids_come(sequence: list[int], cut: int) -> None:
    chain = digests(sequence[:cut], "salt")
    extend_digests(chain, sequence[3 * len(chain) :], 3, first_link("salt"))
    assert chain == digests(sequence, "salt")
