"""Sampling: exact distributions for every filter, and the numbers of one row whatever is around it."""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import distribution

from model.kernels.cpu import calls
from mpt_serve.engine.sampler import ChooseIds, SamplingBatch, sample

sample_jit = jax.jit(sample, static_argnums=(2, 3))


@pytest.fixture(autouse=True, scope="module", params=["xla", "cpu"])
def kernel(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test runs with the reference, and with the native kernel where there is one."""
    global choose
    if request.param == "cpu" and not calls.available():
        pytest.skip("kernels were not built")
    choose = calls.choose_ids if request.param == "cpu" else None
    yield
    choose = None


choose: ChooseIds | None = None


def batch_of(
    rows: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 1,
    choice_index: int = 0,
    masked: tuple[int, ...] = (),
) -> SamplingBatch:
    """The same parameters for every row; row r is at position r."""
    return SamplingBatch(
        temperature=jnp.full(rows, temperature, jnp.float32),
        top_k=jnp.full(rows, top_k, jnp.int32),
        top_p=jnp.full(rows, top_p, jnp.float32),
        min_p=jnp.full(rows, min_p, jnp.float32),
        seed=jnp.tile(jnp.array([[seed >> 32, seed & 0xFFFFFFFF]], jnp.uint32), (rows, 1)),
        choice_index=jnp.full(rows, choice_index, jnp.int32),
        position=jnp.arange(rows, dtype=jnp.int32),
        masked_ids=jnp.tile(jnp.array([masked + (-1,) * (4 - len(masked))], jnp.int32), (rows, 1)),
    )


def draw(logits: np.ndarray, vocab_limit: int, batch: SamplingBatch) -> np.ndarray:
    """One id per row of the batch, all from the same logits [V]."""
    rows = batch.position.shape[0]
    return np.asarray(sample_jit(jnp.tile(jnp.asarray(logits, jnp.float32), (rows, 1)), batch, vocab_limit, choose))


def deviation(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic is off (Wilson and Hilferty's approximation)."""
    possible = probabilities > 0
    assert counts[~possible].sum() == 0, "an id of probability zero was sampled"
    expected = probabilities[possible] * counts.sum()
    degrees = possible.sum() - 1
    if degrees == 0:
        return 0.0
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum()
    spread = 2 / (9 * degrees)
    return ((chi_square / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


ROWS, VOCAB, LIMIT = 4096, 40, 37
LOGITS = np.random.default_rng(5).normal(scale=1.5, size=VOCAB).astype(np.float32)
LOGITS[LIMIT:] = 9.0  # padding of the vocabulary, to be ignored


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 1000},
        {"top_p": 0.8},
        {"top_p": 0.05},
        {"min_p": 0.1},
        {"masked": (3, 11, 20)},
        {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "masked": (1,)},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.5},
    ],
    ids=str,
)
def test_sampled_frequencies_follow_the_exact_distribution(wanted: dict[str, float]) -> None:
    ids = np.concatenate([draw(LOGITS, LIMIT, batch_of(ROWS, seed=seed, **wanted)) for seed in range(4)])
    counts = np.bincount(ids, minlength=VOCAB)
    assert abs(deviation(counts, distribution(LOGITS, LIMIT, **wanted))) < 4


def test_large_vocabularies_are_sampled_across_blocks() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    possible = [0, 255, 256, 600, 601, 998]  # first and last of blocks, and blocks with nothing to sample
    logits[possible] = np.log([0.3, 0.1, 0.2, 0.1, 0.2, 0.1])
    ids = draw(logits, 999, batch_of(ROWS))
    assert abs(deviation(np.bincount(ids, minlength=1000), distribution(logits, 999))) < 4


def test_ties_at_the_threshold_are_kept_together() -> None:
    logits = np.array([2.0, 1.0, 1.0, 1.0, 0.0] + [-3.0] * 35, np.float32)
    assert set(draw(logits, LIMIT, batch_of(ROWS, top_k=2))) == {0, 1, 2, 3}
    assert set(draw(logits, LIMIT, batch_of(ROWS, top_p=0.5))) == {0, 1, 2, 3}


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(
        st.floats(-40, 40, width=32) | st.sampled_from([0.0, -0.0, 1.0, -math.inf]), min_size=8, max_size=8
    ).filter(lambda logits: max(logits) > -math.inf),
    top_k=st.integers(0, 9),
    top_p=st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
)
def test_only_ids_that_the_filters_leave_are_sampled(
    logits: list[float], top_k: int, top_p: float, temperature: float
) -> None:
    array = np.full(VOCAB, 50.0, np.float32)
    array[:LIMIT] = -np.inf
    array[: len(logits)] = logits
    ids = draw(array, LIMIT, batch_of(ROWS, temperature, top_k, top_p))
    if temperature == 0:
        assert (ids == array[:LIMIT].argmax()).all()
    else:
        # top_p compares float32 sums: allow the set that a slightly larger p would leave.
        allowed = distribution(array, LIMIT, temperature, top_k, min(1.0, top_p * (1 + 1e-5) + 1e-7))
        assert (allowed[np.unique(ids)] > 0).all()


def test_greedy_takes_the_lowest_of_equal_ids_below_the_limit() -> None:
    logits = np.zeros(1000, np.float32)
    logits[[300, 301, 990]] = 5.0
    logits[999] = 50.0
    assert (draw(logits, 999, batch_of(ROWS, temperature=0.0)) == 300).all()
    assert (draw(logits, 999, batch_of(ROWS, temperature=0.0, masked=(300,))) == 301).all()


def test_a_tiny_temperature_is_greedy() -> None:
    assert (draw(LOGITS, LIMIT, batch_of(ROWS, temperature=1e-30)) == LOGITS[:LIMIT].argmax()).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_broken_logits_still_give_an_id_of_the_vocabulary(temperature: float, poison: float) -> None:
    one, everywhere = LOGITS.copy(), np.full(VOCAB, poison, np.float32)
    one[5] = poison
    for logits in (one, everywhere):
        ids = draw(logits, LIMIT, batch_of(ROWS, temperature, top_k=3, top_p=0.9))
        assert ((ids >= 0) & (ids < LIMIT)).all()


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(ROWS, VOCAB)), jnp.float32)
    kinds = [batch_of(ROWS, 0.0), batch_of(ROWS), batch_of(ROWS, 0.8, top_k=5), batch_of(ROWS, 1.2, top_p=0.7)]
    # Row r is of kind r modulo 4; on its own it is among padding rows, which are greedy.
    mixed, padding = (
        SamplingBatch(*(np.stack(field)[np.arange(ROWS) % 4, np.arange(ROWS)] for field in zip(*kinds, strict=True))),
        kinds[0],
    )
    together = np.asarray(sample_jit(logits, mixed, LIMIT, choose))
    for row in (0, 1, 2, 3, 17, 1234, ROWS - 1):
        own = np.arange(ROWS) == row
        fields = (np.where(own.reshape(-1, *(1,) * (a.ndim - 1)), a, b) for a, b in zip(mixed, padding, strict=True))
        alone = np.asarray(sample_jit(logits * own[:, None], SamplingBatch(*fields), LIMIT, choose))
        assert alone[row] == together[row]


def test_seed_choice_and_position_each_change_the_draw() -> None:
    base = draw(LOGITS, LIMIT, batch_of(ROWS, seed=1))
    assert (base == draw(LOGITS, LIMIT, batch_of(ROWS, seed=1))).all()
    assert len(set(base)) > 10  # rows differ in position only
    for other in ({"seed": 2}, {"seed": 1 + 2**32}, {"seed": 1, "choice_index": 1}):
        assert (base != draw(LOGITS, LIMIT, batch_of(ROWS, **other))).mean() > 0.5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(temperature: float) -> None:
    """nan is an id that cannot be; an infinite logit is the only one that can."""
    logits = np.array([0.0, np.nan, 1.0] + [-np.inf] * (VOCAB - 3), np.float32)
    assert set(draw(logits, LIMIT, batch_of(64, temperature))) <= {0, 2}
    logits[5] = np.inf
    assert set(draw(logits, LIMIT, batch_of(64, temperature))) == {5}
