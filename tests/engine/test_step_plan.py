"""Step shapes: few, and enough for any step."""

import pytest
from fake_device import make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from mpt_serve.engine.scheduler import Row, StepRows
from mpt_serve.engine.step_plan import choose_shape, step_shapes


def test_usual_settings_need_few_programs() -> None:
    assert step_shapes(32, 512) == (
        *((1, 1), (2, 2), (4, 4), (8, 8), (16, 8), (16, 16), (32, 16), (32, 32)),
        *((64, 32), (128, 32), (256, 32), (512, 32)),
    )


def test_limits_that_are_no_powers_of_two_are_shapes_of_their_own() -> None:
    assert step_shapes(6, 40) == ((1, 1), (2, 2), (4, 4), (6, 6), (16, 6), (32, 6), (40, 6))


@settings(deadline=None)
@given(data=st.data(), max_num_seqs=st.integers(1, 70), spare=st.integers(1, 600))
def test_every_step_has_a_shape_that_wastes_little(data: st.DataObject, max_num_seqs: int, spare: int) -> None:
    shapes = step_shapes(max_num_seqs, max_num_seqs + spare)
    num_decode = data.draw(st.integers(0, max_num_seqs))
    free_rows = max_num_seqs - num_decode
    num_prefill = data.draw(st.integers(0 if num_decode else 1, min(free_rows, spare))) if free_rows else 0
    lengths = [1] * num_decode
    left = spare
    for index in range(num_prefill):
        lengths.append(data.draw(st.integers(1, left - (num_prefill - index - 1))))
        left -= lengths[-1]
    request = make_request("a", [1], 1)
    step = StepRows([Row(request, 0, length, True, False) for length in lengths], num_decode)
    tokens, rows = choose_shape(shapes, step)
    assert step.num_tokens <= tokens <= max_num_seqs + spare
    assert len(lengths) <= rows <= max_num_seqs
    # The model takes as many rows as tokens for a sign that there is nothing but decoding.
    assert (tokens == rows) == (num_prefill == 0)
    assert tokens < max(16, 2 * step.num_tokens, 4 * len(lengths)) + 1


def test_a_budget_without_room_for_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="above max_num_seqs=8"):
        step_shapes(8, 8)
