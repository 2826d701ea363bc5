"""`generate`: prompts in, tokens and their cost out. The whole generation is one jitted loop."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from zaya_jax.architecture import Cache, Zaya, init_cache
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.noise import KeyedNoise, row_keys
from zaya_jax.sampling.step import Knobs, Plan, Proposal, prefill, step

Array = jax.Array
BUCKET = 32  # prompt widths and output lengths are rounded up to this, so that lengths rarely compile anything


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns, one entry a prompt.

    Every forward counts, the prefill too (it yields the first token), so autoregressive decoding has exactly 1 token
    per forward and sum(accepted[i]) = len(tokens[i]) always.
    """

    tokens: list[list[int]]  # without the prompt; a stop token is kept as the last one
    accepted: list[list[int]]  # tokens each forward yielded, in order
    log_probabilities: list[list[float]]  # of each token under the target (0 where greedy)
    rows_per_forward: int  # rows each forward after the prefill computed, per sequence

    @property
    def forwards(self) -> np.ndarray:
        """Forward passes each row needed (NFE), int [prompts]; none is counted after a row has finished."""
        return np.array([len(a) for a in self.accepted])

    @property
    def tokens_per_forward(self) -> float:
        """T over all rows: tokens up to and including the stop token, over forwards. Say the temperature with it."""
        return sum(len(t) for t in self.tokens) / max(1, int(self.forwards.sum()))


class _State(struct.PyTreeNode):
    proposal: Proposal
    cache: Cache
    tokens: Array  # int32 [batch, buffer]
    log_target: Array  # float32 [batch, buffer]
    count: Array  # int32 [batch]: tokens produced
    accepted: Array  # int32 [batch, buffer]: tokens yielded by each forward
    forwards: Array  # int32 [batch]
    done: Array  # bool [batch]


def generate(
    model: Zaya,
    variables,
    prompts: Sequence[Sequence[int]],
    sampler: SamplerConfig,
    max_new_tokens: int,
    seed: int | Sequence[int] = 0,
) -> Generation:
    """Samples a continuation of every prompt, all in one batch and one compiled loop.

    Args:
      model, variables: a Zaya and its variables ("params" and "balancing").
      prompts: token lists, each with at least one token; lengths may differ.
      sampler: see SamplerConfig.
      max_new_tokens: tokens after which a row ends without a stop token.
      seed: one int, or one for each prompt; equal seeds give equal tokens whatever stands beside a row in the batch.

    Raises:
      ValueError: an empty or too long prompt, a token out of range, or max_new_tokens below 1; checked before
        compiling.
    """
    _check(model, prompts, sampler, max_new_tokens)
    plan = Plan(sampler.rows_verified, sampler.anchor_list, sampler.target)
    draft_temperature = sampler.temperature if sampler.draft_temperature is None else sampler.draft_temperature
    knobs = Knobs(*(jnp.float32(x) for x in (sampler.temperature, draft_temperature, sampler.beta)))
    lengths = [len(p) for p in prompts]
    tokens = np.zeros((len(prompts), round_up(max(lengths))), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    stop = np.full((round_up(len(sampler.stop_tokens), 8),), -1, np.int32)
    stop[: len(sampler.stop_tokens)] = sampler.stop_tokens

    state = run_loop(
        model, variables, jnp.asarray(tokens), jnp.asarray(lengths, jnp.int32), jnp.asarray(stop),
        jnp.int32(max_new_tokens), row_keys(seed, len(prompts)), knobs, plan=plan, buffer=round_up(max_new_tokens),
    )  # fmt: skip
    out, logs, accepted, count, forwards = jax.device_get(
        (state.tokens, state.log_target, state.accepted, state.count, state.forwards)
    )
    return Generation(
        tokens=[row[:n].tolist() for row, n in zip(out, count, strict=True)],
        accepted=[row[:n].tolist() for row, n in zip(accepted, forwards, strict=True)],
        log_probabilities=[row[:n].tolist() for row, n in zip(logs, count, strict=True)],
        rows_per_forward=sampler.rows_per_forward,
    )


@functools.partial(jax.jit, static_argnames=("model", "plan", "buffer"))
def run_loop(
    model: Zaya, variables, tokens: Array, lengths: Array, stop: Array, limit: Array, keys: Array, knobs: Knobs, *,
    plan: Plan, buffer: int,
) -> _State:  # fmt: skip
    """Prefill and all steps. `limit` (traced) is at most `buffer` (static)."""
    batch, width = tokens.shape
    noise = KeyedNoise(keys)
    # Two blocks of slack: a forward writes a block beyond the committed tokens, and the last commit may end past
    # `limit`.
    cache = init_cache(model.config, batch, width + buffer + 2 * plan.block_size)
    proposal, cache, log_target = prefill(model, variables, tokens, lengths, cache, plan, knobs, noise)
    state = _State(
        proposal=proposal,
        cache=cache,
        tokens=jnp.zeros((batch, buffer), jnp.int32),
        log_target=jnp.zeros((batch, buffer), jnp.float32),
        count=jnp.zeros((batch,), jnp.int32),
        accepted=jnp.zeros((batch, buffer), jnp.int32),
        forwards=jnp.zeros((batch,), jnp.int32),
        done=jnp.zeros((batch,), bool),
    )
    first = (proposal.block[:, :1], log_target[:, None], jnp.ones((batch,), jnp.int32))
    state = _record(state, *first, stop, limit)

    def body(state: _State) -> _State:
        active = ~state.done
        proposal, cache, verdict = step(model, variables, state.proposal, state.cache, active, plan, knobs, noise)
        state = state.replace(proposal=proposal, cache=cache)
        return _record(state, verdict.produced, verdict.log_target, verdict.accepted, stop, limit)

    return jax.lax.while_loop(lambda state: ~jnp.all(state.done), body, state)


def _record(state: _State, produced: Array, log_target: Array, amount: Array, stop: Array, limit: Array) -> _State:
    """Appends what a forward yielded (the first `amount` of `produced`), up to a stop token or the limit."""
    index = jnp.arange(produced.shape[1], dtype=jnp.int32)
    is_stop = (produced[..., None] == stop).any(-1) & (index < amount[:, None])
    until_stop = jnp.where(is_stop.any(1), jnp.argmax(is_stop, axis=1).astype(jnp.int32) + 1, amount)
    new = jnp.minimum(jnp.minimum(amount, until_stop), limit - state.count)
    new = jnp.where(state.done, 0, new)
    stopped = (is_stop & (index < new[:, None])).any(1)

    batch = jnp.arange(produced.shape[0])
    buffer = state.tokens.shape[1]
    slot = jnp.where(index < new[:, None], state.count[:, None] + index, buffer)  # `buffer` is dropped
    at = (batch[:, None], slot)
    count = state.count + new
    forward = jnp.where(state.done, buffer, state.forwards)
    return state.replace(
        tokens=state.tokens.at[at].set(produced, mode="drop"),
        log_target=state.log_target.at[at].set(log_target.astype(jnp.float32), mode="drop"),
        count=count,
        accepted=state.accepted.at[batch, forward].set(new, mode="drop"),
        forwards=state.forwards + ~state.done,
        done=state.done | stopped | (count >= limit),
    )


def round_up(n: int, to: int = BUCKET) -> int:
    return max(1, -(-n // to)) * to


def _check(model: Zaya, prompts, sampler: SamplerConfig, max_new_tokens: int) -> None:
    config = model.config
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, (int, np.integer)) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: got {max_new_tokens!r}, may be an integer of at least 1")
    if not len(prompts):
        raise ValueError("prompts: got none, may be a list of one or more token lists")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompts[{i}]: got no tokens, may be one or more (start with a BOS token)")
        bad = [t for t in prompt if not 0 <= t < config.vocab_size]
        if bad:
            raise ValueError(f"prompts[{i}]: got token {bad[0]}, may be in [0, {config.vocab_size})")
        if len(prompt) + max_new_tokens > config.max_position_embeddings:
            raise ValueError(
                f"prompts[{i}]: got {len(prompt)} tokens and max_new_tokens {max_new_tokens}, may be at most "
                f"{config.max_position_embeddings} together (max_position_embeddings)"
            )
    for token in sampler.stop_tokens:
        if token >= config.vocab_size:
            raise ValueError(f"SamplerConfig.stop_tokens: got {token}, may be in [0, {config.vocab_size})")
