"""Zyphra's legacy layout: its configuration, and where each of its tensors belongs."""

import json

import numpy as np
import pytest
from folders import CONFIGS, assert_identical, random_variables
from hypothesis import given, settings
from safetensors.numpy import load_file
from test_configuration import configs

from zaya_jax.architecture import preset
from zaya_jax.interop import config_from_huggingface, load_huggingface, save_huggingface
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.families.table import LEGACY, family_of_file
from zaya_jax.interop.formats.names import abstract_variables

# ZAYA1-8B-legacy's config.json as SGLang's tests quote it, and the same model as Zyphra's code of 2d6c3a2 and 00f929e
# would write it.
RELEASED = {
    "activation_func": "swiglu", "activation_func_fp8_input_store": False, "add_bias_linear": False,
    "architectures": ["ZayaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bias_activation_fusion": True, "bos_token_id": 2, "cca": True, "dtype": "bfloat16", "eos_token_id": 106,
    "ffn_hidden_size": 4096, "gated_linear_unit": True, "hidden_size": 2048, "head_dim": 128, "kv_channels": 128,
    "lm_head_bias": False, "mamba_cache_dtype": "float32", "max_position_embeddings": 131072, "model_type": "zaya",
    "moe_router_topk": 1, "norm_epsilon": 1e-05, "normalization": "RMSNorm", "num_attention_heads": 8,
    "num_experts": 16, "num_hidden_layers": 80, "num_key_value_heads": 2, "num_query_groups": 2, "pad_token_id": 0,
    "partial_rotary_factor": 0.5, "residual_in_fp32": True, "rope_scaling": False, "rope_theta": 5000000,
    "scale_residual_merge": True, "sliding_window": None, "use_cache": True, "vocab_size": 262272,
    "zaya_mlp_expansion": 256, "zaya_use_eda": True, "zaya_use_mod": True,
}  # fmt: skip
_HEADS = {"num_attention_heads": 16, "cca_num_q_heads": 8}
SCALARS = {k: v for k, v in RELEASED.items() if k not in ("head_dim",)} | _HEADS
LISTS = {
    **{k: v for k, v in RELEASED.items() if k not in ("head_dim", "num_query_groups", "ffn_hidden_size")},
    "num_hidden_layers": 120, "num_attention_heads": 16, "cca_num_q_heads": [8, 0] * 40,
    "num_query_groups_list": [2, 0] * 40, "ffn_hidden_size_list": [0, 4096] * 40,
    "zaya_layers": ["a", 16] * 40, "zaya_mlp_expansion": [0, 256] * 40,
}  # fmt: skip


@pytest.mark.parametrize("values", [RELEASED, SCALARS, LISTS], ids=["released", "scalars", "lists"])
def test_every_form_of_the_8b_is_the_8b(values):
    assert config_from_huggingface(values) == preset("zaya1_8b", skip_expert="identity")


def test_the_8b_has_2483_tensors_of_as_many_values():
    tensors = LEGACY.tensors(preset("zaya1_8b"))
    assert len(tensors) == 2483
    weights = [shape for name, (shape, _) in tensors.items() if not name.endswith("balancing_biases")]
    assert sum(int(np.prod(shape)) for shape in weights) == 8_840_488_784
    expert = "model.layers.79.zaya_block.experts.local_experts.15."
    assert tensors[expert + "linear_fc1.weight"][0] == (4096, 2048)
    assert tensors[expert + "linear_fc2.weight"][0] == (2048, 2048)
    assert "model.layers.0.res_scale.residual_scale" not in tensors  # there is no residual yet
    assert "model.layers.1.zaya_block.router.router_states_scale" not in tensors
    assert "model.layers.3.zaya_block.router.router_states_scale" in tensors


def test_windows_count_the_current_token_here():
    values = {**RELEASED, "num_hidden_layers": 4, "swa_layers": [4096, 0, 0, 0], "swa_rotary_base": 10_000}
    config = config_from_huggingface(values)
    assert (config.layer_types, config.sliding_window) == (("hybrid_sliding", "hybrid"), 4097)
    assert config.sliding_rope_theta == 10_000


@settings(max_examples=40)
@given(configs())
def test_every_field_comes_back(config):
    if "hybrid_sliding" in config.layer_kinds and config.sliding_window == 1:
        with pytest.raises(ValueError, match="ZayaConfig: sliding_window: got 1, may be at least 2"):
            LEGACY.config_to_huggingface(config)
        return
    values = json.loads(json.dumps(LEGACY.config_to_huggingface(config)))
    assert family_of_file(values) is LEGACY
    assert config_from_huggingface(values) == config


REFUSED = {
    "odd": ({"num_hidden_layers": 81}, "num_hidden_layers: got 81, may be even"),
    "many": ({"num_hidden_layers": 10**9}, "num_hidden_layers: got 1000000000"),
    "no skip": ({"zaya_use_mod": False}, "zaya_use_mod: got False, may be True"),
    "no eda": ({"zaya_use_eda": False}, "zaya_use_eda: got False, may be True"),
    "clamped": ({"clamp_temp": True}, "clamp_temp: got True, may be False"),
    "biases": ({"add_bias_linear": True}, "add_bias_linear: got True, may be False"),
    "activation": ({"activation_func": "gelu"}, "activation_func: got 'gelu', may be 'swiglu'"),
    "top 2": ({"moe_router_topk": 2}, "moe_router_topk: got 2, may be 1"),
    "groups": ({"num_query_groups": 4}, "num_key_value_heads: got 2, may be num_query_groups"),
    "width": ({"ffn_hidden_size": 4095}, "ffn_hidden_size: got 4095, may be even"),
    "scaling": ({"rope_scaling": True}, "rope_scaling: got True"),
    "yarn": ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling: got 'yarn'"),
    "lists": ({"zaya_mlp_expansion": [0, 256, 0, 128] * 20}, "zaya_mlp_expansion: got .* the same for every layer"),
    "layers": ({"zaya_layers": ["a", "a", 16, 16]}, "zaya_layers: got"),
    "windows": ({"swa_layers": [4, 0, 8, 0] * 20}, r"swa_layers: got \[4, 8\], may be one window"),
    "no sliding base": ({"swa_layers": [4, 0] * 40}, "swa_rotary_base: got None, may be a number above 0"),
    "window": ({"sliding_window": 5}, "sliding_window: got 5, may be null"),
    "eps": ({"norm_epsilon": 0}, "norm_epsilon: got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case):
    change, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"config.json: {message}") as caught:
        config_from_huggingface({**RELEASED, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_table_covers_every_variable_once(name):
    paths = [entry.path for entry in LEGACY.entries(CONFIGS[name])]
    assert len(paths) == len(set(paths))
    assert set(paths) == set(abstract_variables(CONFIGS[name]))


def test_each_tensor_stands_where_zyphra_has_it(tmp_path):
    """By value: each layer's tensor is found under its legacy name (docs/architecture.md#parameters-and-names)."""
    config = CONFIGS["tied"]
    save_huggingface(tmp_path / "theirs", config, random_variables(config))
    convert(tmp_path / "theirs", tmp_path / "legacy", "legacy")
    new, old = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "legacy"))
    last = config.num_hidden_layers - 1
    pairs = {
        "model.norm.weight": "model.final_norm.weight",
        "model.input_hidden_states_bias": "model.layers.0.res_scale.hidden_states_bias",
        f"model.layers.{last}.post_mlp_residual_scale.residual_bias": "model.res_scale.residual_bias",
        "model.layers.0.post_mlp_residual_scale.residual_scale": "model.layers.2.res_scale.residual_scale",
        "model.layers.0.post_attention_residual_scale.residual_scale": "model.layers.1.res_scale.residual_scale",
        "model.layers.1.input_layernorm.weight": "model.layers.2.input_norm.weight",
        "model.layers.1.post_attention_layernorm.weight": "model.layers.3.input_norm.weight",
        "model.layers.1.self_attn.qkv_proj.v_proj_delayed.weight": "model.layers.2.self_attn.qkv.val_proj2.weight",
        "model.layers.1.self_attn.qkv_proj.conv_qk_grouped.weight": "model.layers.2.self_attn.qkv.conv_qk.1.weight",
        "model.layers.1.self_attn.qk_norm.temp": "model.layers.2.self_attn.qkv.temp",
        "model.layers.1.mlp.gate.router_mlp.out_proj.weight": "model.layers.3.zaya_block.router.router_mlp.4.weight",
        "model.layers.1.mlp.gate.router_states_scale": "model.layers.3.zaya_block.router.router_states_scale",
    }
    for theirs, legacy in pairs.items():
        np.testing.assert_array_equal(new[theirs], old[legacy], err_msg=legacy)
    for expert in range(config.num_experts):
        for fused, single in (("gate_up_proj", "linear_fc1"), ("down_proj", "linear_fc2")):
            legacy = f"model.layers.3.zaya_block.experts.local_experts.{expert}.{single}.weight"
            np.testing.assert_array_equal(new[f"model.layers.1.mlp.experts.{fused}"][expert], old[legacy])


def test_a_legacy_folder_is_loaded_as_it_is(tmp_path):
    config, variables = CONFIGS["everything"], random_variables(CONFIGS["everything"])
    save_huggingface(tmp_path / "theirs", config, variables)
    convert(tmp_path / "theirs", tmp_path / "legacy", "legacy", max_shard_bytes=20_000)
    again, loaded = load_huggingface(tmp_path / "legacy")
    assert again == config
    assert_identical(variables, loaded)
