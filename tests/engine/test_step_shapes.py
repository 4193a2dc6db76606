"""Step shapes: few, and enough for any step."""

from fake_runner import make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from mpt_serve.engine.step_rows import Row, StepRows
from mpt_serve.engine.step_shapes import choose_shape, step_shapes


def test_usual_settings_need_few_programs() -> None:
    small = [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8), (16, 16, 16), (32, 32, 32)]
    mixed = [(16, 8, 8), (32, 16, 16), (64, 32, 32), (128, 32, 32), (256, 32, 32), (512, 32, 32)]
    shapes = step_shapes(32, 512, 32, ragged_decode=False)
    assert shapes == tuple(sorted([*((*n, True) for n in small), *((*n, False) for n in mixed)]))
    shapes = step_shapes(32, 512, 32, ragged_decode=True, row_tile=12)
    assert shapes == tuple(sorted((*n, False) for n in [*small, (12, 12, 12), *mixed]))


def test_steps_with_drafts_have_separate_programs_where_few_requests_run() -> None:
    shapes = step_shapes(2, 64, 16, ragged_decode=False)
    assert [key for key in shapes if key.num_tokens < 16] == [
        *((1, 1, 1, True), (2, 2, 2, False), (2, 2, 2, True), (4, 2, 4, False), (8, 2, 8, False)),
    ]


def test_limits_that_are_no_powers_of_two_are_separate_shapes() -> None:
    tokens = {key.num_tokens for key in step_shapes(6, 40, 6, ragged_decode=True, row_tile=12)}
    assert tokens == {1, 2, 4, 6, 16, 32, 40}


@settings(deadline=None)
@given(
    data=st.data(),
    max_num_seqs=st.integers(1, 70),
    spare=st.integers(1, 600),
    spare_samples=st.integers(0, 20),
    ragged=st.booleans(),
)
def test_every_step_has_a_shape_that_wastes_little(
    data: st.DataObject, max_num_seqs: int, spare: int, spare_samples: int, ragged: bool
) -> None:
    shapes = step_shapes(max_num_seqs, max_num_seqs + spare, max_num_seqs + spare_samples, ragged, row_tile=12)
    num_decode = data.draw(st.integers(0, max_num_seqs))
    free_rows = max_num_seqs - num_decode
    num_prefill = data.draw(st.integers(0 if num_decode else 1, min(free_rows, spare))) if free_rows else 0
    lengths = [1] * num_decode
    left = spare
    for index in range(num_prefill):
        lengths.append(data.draw(st.integers(1, left - (num_prefill - index - 1))))
        left -= lengths[-1]
    request = make_request("a", [1], 1)
    step = StepRows([Row(request, 0, length, 1, False) for length in lengths], num_decode)
    key = choose_shape(shapes, step)
    assert step.num_tokens <= key.num_tokens <= max_num_seqs + spare
    assert len(lengths) <= key.num_rows <= max_num_seqs
    assert step.num_samples <= key.num_samples <= max(max_num_seqs + spare_samples, key.num_tokens)
    # A step with chunks never takes a program that only decodes; one that decodes takes it where there is one.
    assert not key.decode_only or not num_prefill
    assert key.num_tokens < max(16, 2 * step.num_tokens, 4 * len(lengths)) + 1
