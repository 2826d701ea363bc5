"""What one forward of a sampler costs against its query tokens: the curve that decides whether drafting can pay."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.architecture import Zaya, init_cache
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.core.random_streams import KeyedNoise, row_keys
from zaya_jax.sampling.drafters import find_drafter
from zaya_jax.sampling.loop import method_of
from zaya_jax.sampling.options import options_of
from zaya_jax.sampling.strategies.base import Drafted, Plan, Progress, make_setup
from zaya_jax.sampling.strategies.propose_and_verify import with_drafter
from zaya_jax.sampling.strategies.single_pass import Proposal
from zaya_jax.timing import medians

AUTOREGRESSIVE = Plan("autoregressive", 1, (), "autoregressive")


def rows_of(plan: Plan) -> int:
    """Query tokens that a step computes for each sequence."""
    if plan.mode == "drafter":
        return plan.block_size + sum(find_drafter(plan.drafter).target_forwards(plan.draft_length))
    if plan.mode == "two_pass":
        return 2 * plan.block_size + 1
    return plan.block_size * (1 + len(plan.anchors))


def forward_cost(
    model: Zaya, variables: Any, plans: Sequence[Plan], batch: int = 1, context: int = 64, steps: int = 32,
    repeats: int = 5, label: str = "cost of a forward",
) -> dict[Plan, float]:  # fmt: skip
    """Median milliseconds of one sampling step (temperature 1) of each plan: autoregressive, single_pass, two_pass
    (whose step is two forwards) or drafter.

    Steps run inside one compiled loop (as in generation: no dispatch is counted) over a context that does not grow. The
    repeats of all plans are interleaved, so that a busy machine disturbs them alike.
    """
    calls = {str(plan): step_call(model, variables, plan, batch, context, steps) for plan in plans}
    times = medians(calls, repeats, label)
    return {plan: times[str(plan)] / steps for plan in plans}


def cost_at(cost: Mapping[int, float], rows: float) -> float:
    """A forward's cost at any number of query tokens, linear between the measured ones.

    Beyond the largest measured number the last slope is extended.

    Args:
      cost: milliseconds (or any unit) by query tokens; one entry or more.
    """
    x = np.array(sorted(cost), float)
    y = np.array([cost[int(r)] for r in x])
    if rows > x[-1] and len(x) > 1:
        return float(y[-1] + (rows - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2]))
    return float(np.interp(rows, x, y))


def step_call(
    model: Zaya, variables: Any, plan: Plan, batch: int, context: int, steps: int, sampler: SamplerConfig | None = None
) -> Callable[[], object]:
    """A call that runs `steps` sampling steps after `context` tokens, with the sampler's options (temperature 1)."""
    jitted, arguments = step_program(model, variables, plan, batch, context, steps, sampler)
    return functools.partial(jitted, *arguments)


def step_program(
    model: Zaya, variables: Any, plan: Plan, batch: int, context: int, steps: int, sampler: SamplerConfig | None = None
) -> tuple[Any, tuple]:
    """What `step_call` calls: (jitted function, its arguments)."""
    config = model.config
    cache = init_cache(config, batch, context + 2 * plan.block_size, model.separate)
    # The content of the context does not matter for time; routing does. So every step meets other tokens: one that met
    # the same experts again and again finds their weights in the processor's cache, and would look too cheap.
    cache = cache.replace(length=jnp.full((batch,), context, jnp.int32))
    blocks = jax.random.randint(jax.random.key(0), (steps, batch, plan.block_size), 0, config.vocab_size)
    drafts = (batch, plan.block_size - 1)
    options, keys = options_of(sampler or SamplerConfig()), row_keys(0, batch)
    vocabulary = make_setup(model, variables, plan, options, KeyedNoise.of(keys)).vocabulary
    drafted_tokens = config.vocab_size if vocabulary is None else len(vocabulary.tokens)
    drafted = Drafted(
        blocks[0, :, 1:], jnp.zeros(drafts, jnp.int32), jnp.zeros((*drafts, drafted_tokens), config.stream_dtype),
        jnp.ones(drafts, bool),
    )  # fmt: skip
    alone = plan.mode in ("two_pass", "drafter")  # the pending token is all that steps hand on
    proposal = blocks[0, :, 0] if alone else Proposal(blocks[0, :, 0], drafted)
    step = method_of(plan).step
    progress = Progress(jnp.zeros((batch,), jnp.int32), jnp.zeros((batch, config.vocab_size), bool))
    idle = jnp.zeros((batch,), bool)  # nothing is committed: the context stays as long as it is

    @jax.jit
    def loop(variables, proposal, cache, keys, options):
        setup = make_setup(model, variables, plan, options, KeyedNoise.of(keys))
        cache = with_drafter(setup, cache)

        def body(i, carry):
            proposal, cache = carry
            if alone:
                proposal = blocks[i, :, 0]
            else:
                drafted = proposal.drafted.replace(tokens=blocks[i, :, 1:])
                proposal = proposal.replace(pending_token=blocks[i, :, 0], drafted=drafted)
            result, follow = step(setup, proposal, cache, idle, progress)
            return follow(idle, result.amount)

        return jax.lax.fori_loop(0, steps, body, (proposal, cache))

    return loop, (variables, proposal, cache, keys, options)
