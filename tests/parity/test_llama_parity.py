"""Contract 1 for Llama's relatives: their folders give transformers' logits. Needs no torch: make_llama_fixtures.py."""

import jax.numpy as jnp
import make_llama_fixtures
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
from flax import traverse_util

from zaya_jax import SamplerConfig, generate
from zaya_jax.architecture import Layout, Zaya
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.interop import load_huggingface, save_huggingface
from zaya_jax.interop.editing.mask import add_mask_token

CASES = make_llama_fixtures.CASES


def fixture(name: str):
    """(config, variables, expected arrays) of a committed case."""
    directory = make_llama_fixtures.FIXTURES / name
    with np.load(directory / "expected.npz") as expected:
        return *load_huggingface(directory), dict(expected)


def test_every_fixture_is_committed():
    assert {path.name for path in make_llama_fixtures.FIXTURES.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_transformers(name):
    config, variables, expected = fixture(name)
    assert config.mask_token_id == NO_MASK
    got = logits(config, variables, expected["tokens"], expected["valid"])
    assert deviation(got, expected["logits"], expected["valid"]) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_no_further_from_float32_than_transformers(name):
    config, variables, expected = fixture(name)
    with np.load(make_llama_fixtures.FIXTURES / name / "bfloat16.npz") as low:
        assert_as_near_in_bfloat16(config, variables, expected | dict(low))


@pytest.mark.parametrize("name", ["llama3_rope", "qwen2_sliding"])
def test_chunked_decoding_gives_the_same_logits(name):
    config, variables, expected = fixture(name)
    row = expected["tokens"].shape[1]
    got = cached_logits(config, variables, expected["tokens"], (3, row - 3))
    assert deviation(got, expected["logits"], expected["valid"]) <= TOLERANCE


@pytest.mark.parametrize("name", ["llama_biases", "qwen3"])
def test_parity_hangs_on_every_parameter(name):
    """Each array of the variables, disturbed alone, breaks the contract: no fixture passes by ignoring one."""
    assert_hangs_on_every_parameter(*fixture(name))


@pytest.mark.parametrize("name", CASES)
def test_a_folder_comes_back_bit_for_bit(name, tmp_path):
    config, variables, _ = fixture(name)
    save_huggingface(tmp_path / "ours", config, variables)
    before, after = (
        (directory / "model.safetensors").read_bytes()
        for directory in (make_llama_fixtures.FIXTURES / name, tmp_path / "ours")
    )
    assert tensors_of(before) == tensors_of(after)
    again, restored = load_huggingface(tmp_path / "ours")
    assert again == config
    assert all(
        np.array_equal(a, b)
        for a, b in zip(*(traverse_util.flatten_dict(x).values() for x in (variables, restored)), strict=True)
    )


def tensors_of(file: bytes) -> dict:
    from safetensors import deserialize

    return {name: (tuple(view["shape"]), view["dtype"], bytes(view["data"])) for name, view in deserialize(file)}


@pytest.mark.slow
def test_greedy_drafting_gives_the_greedy_text():
    """A model that never learned to draft: every draft is verified, so that the text is autoregression's."""
    config, variables, expected = fixture("qwen3")
    config, variables = add_mask_token(config, variables)
    prompts = [expected["tokens"][0, :9].tolist(), expected["tokens"][1, 5:9].tolist()]
    text = {
        mode: generate(Zaya(config), variables, prompts, SamplerConfig(mode, block_size=3, temperature=0.0), 16).tokens
        for mode in ("autoregressive", "single_pass")
    }
    assert text["single_pass"] == text["autoregressive"]
    assert len(set(text["autoregressive"][0])) > 3


def test_a_model_without_a_mask_token_does_not_draft():
    config, variables, expected = fixture("llama")
    layout = Layout.tidar(jnp.asarray(expected["tokens"]), 4, 0)
    with pytest.raises(ValueError, match=r"ZayaConfig\.mask_token_id: got none, may be an id where blocks are drafted"):
        compiled(config)(variables, layout)
