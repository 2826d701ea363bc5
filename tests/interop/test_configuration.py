"""config.json <-> ZayaConfig."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.architecture import PRESETS, Execution, ZayaConfig, preset
from zaya_jax.interop import config_from_huggingface, config_to_huggingface

KINDS = ("hybrid", "hybrid_sliding")


def through_json(config: ZayaConfig) -> ZayaConfig:
    return config_from_huggingface(json.loads(json.dumps(config_to_huggingface(config))))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_come_back(name):
    assert through_json(preset(name)) == preset(name)


@st.composite
def configs(draw):
    layers = draw(st.integers(1, 5))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=layers, max_size=layers))
    vocab = draw(st.integers(4, 100))
    return ZayaConfig(
        vocab_size=vocab, num_hidden_layers=layers, layer_types=tuple(kinds), hidden_size=draw(st.integers(1, 64)),
        sliding_window=draw(st.integers(1, 99)), num_key_value_heads=draw(st.sampled_from([1, 2, 4])),
        cca_time0=draw(st.integers(1, 5)), cca_time1=draw(st.integers(1, 5)),
        rope_theta=draw(st.floats(1, 1e7)), sliding_rope_theta=draw(st.floats(1, 1e7)),
        partial_rotary_factor=draw(st.sampled_from([0.25, 0.5, 1.0])), rms_norm_eps=draw(st.floats(1e-8, 1e-2)),
        tie_word_embeddings=draw(st.booleans()), attention_bias=draw(st.booleans()), lm_head_bias=draw(st.booleans()),
        eos_token_id=draw(st.none() | st.integers(0, 3)), mask_token_id=draw(st.integers(0, vocab - 1)),
        skip_expert=draw(st.sampled_from(["zero", "identity"])), dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        param_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(configs())
def test_every_field_comes_back(config):
    assert through_json(config) == config


def test_an_empty_config_is_zaya1_8b():
    assert config_from_huggingface({}) == ZayaConfig()
    assert config_from_huggingface({"dtype": "bfloat16"}) == preset("zaya1_8b")


def test_the_released_config_with_its_stray_rope_type():
    nested = {kind: {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5} for kind in KINDS}
    config = config_from_huggingface({"rope_parameters": {**nested, "rope_type": "default"}, "torch_dtype": "bfloat16"})
    assert (config.rope_theta, config.partial_rotary_factor, config.param_dtype) == (1e6, 0.5, "bfloat16")


def test_older_flat_rope_keys():
    flat = {"rope_theta": 1e6, "partial_rotary_factor": 0.25, "rope_scaling": False}
    config = config_from_huggingface(flat)
    assert (config.rope_theta, config.partial_rotary_factor) == (1e6, 0.25)
    nested = {"hybrid": {"rope_theta": 3.0}}  # wins, and without a factor means 1, as in transformers
    config = config_from_huggingface({**flat, "rope_parameters": nested})
    assert (config.rope_theta, config.partial_rotary_factor) == (3.0, 1.0)


def test_a_list_of_one_end_token_is_that_token():
    assert config_from_huggingface({"eos_token_id": [7]}).eos_token_id == 7


SLIDING = {"num_hidden_layers": 2, "layer_types": list(KINDS), "sliding_window": 4}
REFUSED = {
    "model_type": ({"model_type": "gemma3"}, r"config.json: model_type: got 'gemma3', may be one of \('llama'"),
    "top-2": ({"num_experts_per_tok": 2}, "config.json: num_experts_per_tok: got 2, may be 1"),
    "activation": ({"hidden_act": "gelu"}, "config.json: hidden_act: got 'gelu', may be 'silu'"),
    "dropout": ({"attention_dropout": 0.1}, "config.json: attention_dropout: got 0.1"),
    "quantized": ({"quantization_config": {"bits": 4}}, "config.json: quantization_config: got"),
    "string": ({"hidden_size": "64"}, "config.json: hidden_size: got '64', may be an integer"),
    "bool": ({"hidden_size": True}, "config.json: hidden_size: got True, may be an integer"),
    "eps": ({"rms_norm_eps": 0}, "config.json: rms_norm_eps: got 0, may be a number above 0"),
    "tie": ({"tie_word_embeddings": None}, "config.json: tie_word_embeddings: got None, may be true or false"),
    "eos": ({"eos_token_id": [1, "2"]}, r"eos_token_id: got \[1, '2'\], may be a token id, a list of them"),
    "dtype": ({"dtype": "float64"}, "config.json: dtype: got 'float64', may be one of"),
    "layer type": ({"layer_types": ["full_attention"]}, "config.json: layer_types: got 'full_attention'"),
    "layer list": ({"layer_types": "hybrid"}, "config.json: layer_types: got 'hybrid'"),
    "layer count": ({"layer_types": ["hybrid"]}, "ZayaConfig.layer_types: got"),
    "window": ({**SLIDING, "sliding_window": None}, "ZayaConfig.sliding_window: got None"),
    "yarn": (
        {"rope_parameters": {"hybrid": {"rope_type": "yarn", "rope_theta": 1.0}}},
        "config.json: rope_parameters.hybrid.rope_type: got 'yarn', may be 'default'",
    ),
    "scaling": ({"rope_scaling": {"type": "linear", "factor": 2}}, "config.json: rope_scaling: got 'linear'"),
    "scaling true": ({"rope_scaling": True}, "config.json: rope_scaling: got True"),
    "no theta": ({"rope_parameters": {"hybrid": {}}}, "config.json: rope_parameters.hybrid.rope_theta: got None"),
    "theta": ({"rope_theta": "big"}, "config.json: rope_parameters.hybrid.rope_theta: got 'big'"),
    "no sliding rope": (
        {**SLIDING, "rope_parameters": {"hybrid": {"rope_theta": 1.0}}},
        "config.json: rope_parameters.hybrid_sliding: got None, may be an object",
    ),
    "two factors": (
        {**SLIDING, "rope_parameters": {
            "hybrid": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}, "hybrid_sliding": {"rope_theta": 1.0},
        }},
        "config.json: rope_parameters.*.partial_rotary_factor: got .* may be the same for both layer types",
    ),
    "flat and sliding": (
        {**SLIDING, "rope_theta": 1.0}, "config.json: rope_theta: got 1.0, may be given by layer type",
    ),
    "rope list": ({"rope_parameters": [1]}, r"config.json: rope_parameters: got \[1\]"),
    "ours": ({"zaya_jax": {"colour": "red"}}, "config.json: zaya_jax: got 'colour'"),
    "ours list": ({"zaya_jax": [1]}, r"config.json: zaya_jax: got \[1\], may be an object"),
    "not an object": ([], r"config.json: the whole file: got \[\], may be a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case):
    values, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        config_from_huggingface(values)
    assert "\n" not in str(caught.value)


def test_float64_parameters_are_not_exported():
    with pytest.raises(ValueError, match="ZayaConfig: param_dtype: got 'float64'"):
        config_to_huggingface(preset("tiny", param_dtype="float64"))


def test_files_from_before_execution_was_the_users_own_are_read():
    stored = json.loads((Path(__file__).parents[2] / "results/quickstart/model/config.json").read_text())
    assert stored["zaya_jax"]["remat"] is False and "expert_backend" in stored["zaya_jax"]
    config = config_from_huggingface(stored)
    assert not {"remat", "expert_backend"} & set(config_to_huggingface(config)["zaya_jax"])
    with pytest.raises(ValueError, match=r"Execution.remat: got 'some', may be one of \('none', 'full', 'dots'\)"):
        Execution(remat="some")
