"""Noise changes prompts but never the values in them."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from training.noise import noisy

TEMPLATE = "What is the name of {a}, and where does {b} live?"


@given(st.integers(0, 10_000))
def test_fields_survive(seed: int) -> None:
    text = noisy(TEMPLATE, Random(seed)).format(a="Zorko Flin", b="MaRi's")
    assert "Zorko Flin" in text
    assert "MaRi's" in text


def test_every_kind_of_noise_occurs_and_clean_prompts_too() -> None:
    texts = [noisy(TEMPLATE, Random(seed)) for seed in range(500)]
    assert 0.2 < texts.count(TEMPLATE) / len(texts) < 0.6
    assert any(text == text.lower() for text in texts)
    assert any(not text.endswith("?") for text in texts)
    assert any("please" in text.lower() for text in texts)
    assert any("," not in text for text in texts)
    assert any(len(text) == len(TEMPLATE) - 1 and text.startswith("What") and text.endswith("live?") for text in texts)


def test_imperatives_get_a_fitting_prefix() -> None:
    texts = {noisy("Tell me a story.", Random(seed)) for seed in range(500)}
    assert "Can you tell me a story." in texts
    assert not any(text.startswith("One question") for text in texts)
