"""Sampling: exact distributions for every filter, and the numbers of one row whatever is around it."""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import OPTIMISED
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import changed_logits, distribution

from model.kernels.cpu.library import instruction_sets, kernel_library
from model.kernels.cpu.sampling import choose_ids, log_probabilities
from model.params.sampling_batch import SamplingBatch
from model.sampling.batch import PROMPT, SamplerState, SamplingKernels, init_sampler_state
from model.sampling.logprobs import Logprobs, prompt_logprobs
from model.sampling.sampler import NO_NUMBER, _uniform, sample, set_slot_state

MAX_LOGPROBS = 20

sample_often = jax.jit(sample, static_argnums=(4, 5, 6), compiler_options=OPTIMISED)  # for shapes that many tests share
sample_jit = jax.jit(sample, static_argnums=(4, 5, 6))
prompt_logprobs_jit = jax.jit(prompt_logprobs, static_argnums=(2, 3, 4))
native = SamplingKernels(choose_ids, log_probabilities)
kernel: SamplingKernels | None = None


@pytest.fixture(autouse=True, scope="module", params=["xla", *instruction_sets()])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every test runs with the definition, and with the native kernels of each instruction set that there is."""
    global kernel
    library = kernel_library()
    if request.param == "xla" or library is None:
        yield "xla"
        return
    usual = library.instruction_set
    library.use(request.param)
    kernel = native
    yield request.param
    kernel = None
    library.use(usual)


ROWS, VOCAB, LIMIT = 4096, 40, 37
LOGITS = np.random.default_rng(5).normal(scale=1.5, size=VOCAB).astype(np.float32)
LOGITS[LIMIT:] = 9.0  # padding of the vocabulary, to be ignored


def batch_of(rows: int, seed: int = 1, **wanted: Any) -> SamplingBatch:
    """The same parameters for every row; row r is at position r. All of slot 0; nothing is written."""
    usual = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition": 1.0, "presence": 0.0}
    usual |= {"frequency": 0.0, "slot": 0, "write_slot": -1, "choice_index": 0, "num_logprobs": -1}
    usual |= {"biased": False, "masked": False, **wanted}
    integers = ("top_k", "slot", "write_slot", "choice_index", "num_logprobs")
    return SamplingBatch(
        **{
            name: jnp.full(rows, value, bool if isinstance(value, bool) else "int32" if name in integers else "float32")
            for name, value in usual.items()
        },
        seed=jnp.tile(jnp.array([[seed >> 32, seed & 0xFFFFFFFF]], jnp.uint32), (rows, 1)),
        position=jnp.arange(rows, dtype=jnp.int32),
    )


def bit_masks(allowed: np.ndarray) -> np.ndarray:
    """allowed [S, V] bool -> [S, ceil(V / 32)] uint32."""
    padded = np.pad(allowed, ((0, 0), (0, -allowed.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view("<u4").astype(np.uint32)


def state_with(
    vocab: int, prompt: tuple[int, ...] = (), generated: tuple[int, ...] = (), bias: Mapping[int, float] | None = None
) -> SamplerState:
    """One slot that has seen these ids."""
    counts, biases = np.zeros(vocab, np.int32), np.zeros(vocab, np.float32)
    counts[list(prompt)] += PROMPT
    np.add.at(counts, list(generated), 1)
    for token, value in (bias or {}).items():
        biases[token] = value
    return set_slot_state(init_sampler_state(1, vocab), jnp.int32(0), jnp.asarray(counts), jnp.asarray(biases))


def draw(
    logits: np.ndarray,
    limit: int,
    rows: int = ROWS,
    allowed: tuple[int, ...] | None = None,
    prompt: tuple[int, ...] = (),
    generated: tuple[int, ...] = (),
    bias: Mapping[int, float] | None = None,
    **wanted: Any,
) -> np.ndarray:
    """One id per row, all from the same logits [V]."""
    vocab = len(logits)
    possible = np.zeros((rows, vocab), bool)
    possible[:, list(allowed or ())] = True
    batch = batch_of(rows, masked=allowed is not None, biased=bias is not None, **wanted)
    tiled = jnp.tile(jnp.asarray(logits, jnp.float32), (rows, 1))
    state = state_with(vocab, prompt, generated, bias)
    return np.asarray(sample_often(tiled, batch, bit_masks(possible), state, limit, MAX_LOGPROBS, kernel)[0])


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


EVEN = tuple(range(0, VOCAB, 2))
PENALTIES = ("repetition", "presence", "frequency")
SEEN = {"prompt": (1, 2, 3, 30), "generated": (3, 3, 3, 4, 5, 20)}


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
        {"allowed": EVEN},
        {"bias": {2: 1.5, 3: -4.0, 20: 0.5, 39: 100.0}},
        {**SEEN, "repetition": 1.8},
        {**SEEN, "repetition": 0.6},
        {**SEEN, "presence": 1.2},
        {**SEEN, "presence": -1.2},
        {**SEEN, "frequency": 0.7},
        {**SEEN, "frequency": -0.4},
        {**SEEN, "repetition": 1.3, "presence": 0.4, "frequency": 0.3},
        {**SEEN, "repetition": 1.3, "presence": 0.4, "bias": {3: 3.0, 21: -1.0}, "temperature": 0.8},
        {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "allowed": EVEN},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.5},
        {"temperature": 1.3, "min_p": 0.1, "top_p": 0.8},
        {**SEEN, "frequency": 0.2, "repetition": 0.9, "bias": {4: 2.0}, "allowed": EVEN, "top_k": 9, "top_p": 0.9},
    ],
    ids=str,
)
def test_sampled_frequencies_follow_the_exact_distribution(wanted: dict[str, Any]) -> None:
    ids = np.concatenate([draw(LOGITS, LIMIT, seed=seed, **wanted) for seed in range(4)])
    counts = np.bincount(ids, minlength=VOCAB)
    assert abs(deviation(counts, distribution(LOGITS, LIMIT, **wanted))) < 4


def test_large_vocabularies_are_sampled_across_blocks() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    possible = [0, 255, 256, 600, 601, 998]  # first and last of blocks, and blocks with nothing to sample
    logits[possible] = np.log([0.3, 0.1, 0.2, 0.1, 0.2, 0.1])
    ids = draw(logits, 999)
    assert abs(deviation(np.bincount(ids, minlength=1000), distribution(logits, 999))) < 4


def test_large_vocabularies_are_sampled_after_all_filters() -> None:
    logits = np.random.default_rng(3).normal(size=3000).astype(np.float32)
    wanted = {
        "temperature": 1.1,
        "min_p": 0.01,
        "top_k": 700,
        "top_p": 0.8,
        "bias": {5: 2.0},
        **SEEN,
        "repetition": 1.5,
    }
    ids = np.concatenate([draw(logits, 2990, seed=seed, **wanted) for seed in range(2)])
    probabilities = distribution(logits, 2990, **wanted)
    assert 200 < (probabilities > 0).sum() < 700  # both filters have an effect
    assert abs(deviation(np.bincount(ids, minlength=3000), probabilities)) < 4


def test_ties_at_the_threshold_are_kept_together() -> None:
    logits = np.array([2.0, 1.0, 1.0, 1.0, 0.0] + [-3.0] * 35, np.float32)
    assert set(draw(logits, LIMIT, top_k=2)) == {0, 1, 2, 3}
    assert set(draw(logits, LIMIT, top_p=0.5)) == {0, 1, 2, 3}


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
    ids = draw(array, LIMIT, temperature=temperature, top_k=top_k, top_p=top_p)
    array[np.abs(array) < np.finfo(np.float32).tiny] = 0  # as XLA and the kernels take subnormal numbers
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
    assert (draw(logits, 999, temperature=0.0) == 300).all()
    assert (draw(logits, 999, temperature=0.0, allowed=(2, 301, 990, 999)) == 301).all()


@pytest.mark.parametrize(
    "wanted",
    [
        {"allowed": EVEN},
        {"bias": {7: 3.0, 38: 50.0}},
        {**SEEN, "repetition": 3.0, "presence": 2.0, "frequency": 1.0},
        {**SEEN, "repetition": 0.1, "bias": {8: 3.0}, "allowed": EVEN},
    ],
    ids=str,
)
def test_greedy_sees_masks_biases_and_penalties(wanted: dict[str, Any]) -> None:
    best = changed_logits(LOGITS, LIMIT, **wanted).argmax()
    assert (draw(LOGITS, LIMIT, rows=8, temperature=0.0, **wanted) == best).all()


def test_a_tiny_temperature_is_greedy() -> None:
    assert (draw(LOGITS, LIMIT, temperature=1e-30) == LOGITS[:LIMIT].argmax()).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("allowed", [(), (5,), (LIMIT, VOCAB - 1)])
def test_where_nothing_is_allowed_the_largest_logit_is_taken(temperature: float, allowed: tuple[int, ...]) -> None:
    logits = LOGITS.copy()
    logits[5] = -math.inf
    ids = draw(logits, LIMIT, rows=8, temperature=temperature, allowed=allowed, top_p=0.9, bias={3: -100.0})
    assert (ids == logits[:LIMIT].argmax()).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_logits_without_a_number_give_none_and_others_an_id_of_the_vocabulary(
    temperature: float, poison: float
) -> None:
    one, everywhere = LOGITS.copy(), np.full(VOCAB, poison, np.float32)
    one[5] = poison
    everywhere[LIMIT:] = 1.0  # ids that are never sampled do not help
    wanted = {"temperature": temperature, "top_k": 3, "top_p": 0.9, "bias": {5: -math.inf}, "repetition": 2.0}
    for changes in (wanted, {"temperature": temperature}):
        ids = draw(one, LIMIT, **changes)
        assert ((ids >= 0) & (ids < LIMIT)).all()
        ids = draw(everywhere, LIMIT, **changes)
        assert ((ids >= 0) & (ids < LIMIT)).all() if poison == math.inf else (ids == NO_NUMBER).all()


def test_a_row_without_numbers_leaves_an_id_of_the_vocabulary_in_its_slot() -> None:
    logits = np.stack([np.full(VOCAB, math.nan, np.float32), LOGITS])
    batch = batch_of(2, temperature=0.0)._replace(write_slot=jnp.arange(2, dtype=jnp.int32))
    masks, state = np.zeros((2, 2), np.uint32), init_sampler_state(2, VOCAB)
    ids, _, state = sample_jit(logits, batch, masks, state, LIMIT, MAX_LOGPROBS, kernel)
    best = LOGITS[:LIMIT].argmax()
    assert ids.tolist() == [NO_NUMBER, best]
    assert state.last_tokens.tolist() == [0, best]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers(temperature: float) -> None:
    """nan is an id that cannot be; an infinite logit is the only one that can."""
    logits = np.array([0.0, np.nan, 1.0] + [-np.inf] * (VOCAB - 3), np.float32)
    assert set(draw(logits, LIMIT, rows=64, temperature=temperature)) <= {0, 2}
    logits[5] = np.inf
    assert set(draw(logits, LIMIT, rows=64, temperature=temperature)) == {5}


def test_seed_choice_and_position_each_change_the_draw() -> None:
    base = draw(LOGITS, LIMIT, seed=1)
    assert (base == draw(LOGITS, LIMIT, seed=1)).all()
    assert len(set(base)) > 10  # rows differ in position only
    for other in ({"seed": 2}, {"seed": 1 + 2**32}, {"seed": 1, "choice_index": 1}):
        assert (base != draw(LOGITS, LIMIT, **other)).mean() > 0.5


def mixed_rows(rows: int, vocab: int, seed: int) -> tuple[np.ndarray, SamplingBatch, np.ndarray, SamplerState]:
    """Rows of many kinds, some that ask for everything, some for nothing; slot r is row r's."""
    rng = np.random.default_rng(seed)

    def some(share: float, values: np.ndarray, otherwise: float) -> jax.Array:
        return jnp.asarray(np.where(rng.random(rows) < share, values, otherwise).astype(np.asarray(values).dtype))

    uniform = lambda low, high: rng.uniform(low, high, rows).astype(np.float32)  # noqa: E731
    slots = np.arange(rows, dtype=np.int32)
    batch = SamplingBatch(
        slot=jnp.asarray(slots),
        write_slot=some(0.7, slots, -1),
        temperature=some(0.7, uniform(0.2, 2), 0),
        top_k=some(0.5, rng.integers(1, vocab, rows, dtype=np.int32), 0),
        top_p=some(0.5, uniform(0.1, 1), 1),
        min_p=some(0.4, uniform(0, 0.3), 0),
        repetition=some(0.4, uniform(0.5, 2), 1),
        presence=some(0.4, uniform(-2, 2), 0),
        frequency=some(0.4, uniform(-2, 2), 0),
        biased=jnp.asarray(rng.random(rows) < 0.4),
        masked=jnp.asarray(rng.random(rows) < 0.4),
        seed=jnp.asarray(rng.integers(0, 2**32, (rows, 2), dtype=np.uint32)),
        choice_index=jnp.asarray(rng.integers(0, 5, rows, dtype=np.int32)),
        position=jnp.asarray(rng.integers(0, 5000, rows, dtype=np.int32)),
        num_logprobs=jnp.asarray(rng.integers(-1, 21, rows, dtype=np.int32)),
    )
    counts = rng.integers(0, 4, (rows, vocab)) * (rng.random((rows, vocab)) < 0.2)
    counts += PROMPT * (rng.random((rows, vocab)) < 0.2)
    bias = rng.normal(scale=2, size=(rows, vocab)) * (rng.random((rows, vocab)) < 0.1)
    state = SamplerState(jnp.zeros(rows, jnp.int32), jnp.asarray(counts, jnp.int32), jnp.asarray(bias, jnp.float32))
    logits = rng.normal(scale=3, size=(rows, vocab)).astype(np.float32)
    return logits, batch, bit_masks(rng.random((rows, vocab)) < 0.3), state


def test_a_row_gives_the_same_alone_and_among_others() -> None:
    rows, vocab = 64, 1000
    logits, batch, masks, state = mixed_rows(rows, vocab, seed=0)
    ids, logprobs, _ = sample_jit(logits, batch, masks, state, vocab - 3, MAX_LOGPROBS, kernel)
    for size in (1, 3, 16):
        for chosen in np.random.default_rng(size).permutation(rows)[: size * (rows // size)].reshape(-1, size)[:8]:
            alone = SamplingBatch(*(field[chosen] for field in batch))
            own_ids, own_logprobs, _ = sample_jit(
                logits[chosen], alone, masks[chosen], state, vocab - 3, MAX_LOGPROBS, kernel
            )
            np.testing.assert_array_equal(own_ids, ids[chosen])
            for own, field in zip(own_logprobs, logprobs, strict=True):
                np.testing.assert_array_equal(own, field[chosen])


def test_each_id_is_remembered_in_the_slot_that_it_is_written_to() -> None:
    slots, rows = 5, 4
    state = init_sampler_state(slots, VOCAB)
    batch = batch_of(rows)._replace(write_slot=jnp.array([3, -1, 0, slots], jnp.int32))
    logits = jnp.tile(LOGITS, (rows, 1))
    counts = np.zeros((slots, VOCAB), np.int32)
    for _ in range(3):
        ids, _, state = sample_jit(
            logits, batch, bit_masks(np.ones((rows, VOCAB), bool)), state, LIMIT, MAX_LOGPROBS, kernel
        )
        counts[3, ids[0]] += 1
        counts[0, ids[2]] += 1
    np.testing.assert_array_equal(state.counts, counts)
    np.testing.assert_array_equal(state.last_tokens, [ids[2], 0, 0, ids[0], 0])
    assert not state.bias.any()


def test_a_row_of_the_state_is_set_alone() -> None:
    ones = (jnp.ones(VOCAB, jnp.int32), jnp.ones(VOCAB, jnp.float32))
    for slot, written in ((1, [0, 1, 0]), (-1, [0, 0, 0]), (3, [0, 0, 0])):
        state = jax.jit(set_slot_state)(init_sampler_state(3, VOCAB), jnp.int32(slot), *ones)
        assert state.counts.sum(axis=1).tolist() == [VOCAB * x for x in written]
        assert state.bias.sum(axis=1).tolist() == [VOCAB * x for x in written]


def test_slots_are_read_where_the_rows_say() -> None:
    state = init_sampler_state(3, VOCAB)
    bias = jnp.zeros((3, VOCAB)).at[0, 11].set(100.0).at[1, 12].set(100.0).at[2, 13].set(100.0)
    batch = batch_of(5, biased=True, temperature=0.0)._replace(slot=jnp.array([2, 0, 1, -7, 99], jnp.int32))
    logits, masks = jnp.tile(LOGITS, (5, 1)), bit_masks(np.ones((5, VOCAB), bool))
    ids = sample_jit(logits, batch, masks, state._replace(bias=bias), LIMIT, MAX_LOGPROBS, kernel)[0]
    assert ids.tolist() == [13, 11, 12, 11, 13]


def exact_logprobs(logits: np.ndarray) -> np.ndarray:
    """log softmax of [S, V] in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("vocab", [40, 1000, 50_432])
def test_log_probabilities_are_the_models_own(vocab: int) -> None:
    rows, limit = 8, vocab - 3
    logits, batch, masks, state = mixed_rows(rows, vocab, seed=1)
    logits[:, limit:] += 5
    logits[3] = np.round(logits[3])  # many ties
    ids, found, _ = sample_jit(logits, batch, masks, state, limit, MAX_LOGPROBS, kernel)
    exact = exact_logprobs(logits)
    for row, count in enumerate(np.asarray(batch.num_logprobs)):
        if count < 0:
            assert not any(np.asarray(field)[row].any() for field in found)
            continue
        assert found.logprob[row] == pytest.approx(exact[row, ids[row]], rel=1e-6, abs=1e-6)
        assert found.rank[row] == 1 + (logits[row] > logits[row, ids[row]]).sum()
        best = np.argsort(-logits[row, :limit], kind="stable")[:count]
        assert found.top_ids[row].tolist() == [*best, *[0] * (20 - count)]
        np.testing.assert_allclose(found.top_logprobs[row, :count], exact[row, best], rtol=1e-6, atol=1e-6)
        assert not found.top_logprobs[row, count:].any()


def test_an_id_has_the_same_log_probability_on_its_own_and_in_the_list() -> None:
    logits, *_ = mixed_rows(20, 1000, seed=3)
    best = np.argsort(-logits, axis=1)[np.arange(20), np.arange(20)].astype(np.int32)
    found: Logprobs = prompt_logprobs_jit(logits, best, 1000, MAX_LOGPROBS, kernel)
    for row in range(20):
        assert found.top_ids[row, row] == best[row]
        assert found.top_logprobs[row, row] == found.logprob[row]
        assert found.rank[row] == row + 1


def test_log_probabilities_of_logits_that_are_no_numbers() -> None:
    inf, nan = math.inf, math.nan
    logits = np.array([[0, nan, 1, -inf], [inf, 0, nan, inf], [-inf, nan, nan, -inf], [nan] * 4], np.float32)
    ids = np.array([2, 3, 1, 0], np.int32)
    found: Logprobs = prompt_logprobs_jit(logits, ids, 3, MAX_LOGPROBS, kernel)
    softmax = [math.log(1 / (1 + math.exp(-1))), math.log(1 / (1 + math.exp(1)))]
    np.testing.assert_allclose(found.logprob, [softmax[0], math.log(0.5), nan, nan], rtol=1e-6)
    assert found.rank.tolist() == [1, 1, 1, 1]
    assert found.top_ids[:, :4].tolist() == [[2, 0, 1, -1], [0, 1, 2, -1], [0, 1, 2, -1], [0, 1, 2, -1]]
    none = [nan] * 3 + [-inf]
    expected = [[*softmax, -inf, -inf], [math.log(0.5), -inf, -inf, -inf], none, none]
    np.testing.assert_allclose(found.top_logprobs[:, :4], expected, rtol=1e-6)
    assert (found.top_ids[:, 4:] == -1).all()
    assert (found.top_logprobs[:, 4:] == -inf).all()


def drawable(
    logits: np.ndarray, limit: int, batch: SamplingBatch, mask: np.ndarray, state: SamplerState, row: int
) -> set[int]:
    """What the row's draw gives; two ids or more where float32 sums may be rounded to either side of a border."""
    wanted = {name: getattr(batch, name)[row].item() for name in ("temperature", "top_k", "min_p", *PENALTIES)}
    counts, bias = np.asarray(state.counts[row]), np.asarray(state.bias[row])
    generated = np.repeat(np.arange(len(counts)), counts % PROMPT)
    wanted |= {"prompt": np.flatnonzero(counts >= PROMPT), "generated": generated.tolist()}
    if batch.biased[row]:
        wanted["bias"] = dict(enumerate(bias.tolist()))
    if batch.masked[row]:
        bits = np.unpackbits(mask.astype("<u4").view(np.uint8), bitorder="little")
        wanted["allowed"] = np.flatnonzero(bits[:limit]).tolist()
    uniform = float(_uniform(batch.seed[row], batch.choice_index[row], batch.position[row]))
    possible: set[int] = set()
    for top_p in np.clip(batch.top_p[row].item() * np.array([1 - 1e-5, 1, 1 + 1e-5]), 0, 1):
        probabilities = distribution(np.where(np.isnan(logits), -np.inf, logits), limit, top_p=top_p, **wanted)
        stops = np.cumsum(probabilities)
        near = (stops - probabilities - 1e-5 <= uniform) & (uniform < stops + 1e-5) & (probabilities > 0)
        possible |= set(np.flatnonzero(near).tolist())
    return possible


@cache
def chosen_by_definition(vocab: int) -> tuple[tuple[Any, ...], jax.Array, Logprobs]:
    """Inputs of `sample`, ids and log probabilities, for all instruction sets."""
    logits, batch, masks, state = mixed_rows(512, vocab, seed=vocab)
    logits[::3] = np.round(logits[::3])  # many ties
    logits[1::64, ::2] = np.nan
    batch = batch._replace(masked=batch.masked.at[-1].set(True))
    masks[-1] = 0  # nothing is allowed
    inputs = logits, batch, masks, state
    ids, logprobs, _ = sample_jit(*inputs, vocab - 5, MAX_LOGPROBS, None)
    return inputs, ids, logprobs


@pytest.mark.parametrize("vocab", [17, 300, 5000])
def test_native_kernels_choose_what_the_definition_chooses(kernels: str, vocab: int) -> None:
    if kernels == "xla":
        pytest.skip("they are compared with the definition")
    inputs, defined, defined_logprobs = chosen_by_definition(vocab)
    (logits, batch, masks, state), limit = inputs, vocab - 5
    ids, logprobs, _ = sample_jit(*inputs, limit, MAX_LOGPROBS, native)
    # A sum that is rounded otherwise may move a border past the draw, or move an id across top_p's.
    differ = np.flatnonzero(ids != defined)
    assert len(differ) <= 2
    drawing = np.flatnonzero(batch.temperature > 0)
    for row in {*differ, *drawing[:30]}:
        assert {int(ids[row]), int(defined[row])} <= drawable(logits[row], limit, batch, masks[row], state, row)
    same = np.flatnonzero(ids == defined)
    for name in ("rank", "top_ids"):
        np.testing.assert_array_equal(getattr(logprobs, name)[same], getattr(defined_logprobs, name)[same])
    for name in ("logprob", "top_logprobs"):
        native_values, values = getattr(logprobs, name)[same], getattr(defined_logprobs, name)[same]
        np.testing.assert_allclose(native_values, values, rtol=1e-6, atol=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1e-38, 1e-30, -88.0, 3e38, math.inf, -math.inf, math.nan])
        | st.floats(-100, 100, width=32),
        min_size=1,
        max_size=80,
    ),
    temperature=st.sampled_from([0.0, 1e-30, 0.7, 1.0, 100.0]),
    top_k=st.sampled_from([0, 1, 2, 30, 79]),
    top_p=st.sampled_from([1e-6, 0.5, 1.0]),
    min_p=st.sampled_from([0.0, 1e-5, 0.5, 1.0]),
)
def test_native_kernels_choose_what_the_definition_chooses_from_odd_numbers(
    kernels: str, logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    if kernels == "xla":
        pytest.skip("they are compared with the definition")
    vocab, limit = 84, 80
    row = np.full(vocab, -5.0, np.float32)
    row[: len(logits)] = logits
    wanted = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "num_logprobs": 20}
    inputs = (np.tile(row, (8, 1)), batch_of(8, **wanted), np.zeros((8, 3), np.uint32), init_sampler_state(1, vocab))
    defined, defined_logprobs, _ = sample_jit(*inputs, limit, MAX_LOGPROBS, None)
    ids, logprobs, _ = sample_jit(*inputs, limit, MAX_LOGPROBS, native)
    assert (ids != defined).sum() <= (1 if temperature > 0 else 0)
    np.testing.assert_array_equal(logprobs.top_ids, defined_logprobs.top_ids)
    np.testing.assert_allclose(logprobs.top_logprobs, defined_logprobs.top_logprobs, rtol=1e-6, atol=1e-6)
