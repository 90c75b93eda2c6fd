"""bfloat16 is used where it is faster, and nowhere silently left out."""

import logging

import pytest
import torch

from client_app import precision
from client_app.precision import multiplies_bfloat16, product_type

AVX512_BF16, AMX = "_is_avx512_bf16_supported", "_is_amx_tile_supported"


@pytest.fixture(autouse=True)
def _forget():
    for cached in (precision.multiplies_bfloat16, precision._say_once):
        cached.cache_clear()
    yield
    for cached in (precision.multiplies_bfloat16, precision._say_once):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("vendor", "instructions", "faster"),
    [
        ("AuthenticAMD", {AVX512_BF16}, True),
        ("GenuineIntel", {AVX512_BF16}, False),
        ("GenuineIntel", {AVX512_BF16, AMX}, True),
        ("GenuineIntel", set(), False),
        ("AuthenticAMD", set(), False),
        ("", {AVX512_BF16}, True),
    ],
)
def test_which_processors_are_faster_with_bfloat16(monkeypatch, vendor, instructions, faster):
    monkeypatch.setattr(precision, "_has", instructions.__contains__)
    monkeypatch.setattr(precision, "_vendor", lambda: vendor)
    assert multiplies_bfloat16() is faster


def test_what_is_asked_for_and_not_done_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert product_type("float32") == torch.float32
        assert not caplog.messages
        assert product_type("bfloat16") == product_type("bfloat16") == torch.float32
    (message,) = caplog.messages
    assert message.startswith("training.precision = bfloat16")
    assert product_type("bfloat16", "cuda") == torch.bfloat16


def test_a_processor_that_has_it_does_it(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    assert product_type("bfloat16") == torch.bfloat16


def test_the_questions_are_those_that_torch_answers():
    """A renamed function of torch would leave bfloat16 out without a word."""
    assert hasattr(torch.cpu, AVX512_BF16)
    assert hasattr(torch.cpu, AMX)
