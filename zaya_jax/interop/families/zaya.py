"""ZAYA1's tensors as transformers (5.23.0, `models/zaya`) names them: docs/architecture.md#parameters-and-names."""

from collections.abc import Iterator

from zaya_jax.architecture import ZayaConfig
from zaya_jax.interop.formats.names import (  # fmt: skip
    DEPTHWISE,
    EMBEDDING,
    EXPERTS,
    GROUPED,
    HEAD,
    LINEAR,
    SAME,
    Entry,
    Lay,
    layered,
    whole,
)


def entries(config: ZayaConfig) -> list[Entry]:
    """Every parameter and buffer of a model of this config; together they are all of its variables."""
    return [*_whole(config), *_attention(config), *_mixture(config), *_vectors(config)]


def _whole(config: ZayaConfig) -> Iterator[Entry]:
    yield whole("embed_tokens", EMBEDDING)
    for name in ("input_hidden_states_scale", "input_hidden_states_bias"):
        yield whole(name, f"model.{name}")
    yield whole("norm/weight", "model.norm.weight")
    # The first layer has no router state to scale: a stack of one row fewer than layers.
    scales = tuple(f"model.layers.{i}.mlp.gate.router_states_scale" for i in range(1, config.num_hidden_layers))
    yield Entry(("params", "router_states_scale"), scales, stacked=1)
    if not config.tie_word_embeddings:
        yield whole("lm_head/kernel", HEAD, LINEAR)
    if config.lm_head_bias:
        yield whole("lm_head_bias", "lm_head.bias")


def _layer(config: ZayaConfig, path: str, name: str, lay: Lay = SAME, collection: str = "params") -> Entry:
    return layered(config, path, "model.layers.{}." + name, lay, collection=collection)


def _attention(config: ZayaConfig) -> Iterator[Entry]:
    for projection in ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed", "o_proj"):
        theirs = "self_attn.o_proj" if projection == "o_proj" else f"self_attn.qkv_proj.{projection}"
        yield _layer(config, f"self_attn/{projection}/kernel", f"{theirs}.weight", LINEAR)
        if config.attention_bias:
            yield _layer(config, f"self_attn/{projection}/bias", f"{theirs}.bias")
    for convolution, lay in (("conv_qk_depthwise", DEPTHWISE), ("conv_qk_grouped", GROUPED)):
        yield _layer(config, f"self_attn/{convolution}_kernel", f"self_attn.qkv_proj.{convolution}.weight", lay)
        yield _layer(config, f"self_attn/{convolution}_bias", f"self_attn.qkv_proj.{convolution}.bias")
    yield _layer(config, "self_attn/temp", "self_attn.qk_norm.temp")


def _mixture(config: ZayaConfig) -> Iterator[Entry]:
    yield _layer(config, "mlp/gate/down_proj/kernel", "mlp.gate.down_proj.weight", LINEAR)
    yield _layer(config, "mlp/gate/down_proj/bias", "mlp.gate.down_proj.bias")
    yield _layer(config, "mlp/gate/norm/weight", "mlp.gate.router_mlp.norm.weight")
    for linear in ("fc1", "fc2"):
        yield _layer(config, f"mlp/gate/{linear}/kernel", f"mlp.gate.router_mlp.{linear}.weight", LINEAR)
        yield _layer(config, f"mlp/gate/{linear}/bias", f"mlp.gate.router_mlp.{linear}.bias")
    yield _layer(config, "mlp/gate/out_proj/kernel", "mlp.gate.router_mlp.out_proj.weight", LINEAR)
    yield _layer(config, "mlp/gate/biases", "mlp.gate.balancing_biases", collection="balancing")
    for weights in ("gate_up_proj", "down_proj"):
        yield _layer(config, f"mlp/{weights}", f"mlp.experts.{weights}", EXPERTS)


def _vectors(config: ZayaConfig) -> Iterator[Entry]:
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield _layer(config, f"{norm}/weight", f"{norm}.weight")
    for sublayer in ("post_attention_residual_scale", "post_mlp_residual_scale"):
        for vector in ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias"):
            yield _layer(config, f"{sublayer}/{vector}", f"{sublayer}.{vector}")
