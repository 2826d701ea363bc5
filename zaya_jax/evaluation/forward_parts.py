"""Where a forward's time goes, and what a plain matrix product over the same weights would take.

Both answer the question after a sampler's speed: is a forward over n rows expensive because of this code, or because
n query tokens meet more weights (a mixture of experts touches more experts) and more arithmetic than one does?
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture import MASK, Layout, Zaya, ZayaConfig, init_cache
from zaya_jax.costs.flops import parameter_count
from zaya_jax.costs.roofline import experts_touched
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, forward_cost, rows_of
from zaya_jax.sampling.strategies.base import Plan
from zaya_jax.timing import medians

Array = jax.Array


def gemm_cost(
    config: ZayaConfig, row_counts: list[int], batch: int = 1, steps: int = 8, repeats: int = 5
) -> dict[str, dict[int, float]]:
    """Median milliseconds of nothing but matrix products, by query tokens of a sequence.

    "active": every row against the weights one token's forward reads, all layers. "touched": rows against the shared
    weights, and split evenly over as many experts as uniform routing touches. No attention over the cache, no
    convolutions, no nonlinearity: a floor for a forward, in the weights' dtype.
    """
    count, layers, width = parameter_count(config), config.num_hidden_layers, config.hidden_size
    shared = max(1, (count.active_without_embedding - count.active_experts) // layers // width)
    expert = max(1, count.active_experts // layers // width)
    key, dtype = jax.random.key(0), jnp.dtype(config.param_dtype)
    common = jax.random.normal(key, (layers, width, shared)).astype(dtype)
    every = jax.random.normal(key, (layers, config.num_experts, width, expert)).astype(dtype)

    def looped(body: Callable[[Array, Array], Array], x: Array) -> Callable[[], object]:
        @jax.jit
        def run(x: Array, common: Array, every: Array) -> Array:
            def layer(x: Array, weights: tuple[Array, Array]) -> tuple[Array, None]:
                out = (x @ weights[0]).sum() + body(x, weights[1])
                return x + (0 * out).astype(x.dtype), None  # the next product waits for this one

            return jax.lax.fori_loop(0, steps, lambda _, x: jax.lax.scan(layer, x, (common, every))[0], x)

        return lambda: run(x, common, every)

    calls: dict[str, Callable[[], object]] = {}
    for rows in row_counts:
        tokens = rows * batch
        x = jax.random.normal(key, (tokens, width)).astype(dtype)
        touched = max(1, min(tokens, round(experts_touched(config.num_experts, tokens))))
        each = -(-tokens // touched)
        calls[f"active {rows}"] = looped(lambda x, w: (x @ w[0]).sum(), x)
        calls[f"touched {rows}"] = looped(functools.partial(_by_expert, touched, each), x)
    times = medians(calls, repeats, "plain products")
    return {kind: {rows: times[f"{kind} {rows}"] / steps for rows in row_counts} for kind in ("active", "touched")}


def _by_expert(touched: int, each: int, x: Array, experts: Array) -> Array:
    """The first `each` rows against every one of the first `touched` experts."""
    return jnp.stack([(x[:each] @ experts[i]).sum() for i in range(touched)]).sum()


def forward_parts(
    model: Zaya, variables: Any, plan: Plan, batch: int = 1, context: int = 64, steps: int = 16, repeats: int = 5
) -> dict[str, float]:
    """Milliseconds of a single_pass (or autoregressive) step by part: each part alone, in a loop, and the rest.

    Parts: the whole backbone, the head for the rows whose logits are read, and what is left of the step (distributions,
    draws, commit, bookkeeping). The backbone is also run without its experts (one expert of width 1, the router kept)
    and, in the difference, the experts.
    """
    small = model.config.replace(num_experts=1, moe_intermediate_size=1)
    lean = _with_small_experts(variables, small)
    block = plan.block_size
    rows = (batch, block)
    layout = Layout.verify_and_draft(
        jax.random.randint(jax.random.key(0), rows, 0, model.config.vocab_size), context, plan.anchors or None, block
    )
    shape = (steps, *layout.tokens.shape)
    texts = jax.random.randint(jax.random.key(1), shape, 0, model.config.vocab_size)  # others each time: `forward_cost`
    cache = init_cache(model.config, batch, context + 2 * block)
    cache = cache.replace(length=jnp.full((batch,), context, jnp.int32))
    read = jnp.ones((batch, block + (block - 1 if plan.anchors else 0), model.config.hidden_size), model.config.dtype)

    def backbone(model: Zaya, variables: Any) -> Callable[[], object]:
        def body(i, carry):
            cache, nudge = carry
            nudged = layout.replace(tokens=jnp.where(layout.tokens == MASK, MASK, texts[i] + nudge))
            hidden, pending, _ = cast(tuple, model.apply(variables, nudged, cache, method="backbone"))
            # nothing is committed, and the next forward depends on this one
            return pending.commit(jnp.zeros((batch,), jnp.int32)), (0 * hidden[0, 0, 0]).astype(jnp.int32)

        run = jax.jit(lambda cache: jax.lax.fori_loop(0, steps, body, (cache, jnp.int32(0))))
        return lambda: run(cache)

    def head() -> Callable[[], object]:
        def body(_, x):
            return x + 0 * cast(Array, model.apply(variables, x, method="head")).max()

        run = jax.jit(lambda x: jax.lax.fori_loop(0, steps, body, x))
        return lambda: run(read)

    calls = {
        "backbone": backbone(model, variables),
        "lean": backbone(Zaya(small, model.execution), lean),
        "head": head(),
    }
    times = {name: ms / steps for name, ms in medians(calls, repeats, "parts").items()}
    whole = forward_cost(model, variables, [plan], batch, context, steps, repeats)[plan]
    return {
        "whole step": whole,
        "attention, convolutions, router, norms": times["lean"],
        "experts": times["backbone"] - times["lean"],
        "head": times["head"],
        "sampling and bookkeeping": whole - times["backbone"] - times["head"],
    }


def _with_small_experts(variables: Any, small: ZayaConfig) -> Any:
    """The same weights, but one expert of width 1 a layer (and the router's classes to match)."""
    shapes = jax.eval_shape(Zaya(small).init, jax.random.key(0), Layout.causal(jnp.zeros((1, 2), jnp.int32)))
    return jax.tree.map(
        lambda x, like: x[tuple(slice(0, n) for n in like.shape)], {k: variables[k] for k in shapes}, shapes
    )


def row_plans(block_sizes: tuple[int, ...] = (4, 8)) -> dict[int, Plan]:
    """The forwards of a latency curve, by query tokens: one of AR; a block verified alone; few and all anchors."""
    plans = [AUTOREGRESSIVE]
    for size in block_sizes:
        lists = ((), (1,), (1, size // 2), tuple(range(1, size + 1)))
        plans += [Plan("single_pass", size, anchors, "autoregressive") for anchors in lists]
    by_rows: dict[int, Plan] = {}
    for plan in plans:
        by_rows.setdefault(rows_of(plan), plan)
    return dict(sorted(by_rows.items()))


def ratios(cost: dict[int, float]) -> dict[int, float]:
    """Over the cost of one query token."""
    return {rows: float(np.round(ms / cost[1], 3)) for rows, ms in cost.items()}
