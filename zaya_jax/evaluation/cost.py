"""What one forward of a sampler costs against its rows: the curve that decides whether drafting can pay."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture import Zaya, init_cache
from zaya_jax.sampling.noise import KeyedNoise, row_keys
from zaya_jax.sampling.step import Knobs, Plan, Proposal, step

# (block_size, anchors) by rows: one AR row; 8 verified alone; 8 verified and 1, 2 or all 8 blocks of 8 drafted.
CURVE = {
    1: Plan(1, (), "autoregressive"),
    8: Plan(8, (), "autoregressive"),
    16: Plan(8, (8,), "autoregressive"),
    24: Plan(8, (1, 8), "autoregressive"),
    72: Plan(8, tuple(range(1, 9)), "autoregressive"),
}


def forward_cost(
    model: Zaya, variables: dict, batch: int = 1, context: int = 64, steps: int = 32, repeats: int = 5
) -> dict[int, float]:
    """Median milliseconds of one sampling step for each row count of `CURVE`.

    Steps run inside one compiled loop (as in generation: no dispatch is counted) over a context that does not grow. The
    repeats of all row counts are interleaved, so that a busy machine disturbs them alike.
    """
    runs = {rows: _prepare(model, variables, plan, batch, context, steps) for rows, plan in CURVE.items()}
    seen: dict[int, list[float]] = {rows: [] for rows in runs}
    for _ in range(repeats):
        for rows, run in runs.items():
            clock = time.perf_counter()
            jax.block_until_ready(run())
            seen[rows].append(1e3 * (time.perf_counter() - clock) / steps)
    return {rows: float(np.median(times)) for rows, times in seen.items()}


def _prepare(model: Zaya, variables: dict, plan: Plan, batch: int, context: int, steps: int):
    """A compiled, warmed-up call that runs `steps` sampling steps."""
    config = model.config
    cache = init_cache(config, batch, context + 2 * plan.block_size)
    # The content of the context does not matter for time; routing does, so the block's tokens differ.
    cache = cache.replace(length=jnp.full((batch,), context, jnp.int32))
    block = jax.random.randint(jax.random.key(0), (batch, plan.block_size), 0, config.vocab_size)
    drafts = (batch, plan.block_size - 1)
    proposal = Proposal(block, jnp.zeros((*drafts, config.vocab_size), config.dtype), jnp.ones(drafts, bool))
    knobs = Knobs(*(jnp.float32(x) for x in (1.0, 1.0, 0.0)))
    idle = jnp.zeros((batch,), bool)  # nothing is committed: the context stays as long as it is

    @jax.jit
    def loop(variables, proposal, cache, keys):
        def body(_, carry):
            proposal, cache = carry
            proposal, cache, _ = step(model, variables, proposal, cache, idle, plan, knobs, KeyedNoise(keys))
            return proposal, cache

        return jax.lax.fori_loop(0, steps, body, (proposal, cache))

    run = functools.partial(loop, variables, proposal, cache, row_keys(0, batch))
    jax.block_until_ready(run())
    return run
