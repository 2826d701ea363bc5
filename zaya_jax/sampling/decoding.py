"""From a `Request` to a `Generation`: checks, buckets, the loop's calls, for a mode that is chosen."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax import memory
from zaya_jax.architecture import Zaya, ZayaConfig
from zaya_jax.errors import Diverged, UserError
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.core.random_streams import row_keys
from zaya_jax.sampling.drafting import require_drafter, require_mask
from zaya_jax.sampling.loop import Prompts, Sizes, State, method_of, run, start
from zaya_jax.sampling.options import options_of, plan_of
from zaya_jax.sampling.types import Generation, Request, Session
from zaya_jax.sampling.watching import Watch

UNASKED = 2**26  # bytes that are there wherever JAX runs: asking a Linux machine reads several files at each call


def decode(model: Zaya, variables: Any, request: Request, sampler: SamplerConfig) -> Generation:
    """`generate` for any mode but "auto"; raises as there."""
    check(model.config, request, sampler)
    require_drafter(model.config, variables, sampler)
    _check_session(model, request.session)
    plan, options = plan_of(sampler), options_of(sampler)
    request = _drafted_by(request, plan.observer)
    texts, unread = request.texts, request.unread
    change = "samples, max_new_tokens or the prompts given at once may be fewer"
    longest = max(map(len, texts)) + request.max_new_tokens
    require_cache(model.config, request.rows, longest, "generate", change, variables)
    keys, limit = row_keys(request.seed, request.rows), np.int32(request.max_new_tokens)
    width, buffer = bucket(max(map(len, unread))), bucket(request.max_new_tokens)
    # Two blocks of slack: a forward writes a block beyond the committed tokens, and the last commit may end past limit.
    need = bucket(max(len(text) - len(new) for new, text in zip(unread, texts, strict=True)) + width + buffer)
    sizes = Sizes(buffer, request.samples, need + 2 * plan.block_size)
    prompts = prompts_of(request, width, model.config.vocab_size)
    state = start(model, variables, prompts, keys, limit, options, plan=plan, sizes=sizes)
    watch = Watch(request, sampler, method_of(plan).drafts)
    state = watch.look(state)
    while not np.asarray(state.done).all():
        every = np.int32(request.rows)
        state, _ = run(model, variables, state, keys, limit, np.int32(watch.steps), every, options, plan=plan)
        state = watch.look(state)
    if request.streamer is not None:
        request.streamer.end()
    return _result(state, [text for text in texts for _ in range(request.samples)], watch.cut, sampler)


def prompts_of(request: Request, width: int, vocab_size: int) -> Prompts:
    """A request's unread tokens, right-padded to `width`, and which tokens its texts hold."""
    unread = request.unread
    tokens = np.zeros((len(unread), width), np.int32)
    seen = np.zeros((len(unread), vocab_size), bool)
    for row, (new, text) in enumerate(zip(unread, request.texts, strict=True)):
        tokens[row, : len(new)] = new
        seen[row, text] = True
    count = np.array([len(new) for new in unread], np.int32)
    return Prompts(tokens, count, seen, None if request.session is None else request.session.cache)


def bucket(n: int) -> int:
    """n rounded up to a size that few lengths do not share: multiples of 32, and of 1/8 of the power of two above n."""
    step = max(32, 2 ** max(0, int(n - 1).bit_length() - 3))
    return max(1, -(-n // step)) * step


def _result(state: State, texts: list[list[int]], cut: dict[int, int], sampler: SamplerConfig) -> Generation:
    host, length = books(state), np.asarray(state.cache.length)
    rows = [host.row(row, row, cut.get(row), sampler) for row in range(len(texts))]
    texts = [text + row.tokens for text, row in zip(texts, rows, strict=True)]
    # A row that a stop string ended may have read on after it; convolutions cannot be rewound, so it is read anew.
    length = np.where(length > np.array([len(text) for text in texts]), 0, length)
    return Generation(
        tokens=[row.tokens for row in rows],
        accepted=[row.accepted for row in rows],
        log_probabilities=[row.log_probabilities for row in rows],
        finish=[row.finish for row in rows],
        sampler=sampler,
        session=Session(texts, state.cache.replace(length=length)),
    )


class Finished(NamedTuple):
    """One sequence's part of a `Generation`."""

    index: int  # of its prompt
    tokens: list[int]
    accepted: list[int]
    log_probabilities: list[float]
    finish: str
    seconds: float = 0.0  # its share of the time, where a queue made it


class Books(NamedTuple):
    """What the host reads of a state, NumPy arrays of leading axis B."""

    tokens: np.ndarray
    log_target: np.ndarray
    accepted: np.ndarray
    count: np.ndarray
    forwards: np.ndarray
    healthy: np.ndarray
    done: np.ndarray

    def row(self, row: int, index: int, cut: int | None, sampler: SamplerConfig) -> Finished:
        """A row that has ended, after `cut` tokens if by a stop string. Diverged: its logits were not finite."""
        if not self.healthy[row]:
            raise Diverged(
                f"row {index}: the model's logits are not finite after {self.count[row]} new tokens (NaN or infinite "
                "weights?)"
            )
        end = int(self.count[row]) if cut is None else cut
        tokens = self.tokens[row, :end].tolist()
        stopped = "stop_token" if tokens[-1] in sampler.stop_tokens else "length"
        return Finished(
            index, tokens, _until(self.accepted[row, : self.forwards[row]].tolist(), end),
            self.log_target[row, :end].tolist(), stopped if cut is None else "stop_string",
        )  # fmt: skip


def books(state: State) -> Books:
    """In one transfer."""
    return Books(*jax.device_get((
        state.tokens, state.log_target, state.accepted, state.progress.count, state.forwards, state.healthy, state.done
    )))  # fmt: skip


def require_cache(
    config: ZayaConfig, rows: int, tokens: int, what: str, change: str, variables: Any = None
) -> None:  # fmt: skip
    """UserError where keys and values of so many rows of so many tokens are more than there is memory for.

    Args:
      variables: of the model, by whose devices it is judged; None for the first device.
      what, change: see `memory.require`.
    """
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    needed = rows * tokens * values * jnp.dtype(config.dtype).itemsize
    if needed < UNASKED:
        return
    leaf = next((leaf for leaf in jax.tree.leaves(variables) if isinstance(leaf, jax.Array)), None)
    devices = [None] if leaf is None else list(leaf.sharding.device_set)
    there = memory.device_memory(devices[0], len(devices))
    parts = f"keys and values of {rows} x {tokens} tokens"
    memory.require(what, needed, there and there * len(devices), change, parts)


def _check_session(model: Zaya, session: Session | None) -> None:
    if session is not None and session.cache.separate != model.separate:
        form = {True: "separate", False: "stacked"}
        got, may_be = form[session.cache.separate], form[model.separate]
        raise UserError(
            f"session: got a cache of a model with {got} layers, may be one of this model ({may_be} layers)"
        )


def _drafted_by(request: Request, drafter: str) -> Request:
    """The request, its session's cache as the sampler can use it: without a drafter that will not see what follows; and
    empty, so that the texts are read again, where the sampler's has not seen them.
    """
    if request.session is None or tuple(request.session.cache.drafter or ()) == ((drafter,) if drafter else ()):
        return request
    cache = request.session.cache.replace(drafter=None)
    if drafter:
        cache = cache.replace(length=jnp.zeros_like(cache.length))
    return request.replace(session=dataclasses.replace(request.session, cache=cache))


def _until(accepted: list[int], tokens: int) -> list[int]:
    """The forwards that yielded the first `tokens` tokens; the last one's share is cut to fit."""
    out, left = [], tokens
    for amount in accepted:
        if left <= 0:
            break
        out.append(min(amount, left))
        left -= amount
    return out


def check(config: ZayaConfig, request: Request, sampler: SamplerConfig, first: int = 0) -> None:
    """Raises UserError, naming the argument, for what this model cannot do; before anything is compiled.

    Args:
      first: number of the request's first prompt, for messages.
    """
    if sampler.drafts:
        require_mask(config)
    if not request.prompts:
        raise UserError("prompts: got none, may be a list of one or more token lists")
    new = request.max_new_tokens
    if sampler.stop_strings and request.tokenizer is None:
        raise UserError("tokenizer: got None, may be a tokenizer when SamplerConfig.stop_strings is set")
    if sampler.min_new_tokens > new:
        raise UserError(
            f"SamplerConfig.min_new_tokens: got {sampler.min_new_tokens}, may be at most max_new_tokens ({new})"
        )
    for i, (prompt, text) in enumerate(zip(request.unread, request.texts, strict=True), first):
        if not len(prompt):
            raise UserError(f"prompts[{i}]: got no tokens, may be one or more (start with a BOS token)")
        bad = [t for t in prompt if not 0 <= t < config.vocab_size]
        if bad:
            raise UserError(f"prompts[{i}]: got token {bad[0]}, may be in [0, {config.vocab_size})")
        if len(text) + new > config.max_position_embeddings:
            raise UserError(
                f"prompts[{i}]: got {len(text)} tokens and max_new_tokens {new}, may be at most "
                f"{config.max_position_embeddings} together (max_position_embeddings)"
            )
    for token in sampler.stop_tokens:
        if token >= config.vocab_size:
            raise UserError(f"SamplerConfig.stop_tokens: got {token}, may be in [0, {config.vocab_size})")
