"""Rows hold whole documents, and only tokens that are to be learned carry weight."""

import numpy as np
from tokenizers import Tokenizer

from training.corpus import draw_example
from training.packing import PROMPT_WEIGHT, Batch, batch_at, encode, pack

PADDING = 1


def test_weights_belong_to_the_token_that_is_predicted() -> None:
    document = [(10, 0.1), (11, 0.1), (12, 1.0), (0, 1.0)]
    batch = pack(iter([document] * 3), rows=1, length=9, padding=PADDING, patience=1)
    assert batch.tokens.tolist() == [[10, 11, 12, 0, 10, 11, 12, 0, PADDING, PADDING]]
    np.testing.assert_allclose(batch.weights, [[0.1, 1, 1, 0.1, 0.1, 1, 1, 0, 0]])
    assert batch.count == 7


def test_documents_fill_the_first_row_with_space_and_are_never_cut() -> None:
    documents = [[(n, 1.0)] * n for n in (5, 4, 3, 2, 2, 1)]
    batch = pack(iter(documents), rows=2, length=7, padding=PADDING, patience=1)
    assert batch.tokens.tolist() == [[5] * 5 + [3] * 3, [4] * 4 + [2] * 4]


def test_a_document_longer_than_a_row_is_cut_to_it() -> None:
    batch = pack(iter([[(7, 1.0)] * 20] * 2), rows=1, length=7, padding=PADDING, patience=1)
    assert batch.tokens.tolist() == [[7] * 8]


def test_prompts_weigh_little_and_answers_fully(tokenizer: Tokenizer) -> None:
    example = draw_example(1, 0, "repeat")
    encoded = encode(example, tokenizer)
    answer = tokenizer.encode(example.reference + "<|im_end|>").ids
    full = [token for token, weight in encoded if weight == 1.0]
    assert full == [*answer, tokenizer.token_to_id("<|endoftext|>")]
    assert {weight for _, weight in encoded} == {1.0, PROMPT_WEIGHT}


def test_batches_depend_on_seed_and_step_alone(tokenizer: Tokenizer) -> None:
    first, again = (batch_at(3, 5, tokenizer, rows=4, length=64, copy_phase=False) for _ in range(2))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.weights, again.weights)
    other = batch_at(4, 5, tokenizer, rows=4, length=64, copy_phase=False)
    assert not np.array_equal(first.tokens, other.tokens)


def test_batches_are_nearly_full(tokenizer: Tokenizer) -> None:
    batch = batch_at(0, 0, tokenizer, rows=8, length=512, copy_phase=False)
    assert batch.tokens.shape == (8, 513)
    assert batch.count > 0.85 * batch.weights.size


def test_a_weight_becomes_the_probability_of_a_prediction() -> None:
    weights = np.tile(np.float32([0, 0.1, 1]), (2, 4000))
    batch = Batch(np.zeros((2, 12001), np.int32), weights)
    thinned = batch.thinned(seed=7)
    assert set(np.unique(thinned.weights)) == {0, 1}
    assert not thinned.weights[weights == 0].any()
    assert thinned.weights[weights == 1].all()
    assert 0.08 < thinned.weights[weights == np.float32(0.1)].mean() < 0.12
    np.testing.assert_array_equal(thinned.weights, batch.thinned(seed=7).weights)
