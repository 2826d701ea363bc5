"""The jitted loop around a method: reads prompts, steps until every row has ended, keeps the books."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from zaya_jax.architecture import Cache, Zaya, init_cache
from zaya_jax.sampling.core.random_streams import KeyedNoise
from zaya_jax.sampling.strategies import propose_and_verify
from zaya_jax.sampling.strategies.base import Method, Options, Plan, Progress, Setup, StepResult, make_setup
from zaya_jax.sampling.strategies.block_diffusion import BLOCK_DIFFUSION
from zaya_jax.sampling.strategies.single_pass import SINGLE_PASS
from zaya_jax.sampling.strategies.two_pass import TWO_PASS

Array = jax.Array
METHODS: dict[str, Method] = {
    "autoregressive": SINGLE_PASS,
    "single_pass": SINGLE_PASS,
    "two_pass": TWO_PASS,
    "block_diffusion": BLOCK_DIFFUSION,
}


def method_of(plan: Plan) -> Method:
    """What a plan's steps are."""
    return propose_and_verify.method(plan) if plan.mode == "drafter" else METHODS[plan.mode]


class State(struct.PyTreeNode):
    """Everything between two steps; leading axis B (sequences: prompts * samples), but for the cache's."""

    carry: Any  # the method's own
    cache: Cache
    progress: Progress
    tokens: Array  # int32 [B, buffer]: new tokens
    log_target: Array  # [B, buffer]
    accepted: Array  # int32 [B, 2 * buffer + slack]: tokens yielded by each forward
    forwards: Array  # int32 [B]
    done: Array  # bool [B]
    healthy: Array  # bool [B]: False once the model gave NaN logits


class Prompts(struct.PyTreeNode):
    """What is read before the first token."""

    tokens: Any  # int32 [prompts, width]: right-padded
    count: Any  # int32 [prompts]: their lengths
    seen: Any  # bool [prompts, V]: tokens in each row's text so far, the prompt included
    cache: Cache | None = None  # what is committed before the prompts, if anything


class Sizes(NamedTuple):
    """What a generation makes room for; static."""

    buffer: int  # new tokens of a row
    samples: int  # rows for each prompt; they share its forward and start from copies of its cache
    capacity: int  # slots the cache gets: for everything to come and two blocks of slack


def begin(setup: Setup, prompts: Prompts, limit: Array, sizes: Sizes) -> State:
    """Reads the prompts, once each, and decides every row's first token.

    Args:
      setup: its noise is for prompts * samples rows.
      limit: int32 [], tokens after which a row ends; at most the buffer.
    """
    buffer, samples, capacity = sizes
    tokens, count, seen, cache = prompts.tokens, prompts.count, prompts.seen, prompts.cache
    if cache is None:
        cache = init_cache(setup.model.config, tokens.shape[0], capacity, setup.model.separate)
    cache = propose_and_verify.with_drafter(setup, cache.grow(capacity))
    plan, method = setup.plan, method_of(setup.plan)
    readout, cache = method.read(setup, tokens, count, cache)
    readout, seen = jax.tree.map(lambda x: _repeat(x, samples, 0), (readout, seen))
    cache = cache.over_batch(lambda axis, x: _repeat(x, samples, axis))
    rows = tokens.shape[0] * samples
    zeros = jnp.zeros((rows,), jnp.int32)
    progress = Progress(zeros, seen)
    result, carry, cache = method.begin(setup, readout, cache, progress)
    state = State(
        carry=carry,
        cache=cache,
        progress=progress,
        tokens=jnp.zeros((rows, buffer), jnp.int32),
        log_target=jnp.zeros((rows, buffer), result.log_target.dtype),
        # The slowest methods need all forwards of a step for a token, or a block's slots each a forward of its own.
        accepted=jnp.zeros((rows, max(2, method.forwards) * buffer + plan.block_size + 2), jnp.int32),
        forwards=zeros,
        done=zeros > 0,
        healthy=zeros == 0,
    )
    return _record(state, result, 1, setup.options, limit)[0]


def advance(setup: Setup, state: State, limit: Array) -> State:
    """One step of every row that has not ended."""
    method = method_of(setup.plan)
    active = ~state.done
    result, follow = method.step(setup, state.carry, state.cache, active, state.progress)
    state, kept = _record(state, result, method.forwards, setup.options, limit)
    carry, cache = follow(active, kept)
    return state.replace(carry=carry, cache=cache)


@functools.partial(jax.jit, static_argnames=("model", "plan", "sizes"))
def start(
    model: Zaya, variables, prompts: Prompts, keys: Array, limit: Array, options: Options, *, plan: Plan, sizes: Sizes
) -> State:
    """`begin`, compiled; keys [prompts * samples]."""
    return begin(make_setup(model, variables, plan, options, KeyedNoise.of(keys)), prompts, limit, sizes)


@functools.partial(jax.jit, static_argnames=("model", "plan"), donate_argnames=("state",))
def run(
    model: Zaya, variables, state: State, keys: Array, limit: Array, steps: Array, ended: Array, options: Options,
    *, plan: Plan,
) -> tuple[State, Array]:  # fmt: skip
    """Up to `steps` (int32 []) steps, compiled; fewer when `ended` (int32 []) rows have ended: (state, steps made)."""
    setup = make_setup(model, variables, plan, options, KeyedNoise.of(keys))

    def going(loop: tuple[Array, State]) -> Array:
        return (loop[0] < steps) & (loop[1].done.sum() < ended)

    def body(loop: tuple[Array, State]) -> tuple[Array, State]:
        return loop[0] + 1, advance(setup, loop[1], limit)

    made, state = jax.lax.while_loop(going, body, (jnp.int32(0), state))
    return state, made


def _repeat(x: Array, times: int, axis: int) -> Array:
    return jnp.repeat(x, times, axis=axis) if times > 1 else x


def _record(state: State, result: StepResult, forwards: int, options: Options, limit: Array) -> tuple[State, Array]:
    """Appends what a step produced, up to a stop token or the limit: (state, tokens kept int32 [B])."""
    produced, count = result.produced, state.progress.count  # [B, produced at most], [B]
    rows, buffer = state.tokens.shape
    index = jnp.arange(produced.shape[1], dtype=jnp.int32)
    is_stop = (produced[..., None] == options.stop).any(-1) & (index < result.amount[:, None])
    until_stop = jnp.where(is_stop.any(1), jnp.argmax(is_stop, axis=1).astype(jnp.int32) + 1, result.amount)
    kept = jnp.minimum(jnp.minimum(result.amount, until_stop), limit - count)
    healthy = result.healthy | state.done
    kept = jnp.where(state.done | ~healthy, 0, kept)
    stopped = (is_stop & (index < kept[:, None])).any(1)

    row = jnp.arange(rows)
    keep = index < kept[:, None]
    at = (row[:, None], jnp.where(keep, count[:, None] + index, buffer))  # slot `buffer` is dropped
    vocab = state.progress.seen.shape[1]
    seen = state.progress.seen.at[row[:, None], jnp.where(keep, produced, vocab)].set(True, mode="drop")
    last_forward = jnp.where(state.done, state.accepted.shape[1], state.forwards + forwards - 1)
    state = state.replace(
        progress=Progress(count + kept, seen),
        tokens=state.tokens.at[at].set(produced, mode="drop"),
        log_target=state.log_target.at[at].set(result.log_target, mode="drop"),
        accepted=state.accepted.at[row, last_forward].set(kept, mode="drop"),
        forwards=state.forwards + jnp.where(state.done, 0, forwards),
        done=state.done | stopped | ~healthy | (count + kept >= limit),
        healthy=state.healthy & healthy,
    )
    return state, kept
