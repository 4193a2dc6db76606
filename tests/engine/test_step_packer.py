"""Packing steps that follow each other; `FakeRunner` compares every step of its tests with one packed from scratch."""

import numpy as np
from fake_runner import make_request

from mpt_serve.engine import step_packer
from mpt_serve.engine.step_inputs import pack_forward, pack_sampling
from mpt_serve.engine.step_packer import StepPacker
from mpt_serve.engine.step_rows import Row, StepRows
from mpt_serve.engine.step_shapes import StepKey, StepShape

SHAPE = StepShape(StepKey(4, 4, 4, False), max_blocks=8, num_blocks=24, block_size=4, max_num_seqs=6)


def test_steps_of_the_same_requests_are_made_from_one_another(monkeypatch) -> None:
    requests = [make_request("a", range(3), 20), make_request("b", range(6), 20), make_request("c", range(2), 20)]
    for slot, request in enumerate(requests):
        request.slot, request.blocks = 5 - slot, [8 * slot]
    packed = []
    monkeypatch.setattr(step_packer, "pack_forward", lambda *args: packed.append(args) or pack_forward(*args))
    packer = StepPacker(SHAPE.max_num_seqs)

    def pack(requests, number, in_flight=True) -> bool:
        """Pack a step, compare it, and return whether it was packed from scratch."""
        rows = []
        for request in requests:
            start = len(request.prompt_ids) + number
            while len(request.blocks) * SHAPE.block_size <= start:
                request.blocks.append(request.blocks[-1] + 1)
            request.output_ids[:] = [7] * (number + (not in_flight))
            rows.append(Row(request, start, 1, 1, token_in_flight=in_flight))
        step, before = StepRows(rows, len(rows)), len(packed)
        forward, sampling = packer.pack(step, SHAPE)
        np.testing.assert_array_equal(forward, pack_forward(step, SHAPE))
        np.testing.assert_array_equal(sampling, pack_sampling(step, 4, SHAPE.max_num_seqs))
        return len(packed) > before

    assert [pack(requests, number) for number in range(7)] == [True] + [False] * 6
    assert pack(requests[:2], 7)  # one has ended
    assert not pack(requests[:2], 8)
    assert pack(requests[1::-1], 9)  # others in their places
    assert pack(requests[1::-1], 11)  # a step between them
    assert pack(requests[1::-1], 12, in_flight=False)  # the host knows the ids
    assert pack(requests[1::-1], 13)
    assert not pack(requests[1::-1], 14)
