"""The architecture's choices: each changes what it says, and what would change nothing is refused.

That every choice still is one function of the Layout, cache or no cache, is in test_one_function.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import built, fresh_state, random_tokens, random_variables, small_config
from zaya_jax.architecture import Layout, Zaya, ZayaConfig
from zaya_jax.architecture.config import PARTS
from zaya_jax.interop.families.configuration import config_to_huggingface
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import make_train_step

WIDE = dict(dtype="float64", param_dtype="float64")


def logits_of(config: ZayaConfig, variables: dict, layout: Layout) -> np.ndarray:
    return np.asarray(jax.jit(Zaya(config).apply)(variables, layout).logits)


def llama(config: ZayaConfig, params: dict, tokens: np.ndarray) -> np.ndarray:
    """A plain pre-norm transformer with grouped queries and SwiGLU, written from scratch for one text: its logits."""
    heads, kv_heads, dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    n, half = len(tokens), config.rotary_dim // 2

    def norm(x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * weight

    def rotated(x):
        angle = np.arange(n)[:, None] / config.rope_theta ** (np.arange(half) / half)
        out = x.copy()
        turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * np.exp(1j * angle)[:, None]
        out[..., :half], out[..., half : 2 * half] = turned.real, turned.imag
        return out

    x = params["embed_tokens"][tokens]
    for i in range(config.num_hidden_layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        attention = {name: part["kernel"] for name, part in layer["self_attn"].items()}
        h = norm(x, layer["input_layernorm"]["weight"])
        q, k, v = ((h @ attention[f"{name}_proj"]).reshape(n, -1, dim) for name in "qkv")
        q, k = rotated(q), np.repeat(rotated(k), heads // kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf))
        mixed = np.einsum(
            "hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), np.repeat(v, heads // kv_heads, axis=1)
        )
        x = x + mixed.reshape(n, -1) @ attention["o_proj"]
        h = norm(x, layer["post_attention_layernorm"]["weight"])
        gate, up = np.split(h @ layer["mlp"]["gate_up_proj"], 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer["mlp"]["down_proj"]
    return norm(x, params["norm"]["weight"]) @ params["embed_tokens"].T


def test_gqa_dense_without_scaling_is_a_plain_transformer(x64):
    config = small_config(attention="gqa", feed_forward="dense", residual_scaling=False, **WIDE)
    variables = random_variables(config)
    tokens = random_tokens(config, 2, 9)
    logits = logits_of(config, variables, built(Layout.causal, tokens))
    params = jax.tree.map(np.asarray, variables["params"])
    for row in range(2):
        # the model's rotary angles are float32 whatever it computes in
        np.testing.assert_allclose(logits[row], llama(config, params, tokens[row]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("part", ["depthwise", "grouped"])
def test_a_convolution_that_is_off_is_the_identity(part, x64):
    taps = "cca_time0" if part == "depthwise" else "cca_time1"
    with_it, without = small_config(**WIDE, **{taps: 1}), small_config(**WIDE, **{f"cca_{part}": False})
    variables = random_variables(with_it)
    attention = dict(variables["params"]["layers"]["self_attn"])
    kernel, bias = (attention.pop(f"conv_qk_{part}_{name}") for name in ("kernel", "bias"))
    lean = {**variables["params"], "layers": {**variables["params"]["layers"], "self_attn": attention}}
    identity = (
        jnp.ones_like(kernel) if part == "depthwise" else jnp.broadcast_to(jnp.eye(kernel.shape[-1]), kernel.shape)
    )
    attention = {**attention, f"conv_qk_{part}_kernel": identity, f"conv_qk_{part}_bias": jnp.zeros_like(bias)}
    whole = {**variables["params"], "layers": {**variables["params"]["layers"], "self_attn": attention}}
    layout = built(Layout.tidar, random_tokens(with_it, 2, 9), block_size=3, offset=1)
    a = logits_of(without, {**variables, "params": lean}, layout)
    b = logits_of(with_it, {**variables, "params": whole}, layout)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_a_router_without_state_is_one_whose_scales_are_zero(x64):
    config = small_config(**WIDE)
    variables = random_variables(config)
    params = dict(variables["params"])
    scales = params.pop("router_states_scale")
    layout = built(Layout.causal, random_tokens(config, 2, 9))
    a = logits_of(config.replace(router_state=False), {**variables, "params": params}, layout)
    zero = {**params, "router_states_scale": jnp.zeros_like(scales)}
    b = logits_of(config, {**variables, "params": zero}, layout)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_succession_along_the_row_spares_the_clean_rows_and_no_draft(x64):
    """The pitfall this project is built around: nothing in the AR half shows that the drafts' history is wrong."""
    config = small_config(**WIDE)
    variables = random_variables(config)
    layout = built(Layout.tidar, random_tokens(config, 2, 12), block_size=4, offset=1)
    right, unaware = (logits_of(config.replace(succession=name), variables, layout) for name in ("text", "row"))
    np.testing.assert_array_equal(right[:, :12], unaware[:, :12])
    first_slots = np.abs(right - unaware)[:, 12::4].max(-1)
    assert (first_slots > 1e-3).all()


@pytest.mark.parametrize(
    "changes",
    [dict(attention="gqa", feed_forward="dense"), pytest.param(dict(router_state=False), marks=pytest.mark.slow)],
)
def test_ablations_train(changes):
    config = small_config(**changes)
    model, optimizer = Zaya(config), OptimizerConfig(learning_rate=1e-2)
    state = fresh_state(random_variables(config, scale=0.1), optimizer)
    step = make_train_step(model, Objective("tidar", 3), optimizer)
    batch = {"tokens": random_tokens(config, 2, 12), "document": np.zeros((2, 12), np.int32)}
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch, 1.0)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]
    assert ("expert_load_clean" in metrics) == (config.feed_forward == "moe")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(attention="mla"), r"ZayaConfig\.attention: got 'mla', may be 'cca' or 'gqa'"),
        (dict(feed_forward="mlp"), r"ZayaConfig\.feed_forward: got 'mlp', may be 'moe' or 'dense'"),
        (dict(succession="memory"), r"ZayaConfig\.succession: got 'memory', may be 'text' or 'row'"),
        (dict(cca_mean=1), r"ZayaConfig\.cca_mean: got 1, may be True or False"),
        (dict(attention="gqa", cca_grouped=False), r"ZayaConfig\.cca_grouped: got False, may be True with attention"),
        (dict(attention="gqa", succession="row"), r"ZayaConfig\.succession: got 'row', may be 'text' where"),
        (dict(feed_forward="dense", router_state=False), r"ZayaConfig\.router_state: got False, may be True with"),
        (dict(qk_norm="l2"), r"ZayaConfig\.qk_norm: got 'l2', may be one of \('unit', 'rms', 'none'\)"),
        (dict(output_bias=False), r"ZayaConfig\.output_bias: got False, may be True where attention_bias is False"),
        (dict(mlp_bias=True), r"ZayaConfig\.mlp_bias: got True, may be False with feed_forward 'moe'"),
        (dict(attention_bias="qkv"), r"ZayaConfig\.attention_bias: got 'qkv', may be True or False"),
        (
            dict(rope_scaling="yarn"),
            r"ZayaConfig\.rope_scaling: got 'yarn', may be one of \('none', 'linear', 'llama3'\)",
        ),
        (dict(rope_factor=2.0), r"ZayaConfig\.rope_factor: got 2\.0, may be 1\.0 with rope_scaling 'none'"),
        (dict(rope_scaling="linear", rope_factor=0), r"ZayaConfig\.rope_factor: got 0, may be a number above 0"),
        (
            dict(rope_scaling="linear", rope_original_max_positions=64),
            r"ZayaConfig\.rope_original_max_positions: got 64, may be 8192 with rope_scaling 'linear'",
        ),
        (
            dict(rope_scaling="llama3", rope_low_freq_factor=4),
            r"ZayaConfig\.rope_high_freq_factor: got 4\.0, may be above rope_low_freq_factor \(4\)",
        ),
        (
            dict(rope_scaling="llama3", rope_original_max_positions=8.5),
            r"ZayaConfig\.rope_original_max_positions: got 8\.5, may be an integer",
        ),
        (dict(mask_token_id=-2), r"ZayaConfig\.mask_token_id: got -2, may be in \[0, 17\), or -1 for none"),
    ],
)
def test_what_would_change_nothing_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


def test_replacing_the_attention_takes_its_norm_along():
    cca = small_config()
    gqa = cca.replace(attention="gqa")
    assert (cca.qk_norm, gqa.qk_norm, gqa.replace(attention="cca").qk_norm) == ("unit", "none", "unit")
    assert cca.replace(attention="gqa", qk_norm="unit").qk_norm == "unit"


def test_a_stored_configuration_may_say_qk_norm_in_two_words():
    assert [small_config(qk_norm=word).qk_norm for word in (True, False)] == ["unit", "none"]


@pytest.mark.parametrize("part", PARTS)
def test_an_ablation_is_not_written_as_zaya(part):
    changes = {
        "attention": dict(attention="gqa"),
        "feed_forward": dict(feed_forward="dense"),
        "succession": dict(succession="row"),
        "qk_norm": dict(qk_norm="rms"),
        "output_bias": dict(attention_bias=True, output_bias=False),
        "mlp_bias": dict(feed_forward="dense", mlp_bias=True),
        "rope_scaling": dict(rope_scaling="linear", rope_factor=2.0),
    }.get(part, {part: False})
    with pytest.raises(ValueError, match=r"ZayaConfig: \w+: got .*, may be .* in ZAYA's format"):
        config_to_huggingface(small_config(**changes))
