"""Weights and cache in one array a layer, for decoding.

Stacked along a leading axis, as training wants them, a layer's matrices, keys and values are copied out of the stack
before XLA's CPU or a GPU's library multiplies by them: a forward over one token then moves up to three times the bytes
that it must. In arrays of their own they are read where they lie. Attention's input projections are joined, so that a
dense layer is four products, and its last matrix, whose rows are long, is transposed: XLA's CPU reads it faster so.
Large experts have arrays of their own on a CPU, each a branch of a conditional, for it copies what it slices, too.

Results are those of the stacked form but for rounding. Compiling takes longer: every layer is in the program (40 of
them a minute, for a GPU: results/lower).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zaya_jax.architecture.attention.cca import PROJECTIONS
from zaya_jax.architecture.layers import ARRANGED
from zaya_jax.architecture.model import Zaya
from zaya_jax.errors import UserError

Array = jax.Array
OWN_EXPERT = 2**18  # parameters from which copying an expert takes a CPU longer than choosing a branch


def for_decoding(model: Zaya, variables: Any, release: bool = False, widen: bool = False) -> tuple[Zaya, Any]:
    """The same model, in the form in which it decodes fastest; as it is if that form is not to be had (`Shards`).

    Args:
      release: see `separate`.
      widen: compute bfloat16 weights in float32 on a CPU, which does so anyway, a matrix at a time: twice the bytes
        are held, none are converted at each forward, and nothing is rounded. The model's config says which it is.
    """
    if model.separate or model.shards.rules:
        return model, variables
    config, on_cpu = model.config, jax.default_backend() == "cpu"
    own_experts = (
        on_cpu and config.feed_forward == "moe" and model.execution.expert_backend == "auto"
        and 3 * config.hidden_size * config.moe_intermediate_size >= OWN_EXPERT
    )  # fmt: skip
    variables = separate(variables, release, own_experts)
    if widen and config.dtype == "bfloat16" and on_cpu:
        model = model.clone(config=config.replace(dtype="float32", param_dtype="float32"))
        variables = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, variables)
    return model.clone(separate=True), variables


def separate(variables: Any, release: bool = False, own_experts: bool = False) -> Any:
    """Variables of a `Zaya` for the same with `separate=True`.

    params/layers/... [L, ...] become params/layers/0/..., /1/..., and so the balancing biases; kernels of
    `PROJECTIONS` stand side by side in arranged/layers/0/self_attn/qkv [M, sum of features], a dense
    feed-forward's down_proj transposed in arranged/layers/0/mlp/down [M, F].

    Args:
      release: delete each stacked array once it is copied, so that both forms are never held at once; `variables`
        cannot be used afterwards.
      own_experts: each expert's matrices are arrays of their own, too: arranged/layers/0/mlp/experts/0/gate_up
        [M, 2 * F] and down [F, M], /1/..., for a CPU; a GPU multiplies by all experts at once.

    Raises:
      UserError: variables that are not stacked.
    """
    params = dict(variables["params"])
    layers = params.pop("layers")
    if "self_attn" not in layers:
        raise UserError("variables: got layers in separate arrays, may be a Zaya's with stacked layers")
    attention = dict(layers["self_attn"])
    names = [name for name in PROJECTIONS if name in attention]
    kernels = [attention[name]["kernel"] for name in names]
    for name in names:  # their biases and adapters stay where they are
        attention[name] = {part: leaf for part, leaf in attention[name].items() if part != "kernel"}
    arranged: dict[str, dict[str, list]] = {"self_attn": {"qkv": _each(_side_by_side, kernels, release)}}
    feed_forward = dict(layers["mlp"])
    if feed_forward["down_proj"].ndim == 3:  # [L, F, M]: no experts
        arranged["mlp"] = {"down": _each(jnp.transpose, [feed_forward.pop("down_proj")], release)}
    elif own_experts:
        arranged["mlp"] = {"experts": _experts(feed_forward, release)}
    out = dict(variables)
    out["params"] = {**params, "layers": _split({**layers, "self_attn": attention, "mlp": feed_forward}, release)}
    out[ARRANGED] = {"layers": _transpose(arranged)}
    for name, collection in variables.items():
        if name != "params" and "layers" in collection:
            out[name] = {**collection, "layers": _split(collection["layers"], release)}
    return out


def _experts(feed_forward: dict[str, Any], release: bool) -> list[dict[str, Any]]:
    """Takes the experts out of stacked [L, E, ...] parameters: an entry a layer, {"0": {"gate_up", "down"}, ...}."""
    stacks = {"gate_up": feed_forward.pop("gate_up_proj"), "down": feed_forward.pop("down_proj")}
    layers, experts = stacks["down"].shape[:2]
    out: list[dict[str, Any]] = [{str(e): {} for e in range(experts)} for _ in range(layers)]
    for name, stacked in stacks.items():
        for i in range(layers):
            for e in range(experts):
                out[i][str(e)][name] = jax.block_until_ready(_share_of_expert(i, e, stacked))
        if release and isinstance(stacked, jax.Array):
            stacked.delete()
    return out


@jax.jit
def _share_of_expert(i: int, e: int, stacked: Array) -> Array:
    return jax.lax.dynamic_slice(stacked, (i, e, *[0] * (stacked.ndim - 2)), (1, 1, *stacked.shape[2:]))[0, 0]


def _split(stacked: Any, release: bool) -> dict[str, Any]:
    return _transpose(jax.tree.map(lambda leaf: _each(_itself, [leaf], release), stacked))


def _transpose(lists: Any) -> dict[str, Any]:
    """A tree of lists, one entry a layer -> {"0": tree, "1": tree, ...}."""

    def of_layer(i: int) -> Any:
        return jax.tree.map(lambda parts: parts[i], lists, is_leaf=lambda x: isinstance(x, list))

    count = len(jax.tree.leaves(lists, is_leaf=lambda x: isinstance(x, list))[0])
    return {str(i): of_layer(i) for i in range(count)}


@functools.partial(jax.jit, static_argnums=0)
def _share(f, i: int, *stacked: Array) -> Array:
    """f of the i-th layer's share of stacked arrays: one program for all arrays of a shape."""
    return f(*(jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False) for x in stacked))


def _itself(part: Array) -> Array:
    return part


def _side_by_side(*parts: Array) -> Array:
    return jnp.concatenate(parts, axis=1)


def _each(f, stacked: list[Array], release: bool) -> list[Array]:
    """f of each layer's share of the stacked arrays."""
    out = jax.block_until_ready([_share(f, i, *stacked) for i in range(stacked[0].shape[0])])
    if release:
        for leaf in stacked:
            if isinstance(leaf, jax.Array):
                leaf.delete()
    return out
