"""Contract 1: a checkpoint in Hugging Face's layout gives transformers' logits.

Needs no torch: see make_fixtures.py.
"""

import jax.numpy as jnp
import make_fixtures
import numpy as np
import pytest
from comparison import (
    TOLERANCE,
    assert_as_near_in_bfloat16,
    assert_hangs_on_every_parameter,
    cached_logits,
    compiled,
    deviation,
    logits,
)

from zaya_jax.architecture import Execution, Layout
from zaya_jax.interop import load_huggingface

pytestmark = pytest.mark.early

CASES = make_fixtures.CASES
CHUNKS = {name: how["chunks"] for name, (_, _, how) in CASES.items() if "chunks" in how} | {"kernels_1_1": (3, 13)}


def fixture(name: str):
    """(config, variables, expected arrays) of a committed case."""
    directory = make_fixtures.FIXTURES / name
    with np.load(directory / "expected.npz") as expected:
        return *load_huggingface(directory), dict(expected)


def test_every_fixture_is_committed():
    present = {path.name for path in make_fixtures.FIXTURES.iterdir()}
    assert present == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_transformers(name, record_property):
    config, variables, expected = fixture(name)
    got = logits(config, variables, expected["tokens"], expected["valid"])
    worst = deviation(got, expected["logits"], expected["valid"])
    record_property("deviation", worst)
    assert worst <= TOLERANCE


# Caches of every kind are one pass by tests/architecture/test_one_function.py, too; here those of the committed logits.
QUICK = ("kernels_3_4", "sliding", "left_padding", "skip")


def quick(names):
    """The rest is slow: two programs each."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", quick(CHUNKS))
def test_chunked_decoding_gives_the_same_logits(name):
    config, variables, expected = fixture(name)
    got = cached_logits(config, variables, expected["tokens"], CHUNKS[name])
    assert deviation(got, expected["logits"], expected["valid"]) <= TOLERANCE
    if "cached_logits" in expected:
        assert deviation(got, expected["cached_logits"], expected["valid"]) <= TOLERANCE


def test_token_by_token_decoding_gives_the_same_logits():
    config, variables, expected = fixture("kernels_3_4")
    got = cached_logits(config, variables, expected["tokens"], (1,) * expected["tokens"].shape[1])
    assert deviation(got, expected["logits"], expected["valid"]) <= TOLERANCE


@pytest.mark.parametrize("backends", [("dense", "dense"), ("gather", "structured")])
def test_every_backend_has_parity(backends):
    config, variables, expected = fixture("skip")
    execution = Execution(expert_backend=backends[0], attention_backend=backends[1])
    got = logits(config, variables, expected["tokens"], execution=execution)
    assert deviation(got, expected["logits"], expected["valid"]) <= TOLERANCE


def test_a_small_query_chunk_has_parity():
    config, variables, expected = fixture("sliding")
    got = logits(config, variables, expected["tokens"], execution=Execution(query_chunk=8))
    assert deviation(got, expected["logits"], expected["valid"]) <= TOLERANCE


def test_right_padding_has_parity_on_real_positions():
    config, variables, expected = fixture("plain")
    tokens = np.pad(expected["tokens"], ((0, 0), (0, 3)))
    valid = np.arange(tokens.shape[1]) < expected["tokens"].shape[1]
    got = logits(config, variables, tokens, np.broadcast_to(valid, tokens.shape))
    assert deviation(got[:, valid], expected["logits"], expected["valid"]) <= TOLERANCE


def test_the_skip_fixture_skips_some_tokens_and_not_all():
    config, variables, expected = fixture("skip")
    load = compiled(config)(variables, Layout.causal(jnp.asarray(expected["tokens"]))).load
    skipped = int(load[:, 0, -1].sum())
    assert 0 < skipped < int(load.sum()) // 2
    assert all(int((layer[0, :-1] > 0).sum()) >= config.num_experts // 2 for layer in load)


def test_parity_hangs_on_every_parameter():
    """Each array of the variables, disturbed alone, breaks the contract: no fixture passes by ignoring one."""
    assert_hangs_on_every_parameter(*fixture("biases_untied"))


@pytest.mark.parametrize("name", quick(CASES))
def test_bfloat16_is_no_further_from_float32_than_transformers(name):
    """On rows that change no expert in bfloat16: see make_fixtures."""
    config, variables, _ = fixture(name)
    with np.load(make_fixtures.FIXTURES / name / "bfloat16.npz") as low:
        assert_as_near_in_bfloat16(config, variables, dict(low))
