"""One table between our parameters and transformers' tensors, read by both import and export.

Ours are stacked along a leading layer axis (`nn.scan`) and lie as JAX multiplies them; transformers' (5.23.0,
`models/zaya`) are one tensor a layer in torch's [out, in] order. `entries(config)` lists every pair once: where ours
stands, what theirs is called, and how one lies in terms of the other. Names and shapes: zaya1.md section 2.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zaya_jax.architecture import Layout, Zaya, ZayaConfig

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Lay:
    """How one layer's tensor lies: functions between the two orders, on NumPy and JAX arrays alike."""

    to_huggingface: Callable[[Any], Any]
    from_huggingface: Callable[[Any], Any]


SAME = Lay(lambda x: x, lambda x: x)
# torch Linear: weight [out, in]; ours: kernel [in, out]
LINEAR = Lay(lambda x: x.T, lambda x: x.T)
# torch Conv1d with one channel a group: [channels, 1, taps]; ours: [taps, channels]. No tap is flipped: both correlate.
DEPTHWISE = Lay(lambda x: x.T[:, None, :], lambda x: x[:, 0, :].T)
# torch Conv1d with one head a group: [head * d_out, d_in, taps]; ours: [taps, head, d_in, d_out], d_in = d_out.
GROUPED = Lay(
    lambda x: x.transpose(1, 3, 2, 0).reshape(x.shape[1] * x.shape[3], x.shape[2], x.shape[0]),
    lambda x: x.reshape(-1, x.shape[1], x.shape[1], x.shape[2]).transpose(3, 0, 2, 1),
)
# experts: torch [expert, out, in] (gate first in gate_up's out); ours: [expert, in, out]
EXPERTS = Lay(lambda x: x.swapaxes(1, 2), lambda x: x.swapaxes(1, 2))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our arrays and the tensors transformers keeps it in."""

    path: Path  # in variables, e.g. ("params", "layers", "self_attn", "q_proj", "kernel")
    name: str  # theirs; "{}" stands for the layer
    lay: Lay = SAME
    first_layer: int | None = None  # None: not per layer; else the layer of the stack's first row

    def names(self, config: ZayaConfig) -> list[str]:
        """Their tensors' names, in the order of our leading axis (one name when we do not stack)."""
        if self.first_layer is None:
            return [self.name]
        return [self.name.format(layer) for layer in range(self.first_layer, config.num_hidden_layers)]


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def entries(config: ZayaConfig) -> list[Entry]:
    """Every parameter and buffer of a model of this config; together they are all of its variables."""
    return [*_whole(config), *_attention(config), *_mixture(), *_vectors()]


def _whole(config: ZayaConfig) -> Iterator[Entry]:
    yield Entry(("params", "embed_tokens"), EMBEDDING)
    for name in ("input_hidden_states_scale", "input_hidden_states_bias"):
        yield Entry(("params", name), f"model.{name}")
    yield Entry(("params", "norm", "weight"), "model.norm.weight")
    # The first layer has no router state to scale: a stack of one row fewer than layers.
    yield Entry(("params", "router_states_scale"), "model.layers.{}.mlp.gate.router_states_scale", first_layer=1)
    if not config.tie_word_embeddings:
        yield Entry(("params", "lm_head", "kernel"), HEAD, LINEAR)
    if config.lm_head_bias:
        yield Entry(("params", "lm_head_bias"), "lm_head.bias")


def _layer(path: str, name: str, lay: Lay = SAME, collection: str = "params") -> Entry:
    """`path` with slashes, behind the scanned layers."""
    return Entry((collection, "layers", *path.split("/")), "model.layers.{}." + name, lay, first_layer=0)


def _attention(config: ZayaConfig) -> Iterator[Entry]:
    for projection in ("q_proj", "k_proj", "v_proj_current", "v_proj_delayed", "o_proj"):
        theirs = "self_attn.o_proj" if projection == "o_proj" else f"self_attn.qkv_proj.{projection}"
        yield _layer(f"self_attn/{projection}/kernel", f"{theirs}.weight", LINEAR)
        if config.attention_bias:
            yield _layer(f"self_attn/{projection}/bias", f"{theirs}.bias")
    for convolution, lay in (("conv_qk_depthwise", DEPTHWISE), ("conv_qk_grouped", GROUPED)):
        yield _layer(f"self_attn/{convolution}_kernel", f"self_attn.qkv_proj.{convolution}.weight", lay)
        yield _layer(f"self_attn/{convolution}_bias", f"self_attn.qkv_proj.{convolution}.bias")
    yield _layer("self_attn/temp", "self_attn.qk_norm.temp")


def _mixture() -> Iterator[Entry]:
    yield _layer("mlp/gate/down_proj/kernel", "mlp.gate.down_proj.weight", LINEAR)
    yield _layer("mlp/gate/down_proj/bias", "mlp.gate.down_proj.bias")
    yield _layer("mlp/gate/norm/weight", "mlp.gate.router_mlp.norm.weight")
    for linear in ("fc1", "fc2"):
        yield _layer(f"mlp/gate/{linear}/kernel", f"mlp.gate.router_mlp.{linear}.weight", LINEAR)
        yield _layer(f"mlp/gate/{linear}/bias", f"mlp.gate.router_mlp.{linear}.bias")
    yield _layer("mlp/gate/out_proj/kernel", "mlp.gate.router_mlp.out_proj.weight", LINEAR)
    yield _layer("mlp/gate/biases", "mlp.gate.balancing_biases", collection="balancing")
    for weights in ("gate_up_proj", "down_proj"):
        yield _layer(f"mlp/{weights}", f"mlp.experts.{weights}", EXPERTS)


def _vectors() -> Iterator[Entry]:
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield _layer(f"{norm}/weight", f"{norm}.weight")
    for sublayer in ("post_attention_residual_scale", "post_mlp_residual_scale"):
        for vector in ("hidden_states_scale", "hidden_states_bias", "residual_scale", "residual_bias"):
            yield _layer(f"{sublayer}/{vector}", f"{sublayer}.{vector}")


def abstract_variables(config: ZayaConfig) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of our variables by path, by `jax.eval_shape`: nothing is allocated."""
    variables = jax.eval_shape(
        lambda key, tokens: Zaya(config).init(key, Layout.causal(tokens)),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1, 1), jnp.int32),
    )
    return cast(dict[Path, jax.ShapeDtypeStruct], traverse_util.flatten_dict(variables))


def abstract_tensors(config: ZayaConfig) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The tensors of transformers' checkpoint of this config: name -> (shape, dtype). Nothing is allocated.

    A tied head is not among them (it is the embedding); the balancing biases, float32 buffers, are. ZAYA1-8B: 1,283
    tensors, of which 40 are buffers.
    """
    ours = abstract_variables(config)
    tensors = {}
    for entry in entries(config):
        array = ours[entry.path]
        shape = array.shape if entry.first_layer is None else array.shape[1:]
        theirs = jax.eval_shape(entry.lay.to_huggingface, jax.ShapeDtypeStruct(shape, array.dtype))
        for name in entry.names(config):
            tensors[name] = (tuple(theirs.shape), np.dtype(array.dtype))
    return tensors
