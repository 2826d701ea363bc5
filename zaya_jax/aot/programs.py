"""The programs a model trains and samples with, ready to be compiled for devices that need not be here.

Nothing is computed and no weights exist: arguments are shapes, types and places. The functions are the ones that
training and `generate` call, not copies of them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from zaya_jax.architecture import Execution, Zaya, ZayaConfig
from zaya_jax.architecture.execution import DEFAULT
from zaya_jax.architecture.separate import separate
from zaya_jax.costs.flops import forward_flops, training_flops
from zaya_jax.costs.roofline import forward_traffic
from zaya_jax.errors import UserError
from zaya_jax.parallel import Placement
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.decoding import bucket
from zaya_jax.sampling.loop import Prompts, Sizes, run, start
from zaya_jax.sampling.options import options_of, plan_of
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_state, init_variables, make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and what to compile it for."""

    jitted: Any
    arguments: tuple
    static: dict[str, Any]
    flops: float  # of one step, all devices together, by `zaya_jax.costs.flops`
    traffic: float | None  # bytes one step must at least move (decoding); None for training
    execution: Execution  # how the model in it computes

    def lower(self, platform: str) -> Any:
        """Traced and lowered for "rocm" or "cuda", whatever this machine has."""
        return self.jitted.trace(*self.arguments, **self.static).lower(lowering_platforms=(platform,))


def train_program(
    config: ZayaConfig, objective: Objective, optimizer: OptimizerConfig, batch: int, row: int,
    device: jax.Device, placement: Placement | None, execution: Execution = DEFAULT,
) -> Program:  # fmt: skip
    """One training step over int32 [B, T] tokens.

    Args:
      device: where it runs if there is no placement.
      placement: as `make_train_step` takes it.
    """
    model = Zaya(config, execution)
    state = jax.eval_shape(lambda: init_state(init_variables(model, 0), optimizer, 0))
    if placement is None:
        whole = split = SingleDeviceSharding(device)
        state = _put(state, whole)
    else:
        whole, split = placement.whole(), placement.rows()
        places = placement.shardings(state)
        state = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)
    rows = jax.ShapeDtypeStruct((batch, row), jnp.int32)
    data = {"tokens": rows, "document": rows}
    if objective.loss_on == "answers":
        data["answer"] = rows
    arguments = (state, _put(data, split), _put(jax.ShapeDtypeStruct((), jnp.float32), whole))
    tidar = objective.masks
    return Program(
        jitted=make_train_step(model, objective, optimizer, placement),  # pyrefly: ignore[bad-argument-type]
        arguments=arguments,
        static={},
        flops=training_flops(config, batch, row, tidar, objective.block_size, execution.remat),
        traffic=None,
        execution=execution,
    )


def decode_programs(
    config: ZayaConfig, block_size: int, anchors: int, batch: int, context: int, device: jax.Device,
    execution: Execution = DEFAULT,
) -> dict[str, Program]:  # fmt: skip
    """Reading prompts, and the loops of one-token and of verify-and-draft steps, on one device.

    A cache for `context` tokens a sequence; the prompt takes all of it but 32 new tokens' room and two blocks of slack.
    Loops run until their rows end: FLOPs and traffic are those of one step, after a full cache.

    Args:
      anchors: blocks drafted a step; which accepted lengths they stand after does not change the program.

    Returns:
      {"prefill", "autoregressive", "single_pass"}.
    """
    place = SingleDeviceSharding(device)
    stacked = jax.eval_shape(lambda: init_variables(Zaya(config, execution), 0))
    model, variables = Zaya(config, execution, separate=True), jax.eval_shape(separate, stacked)  # as `for_decoding`
    samplers = {
        "autoregressive": SamplerConfig("autoregressive"),
        "single_pass": SamplerConfig("single_pass", block_size=block_size, anchors=tuple(range(1, anchors + 1))),
    }
    buffer = bucket(32)
    width = context - buffer - 2 * block_size
    if width < 1:
        raise UserError(f"context: got {context}, may be at least {buffer + 2 * block_size + 1}")
    whole = lambda tree: _put(tree, place)  # noqa: E731
    variables = whole(variables)
    integer = jax.ShapeDtypeStruct((), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    prompts = Prompts(
        tokens=jax.ShapeDtypeStruct((batch, width), jnp.int32),
        count=jax.ShapeDtypeStruct((batch,), jnp.int32),
        seen=jax.ShapeDtypeStruct((batch, config.vocab_size), jnp.bool_),
    )
    out = {}
    for name, sampler in samplers.items():
        plan = plan_of(sampler)
        options = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), options_of(sampler))
        static = dict(plan=plan, sizes=Sizes(buffer, samples=1, capacity=context))
        reading = (model, variables, *whole((prompts, keys, integer, options)))
        if name == "autoregressive":
            flops = forward_flops(config, batch * width, context, head_rows=batch).total
            out["prefill"] = Program(start, reading, static, flops, _traffic(config, width, batch, 0, 1), execution)
        state = jax.eval_shape(
            lambda variables, *rest, static=static: start(model, variables, *rest, **static), *reading[1:]
        )
        rows = 1 if name == "autoregressive" else int(sampler.rows_per_forward)
        heads = 1 if name == "autoregressive" else 2 * block_size - 1
        out[name] = Program(
            run,
            (model, variables, *whole((state, keys, integer, integer, integer, options))),
            {"plan": plan},
            flops=forward_flops(config, batch * rows, context + rows, head_rows=batch * heads).total,
            traffic=_traffic(config, rows, batch, context, heads),
            execution=execution,
        )
    return out


def _traffic(config: ZayaConfig, rows: int, batch: int, context: int, heads: int) -> float:
    """Bytes that must move: weights touched and the cache once, logits (written and read) twice."""
    traffic = forward_traffic(config, rows, batch, context, heads)
    logits = batch * heads * config.vocab_size * jnp.dtype(config.stream_dtype).itemsize
    return traffic.weights + traffic.cache + 2 * logits


def _put(tree: Any, place: Sharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)
