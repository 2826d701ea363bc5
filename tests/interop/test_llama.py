"""Llama's relatives: config.json in and out, names and numbers of published sizes, and what is refused.

That the numbers computed are transformers', and that folders come back bit for bit, is in tests/parity.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import random_variables, small_config
from zaya_jax.architecture import Layout, Zaya, ZayaConfig
from zaya_jax.architecture.config import FULL_ATTENTION, NO_MASK, SLIDING_ATTENTION
from zaya_jax.costs.flops import parameter_count
from zaya_jax.interop import abstract_tensors, config_from_huggingface, config_to_huggingface
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.families.table import family_of

PLAIN = dict(attention="gqa", feed_forward="dense", residual_scaling=False, partial_rotary_factor=1.0)
# The config.json of released models, their fields that matter here, and their sizes as their cards or files have them.
SMOLLM2 = dict(
    model_type="llama", vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, rope_theta=100_000, rms_norm_eps=1e-5, tie_word_embeddings=True,
    max_position_embeddings=8192, torch_dtype="bfloat16",
)  # fmt: skip
LLAMA_32_1B = dict(
    model_type="llama", vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
    num_attention_heads=32, num_key_value_heads=8, head_dim=64, rope_theta=500_000.0, rms_norm_eps=1e-5,
    tie_word_embeddings=True, max_position_embeddings=131_072, eos_token_id=[128_001, 128_008, 128_009],
    rope_scaling=dict(
        rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    ),
)  # fmt: skip
QWEN3_06B = dict(
    model_type="qwen3", vocab_size=151_936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
    num_attention_heads=16, num_key_value_heads=8, head_dim=128, rope_theta=1_000_000, tie_word_embeddings=True,
    sliding_window=None, use_sliding_window=False, max_window_layers=28,
)  # fmt: skip
QWEN25_05B = dict(
    model_type="qwen2", vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, rope_theta=1e6, tie_word_embeddings=True, sliding_window=32_768,
    use_sliding_window=False,
)  # fmt: skip
MISTRAL_7B = dict(
    model_type="mistral", vocab_size=32_000, hidden_size=4096, intermediate_size=14_336, num_attention_heads=32,
    num_hidden_layers=32, num_key_value_heads=8, sliding_window=4096, max_position_embeddings=32_768,
)  # fmt: skip


@pytest.mark.parametrize(
    ("values", "tensors", "parameters"),
    [
        (SMOLLM2, 272, 134_515_008),
        (LLAMA_32_1B, 146, 1_235_814_400),
        (QWEN3_06B, 310, 596_049_920),
        (QWEN25_05B, 290, 494_032_768),
        (MISTRAL_7B, 291, 7_241_732_096),
    ],
)
def test_released_models_have_their_tensors_and_sizes(values, tensors, parameters):
    config = config_from_huggingface(values)
    found = abstract_tensors(config)
    assert len(found) == tensors
    assert sum(int(np.prod(shape)) for shape, _ in found.values()) == parameters == parameter_count(config).total


@st.composite
def configs(draw) -> ZayaConfig:
    """Models that one of the relatives is."""
    kind = draw(st.sampled_from(["llama", "mistral", "qwen2", "qwen3"]))
    layers, heads = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    theta = draw(st.floats(1, 1e7))
    fields = dict(
        PLAIN, vocab_size=draw(st.integers(4, 99)), hidden_size=draw(st.integers(1, 64)), num_hidden_layers=layers,
        num_attention_heads=heads * draw(st.integers(1, 3)), num_key_value_heads=heads,
        head_dim=2 * draw(st.integers(1, 8)), moe_intermediate_size=draw(st.integers(1, 64)), rope_theta=theta,
        sliding_rope_theta=theta, rms_norm_eps=draw(st.floats(1e-8, 1e-2)), mask_token_id=draw(st.integers(-1, 3)),
        tie_word_embeddings=draw(st.booleans()), initializer_range=draw(st.floats(0, 1)),
        bos_token_id=draw(st.none() | st.integers(0, 3)), pad_token_id=draw(st.none() | st.integers(0, 3)),
        eos_token_id=draw(st.none() | st.integers(0, 3) | st.tuples(st.integers(0, 3), st.integers(0, 3))),
        param_dtype=draw(st.sampled_from(["float32", "bfloat16"])),
        rope_scaling=(scaling := draw(st.sampled_from(["none", "linear", "llama3"]))),
    )  # fmt: skip
    if scaling != "none":
        fields["rope_factor"] = draw(st.floats(0.5, 64))
    if scaling == "llama3":
        low = draw(st.floats(0.5, 4))
        fields.update(
            rope_low_freq_factor=low, rope_high_freq_factor=low + draw(st.floats(0.5, 4)),
            rope_original_max_positions=draw(st.integers(1, 9999)),
        )  # fmt: skip
    kinds = st.sampled_from([FULL_ATTENTION, SLIDING_ATTENTION])
    if kind == "llama":
        fields.update(attention_bias=draw(st.booleans()), mlp_bias=draw(st.booleans()))
    elif kind == "mistral":
        fields.update(layer_types=(SLIDING_ATTENTION,) * layers, sliding_window=draw(st.integers(1, 9)))
    else:
        fields["layer_types"] = tuple(draw(st.lists(kinds, min_size=layers, max_size=layers)))
        if SLIDING_ATTENTION in fields["layer_types"]:
            fields["sliding_window"] = draw(st.integers(1, 9))
        own = dict(attention_bias=True, output_bias=False) if kind == "qwen2" else dict(qk_norm="rms")
        fields.update(own)
        if kind == "qwen3":
            fields["attention_bias"] = draw(st.booleans())
    return ZayaConfig(**fields)


@given(configs())
def test_a_config_goes_out_and_comes_back(config):
    values = config_to_huggingface(config)
    assert values["model_type"] == family_of(config).name
    assert config_from_huggingface(values) == config
    if values["model_type"] == "mistral":
        assert values["sliding_window"] == config.sliding_window


REFUSED = {
    "another family": ({"model_type": "gemma3"}, "config.json: model_type: got 'gemma3', may be one of"),
    "yarn": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        r"config.json: rope_scaling.rope_type: got 'yarn', may be one of \('default', 'linear', 'llama3'\)",
    ),
    "dynamic, as of old": (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "config.json: rope_scaling.rope_type: got 'dynamic'",
    ),
    "an unknown key": (
        {"rope_parameters": {"rope_type": "default", "mrope_section": [1]}},
        "config.json: rope_parameters: got 'mrope_section', may be an object with some of",
    ),
    "rope by layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        "config.json: rope_parameters: got 'full_attention'",
    ),
    "no factor": ({"rope_scaling": {"rope_type": "linear"}}, "config.json: rope_scaling.factor: got None, may be a n"),
    "half rotated": ({"partial_rotary_factor": 0.5}, "config.json: rope_parameters.partial_rotary_factor: got 0.5"),
    "scaling true": ({"rope_scaling": True}, "config.json: rope_scaling: got True, may be null or an object"),
    "gelu": ({"hidden_act": "gelu"}, "config.json: hidden_act: got 'gelu', may be 'silu', the only one supported"),
    "quantized": (
        {"quantization_config": {"quant_method": "gptq"}}, "quantization_config: got 'gptq', may be null: quant",
    ),
    "experts": ({"num_local_experts": 8}, "config.json: num_local_experts: got 8, may be None"),
    "cap": ({"final_logit_softcapping": 30.0}, "config.json: final_logit_softcapping: got 30.0, may be None"),
    "dropout": ({"attention_dropout": 0.1}, "config.json: attention_dropout: got 0.1, may be 0"),
    "float64": ({"torch_dtype": "float64"}, "config.json: dtype: got 'float64', may be one of"),
    "sliding llama": (
        {"layer_types": ["sliding_attention"] * 32}, "config.json: layer_types: got .* may be a list of 32 of 'full_at",
    ),
    "layer list": (
        {"model_type": "qwen3", "layer_types": ["full_attention"]}, "config.json: layer_types: got .*, may be a list",
    ),
    "no window": (
        {"model_type": "qwen2", "num_hidden_layers": 1, "layer_types": ["sliding_attention"]},
        "config.json: sliding_window: got None, may be a number where layers slide",
    ),
    "window": ({"model_type": "mistral", "sliding_window": "wide"}, "config.json: sliding_window: got 'wide'"),
    "heads": ({"num_attention_heads": 0}, "config.json: num_attention_heads: got 0, may be an integer of at least 1"),
    "odd head": ({"head_dim": 5, "num_attention_heads": 2}, "ZayaConfig.partial_rotary_factor: got 1.0"),
    "bias": ({"attention_bias": "yes"}, "config.json: attention_bias: got 'yes', may be true or false"),
    "eos": ({"eos_token_id": [1, "2"]}, r"config.json: eos_token_id: got \[1, '2'\], may be a token id, a list"),
    "mask": ({"zaya_jax": {"mask_token_id": 32_000}}, r"ZayaConfig.mask_token_id: got 32000, may be in \[0, 32000\)"),
    "ours": ({"zaya_jax": {"colour": "red"}}, "config.json: zaya_jax: got 'colour'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case):
    values, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        config_from_huggingface({"model_type": "llama", **values})
    assert "\n" not in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["rope_type", "a"]), inner, max_size=2),
    max_leaves=4,
)
FIELDS = [
    *(name for name in QWEN3_06B if name != "model_type"), "rope_scaling", "rope_parameters", "layer_types", "zaya_jax",
    "dtype", "eos_token_id", "mlp_bias", "attention_bias", "hidden_act", "original_max_position_embeddings",
]  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from([LLAMA_32_1B, QWEN3_06B, MISTRAL_7B]), st.sampled_from(FIELDS), JSON)
def test_any_value_of_a_field_is_read_or_refused_in_one_line(values, field, value):
    try:
        found = config_from_huggingface({**values, field: value})
    except ValueError as error:
        found = str(error)
    assert isinstance(found, ZayaConfig) or "\n" not in found


@pytest.mark.parametrize(
    "changes",
    [
        dict(qk_norm="unit"),
        dict(partial_rotary_factor=0.5),
        dict(lm_head_bias=True),
        dict(qk_norm="rms", attention_bias=True, output_bias=False),
        dict(layer_types=(FULL_ATTENTION, SLIDING_ATTENTION), sliding_window=4),
        dict(layer_types=(SLIDING_ATTENTION,) * 2, sliding_window=4, sliding_rope_theta=1.0),
    ],
)
def test_what_no_family_is_is_not_written(changes):
    with pytest.raises(ValueError, match="ZayaConfig: attention: got 'gqa', may be 'cca' in ZAYA's format"):
        config_to_huggingface(small_config(**{**PLAIN, **changes}))


@pytest.mark.parametrize("tied", [True, False])
def test_a_mask_token_of_its_own_leaves_the_others_as_they_are(tied, x64):
    config = small_config(
        **PLAIN, tie_word_embeddings=tied, mask_token_id=NO_MASK, dtype="float64", param_dtype="float64"
    )
    variables = random_variables(config)
    layout = Layout.causal(np.arange(10, dtype=np.int32)[None])
    before = jax.jit(Zaya(config).apply)(variables, layout).logits
    wider, more = add_mask_token(config, variables)
    assert (wider.vocab_size, wider.mask_token_id) == (18, 17)
    after = jax.jit(Zaya(wider).apply)(more, layout).logits
    np.testing.assert_allclose(after[..., :17], before, rtol=0, atol=1e-12)
    np.testing.assert_allclose(after[..., 17], before.mean(-1), rtol=0, atol=1e-12)
    drafts = jax.jit(Zaya(wider).apply)(more, Layout.tidar(layout.tokens, 5, 0)).logits
    assert bool(jnp.isfinite(drafts).all())
    with pytest.raises(ValueError, match=r"ZayaConfig\.mask_token_id: got 17, may be none where one is to be added"):
        add_mask_token(wider, more)


def test_an_id_of_the_vocabulary_may_be_the_mask_token():
    config = small_config(mask_token_id=NO_MASK)
    chosen, same = add_mask_token(config, {"params": {}}, 3)
    assert (chosen.mask_token_id, chosen.vocab_size, same) == (3, 17, {"params": {}})
    with pytest.raises(ValueError, match=r"ZayaConfig\.mask_token_id: got 17, may be in"):
        add_mask_token(config, {"params": {}}, 17)
