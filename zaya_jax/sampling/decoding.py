"""From prompts to a `Generation`: checks, buckets, the loop's calls and the books, for a mode that is settled."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax import checks, memory
from zaya_jax.architecture import Cache, Zaya, ZayaConfig
from zaya_jax.errors import Diverged, UserError
from zaya_jax.sampling.config import SamplerConfig
from zaya_jax.sampling.core.distributions import Warp
from zaya_jax.sampling.core.random_streams import row_keys
from zaya_jax.sampling.drafting import Yield, require_mask
from zaya_jax.sampling.loop import METHODS, State, run, start
from zaya_jax.sampling.stopping import Decoder, StopStrings
from zaya_jax.sampling.strategies.base import Knobs, Plan
from zaya_jax.sampling.values import plain, plain_tuple

WATCHED_STEPS = 16  # steps between two looks for stop strings


class Streamer(Protocol):
    """Sees a generation grow, one forward (or step of two) at a time; one list a row."""

    def put(self, tokens: list[list[int]]) -> None:
        """New tokens, final."""

    def put_draft(self, tokens: list[list[int]]) -> None:
        """Proposed tokens behind them, not verified; they replace the drafts shown before."""

    def end(self) -> None:
        """Nothing more comes."""


@dataclasses.dataclass(frozen=True)
class Session:
    """Texts and what the model has read of them: hand it to `generate` to go on without reading them again.

    Equal to one prompt that is the whole text: cache rows hold a prefix of `texts`, and what is missing (the newest
    token, mostly) is read with the next prompt.
    """

    texts: list[list[int]]
    cache: Cache


@dataclasses.dataclass(frozen=True)
class Generation:
    """What `generate` returns, one entry a row; rows = prompts x samples, the samples of a prompt side by side.

    Every forward counts, the prefill too (it yields the first token), so autoregressive decoding has exactly 1 token
    per forward and sum(accepted[i]) = len(tokens[i]) always. Rows that share a prefill count it each.
    """

    tokens: list[list[int]]  # without the prompt; a stop token is kept as the last one
    accepted: list[list[int]]  # tokens each forward yielded, in order
    log_probabilities: list[list[float]]  # of each token under the target (0 where greedy)
    finish: list[str]  # "stop_token", "stop_string" or "length"
    sampler: SamplerConfig  # as it ran ("auto" is settled)
    session: Session
    reason: str = ""  # why "auto" chose this sampler

    @property
    def forwards(self) -> np.ndarray:
        """Forward passes each row needed (NFE), int [rows]; none is counted after a row has finished."""
        return np.array([len(a) for a in self.accepted])

    @property
    def rows_per_forward(self) -> float:
        """Rows each forward after the prefill computed, per sequence."""
        return self.sampler.rows_per_forward

    @property
    def tokens_per_forward(self) -> float:
        """T over all rows: tokens up to and including the stop, over forwards. Say the temperature with it."""
        return sum(len(t) for t in self.tokens) / max(1, int(self.forwards.sum()))

    @property
    def warning(self) -> str:
        """A line if drafts yielded practically nothing, as of a model that never learned to draft; else ""."""
        found = Yield()
        found.add(self.sampler, self.accepted)
        return found.warning()


def decode(
    model: Zaya,
    variables: Any,
    prompts: Sequence[Sequence[int]],
    sampler: SamplerConfig,
    max_new_tokens: int,
    seed: int | Sequence[int] = 0,
    samples: int = 1,
    session: Session | None = None,
    tokenizer: Decoder | None = None,
    streamer: Streamer | None = None,
) -> Generation:
    """`generate` for any mode but "auto"; arguments as there."""
    texts, unread = _texts(prompts, session)
    max_new_tokens, samples = plain(max_new_tokens), plain(samples)
    check(model, unread, texts, sampler, max_new_tokens, samples, session, tokenizer)
    change = "samples, max_new_tokens or the prompts given at once may be fewer"
    require_cache(
        model.config, len(texts) * samples, max(map(len, texts)) + max_new_tokens, "generate", change, variables
    )
    plan, knobs = plan_of(sampler), knobs_of(sampler)
    keys = row_keys(seed, len(prompts) * samples)
    buffer, limit = bucket(max_new_tokens), np.int32(max_new_tokens)
    width = bucket(max(map(len, unread)))
    tokens = np.zeros((len(unread), width), np.int32)
    seen = np.zeros((len(unread), model.config.vocab_size), bool)
    for row, (new, text) in enumerate(zip(unread, texts, strict=True)):
        tokens[row, : len(new)] = new
        seen[row, text] = True
    count = np.array([len(new) for new in unread], np.int32)
    # Two blocks of slack: a forward writes a block beyond the committed tokens, and the last commit may end past limit.
    need = bucket(max(len(text) - len(new) for new, text in zip(unread, texts, strict=True)) + width + buffer)
    state = start(
        model, variables, tokens, count, None if session is None else session.cache, seen, keys, limit, knobs,
        plan=plan, buffer=buffer, samples=samples, capacity=need + 2 * plan.block_size,
    )  # fmt: skip
    rows = [text for text in texts for _ in range(samples)]
    watch = _Watch(sampler, tokenizer, streamer, METHODS[plan.mode].drafts, [text[-1] for text in rows])
    state = watch.look(state)
    while not np.asarray(state.done).all():
        state = run(model, variables, state, keys, limit, np.int32(watch.steps), knobs, plan=plan)
        state = watch.look(state)
    if streamer is not None:
        streamer.end()
    return _result(state, rows, watch.cut, sampler)


def plan_of(sampler: SamplerConfig) -> Plan:
    """The static part of a sampler whose mode is settled."""
    block_size = 1 if sampler.mode == "autoregressive" else sampler.block_size
    assert sampler.target is not None  # SamplerConfig fills it in
    return Plan(sampler.mode, block_size, sampler.anchor_list, sampler.target)


def knobs_of(sampler: SamplerConfig, dtype: Any = np.float32) -> Knobs:
    """The run-time part of a sampler, on the host."""
    s = sampler
    draft_temperature = s.temperature if s.draft_temperature is None else s.draft_temperature
    integer: Any = np.int32
    stop: Any = np.full((max(8, -(-len(s.stop_tokens) // 8) * 8),), -1, np.int32)
    stop[: len(s.stop_tokens)] = s.stop_tokens

    def warp(temperature: float, k: int, p: float, min_p: float) -> Warp:
        return Warp(dtype(temperature), integer(min(k, 2**31 - 1)), dtype(p), dtype(min_p))

    return Knobs(
        warp=warp(s.temperature, s.top_k, s.top_p, s.min_p),
        draft_warp=warp(draft_temperature, s.draft_top_k, s.draft_top_p, 0.0),
        beta=dtype(s.beta),
        repetition_penalty=dtype(s.repetition_penalty),
        min_new_tokens=integer(s.min_new_tokens),
        threshold=dtype(s.threshold),
        reveal=integer(min(s.reveal, 2**31 - 1)),
        stop=stop,
    )


def bucket(n: int) -> int:
    """n rounded up to a size that few lengths do not share: multiples of 32, and of 1/8 of the power of two above n."""
    step = max(32, 2 ** max(0, int(n - 1).bit_length() - 3))
    return max(1, -(-n // step)) * step


class _Watch:
    """What the host does between steps, if anything: stop strings and streaming."""

    def __init__(
        self, sampler: SamplerConfig, tokenizer: Decoder | None, streamer: Streamer | None, drafts, last: list[int]
    ) -> None:  # fmt: skip
        self.sampler, self.tokenizer, self.streamer, self.drafts = sampler, tokenizer, streamer, drafts
        self.last = last  # token of each row's prompt
        self.cut: dict[int, int] = {}  # rows that a stop string ended, and their lengths
        self.seen: list[int] = []  # tokens already looked at, each row
        self.searches: list[StopStrings] = []  # for stop strings, each row
        self.idle = streamer is None and not sampler.stop_strings
        self.steps = 2**30 if self.idle else 1 if streamer else WATCHED_STEPS  # between two looks

    def look(self, state: State) -> State:
        if self.idle:
            return state
        tokens, count = jax.device_get((state.tokens, state.progress.count))
        self.seen = self.seen or [0] * len(count)
        if self.sampler.stop_strings:
            self.searches = self.searches or [self._search(last) for last in self.last]
            fresh = {}
            for row, search in enumerate(self.searches):
                new = tokens[row, self.seen[row] : count[row]].tolist()
                end = None if row in self.cut else search.read(new)
                if end is not None:
                    fresh[row] = end
            if fresh:
                self.cut.update(fresh)
                state = state.replace(done=state.done.at[jnp.array(list(fresh))].set(True))
        ends = [self.cut.get(row, int(n)) for row, n in enumerate(count)]
        if self.streamer is not None:
            self.streamer.put([tokens[row, self.seen[row] : end].tolist() for row, end in enumerate(ends)])
            drafts, exist, done = jax.device_get((*self.drafts(state.carry), state.done))
            shown = exist & ~done[:, None]
            self.streamer.put_draft([row[show].tolist() for row, show in zip(drafts, shown, strict=True)])
        self.seen = ends
        return state

    def _search(self, before: int) -> StopStrings:
        assert self.tokenizer is not None  # `check`
        s = self.sampler
        strings, stops = tuple(s.stop_strings), tuple(s.stop_tokens)
        return StopStrings(strings, self.tokenizer, s.min_new_tokens, stops, before)


def _result(state: State, texts: list[list[int]], cut: dict[int, int], sampler: SamplerConfig) -> Generation:
    host = jax.device_get(
        (state.tokens, state.log_target, state.accepted, state.progress.count, state.forwards, state.healthy,
         state.cache.length)
    )  # fmt: skip
    tokens, logs, accepted, count, forwards, healthy, length = host
    if not healthy.all():
        row = int(np.argmin(healthy))
        raise Diverged(
            f"row {row}: the model's logits are not finite behind {count[row]} new tokens (NaN or infinite weights?)"
        )
    ends = [cut.get(row, int(n)) for row, n in enumerate(count)]
    new = [row[:n].tolist() for row, n in zip(tokens, ends, strict=True)]
    finish = [
        "stop_string" if row in cut else "stop_token" if out[-1] in sampler.stop_tokens else "length"
        for row, out in enumerate(new)
    ]
    texts = [text + out for text, out in zip(texts, new, strict=True)]
    # A row that a stop string ended may have read on behind it; convolutions cannot be rewound, so it is read anew.
    length = np.where(length > np.array([len(text) for text in texts]), 0, length)
    return Generation(
        tokens=new,
        accepted=[_until(row[:n].tolist(), end) for row, n, end in zip(accepted, forwards, ends, strict=True)],
        log_probabilities=[row[:n].tolist() for row, n in zip(logs, ends, strict=True)],
        finish=finish,
        sampler=sampler,
        session=Session(texts, state.cache.replace(length=length)),
    )


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
    leaf = next((leaf for leaf in jax.tree.leaves(variables) if isinstance(leaf, jax.Array)), None)
    devices = [None] if leaf is None else list(leaf.sharding.device_set)
    there = memory.device_memory(devices[0], len(devices))
    parts = f"keys and values of {rows} x {tokens} tokens"
    memory.require(what, needed, there and there * len(devices), change, parts)


def _until(accepted: list[int], tokens: int) -> list[int]:
    """The forwards that yielded the first `tokens` tokens; the last one's share is cut to fit."""
    out, left = [], tokens
    for amount in accepted:
        if left <= 0:
            break
        out.append(min(amount, left))
        left -= amount
    return out


def _texts(prompts: Sequence[Sequence[int]], session: Session | None) -> tuple[list[list[int]], list[list[int]]]:
    """Each row's whole text, and what of it is not in the session's cache."""
    given = plain_tuple(prompts)
    if not isinstance(given, tuple):
        raise UserError(f"prompts: got {given!r:.60}, may be a list of one or more token lists")
    for i, prompt in enumerate(given):
        if not isinstance(prompt, tuple) or not all(checks.SEED.allows(token) for token in prompt):
            raise UserError(f"prompts[{i}]: got {prompt!r:.60}, may be a list of token ids")
    new = [list(prompt) for prompt in given]
    if session is None:
        return new, new
    if len(new) != len(session.texts):
        raise UserError(f"prompts: got {len(new)}, may be {len(session.texts)} (one for each text of the session)")
    length = np.asarray(session.cache.length)
    return (
        [text + prompt for text, prompt in zip(session.texts, new, strict=True)],
        [text[n:] + prompt for text, n, prompt in zip(session.texts, length, new, strict=True)],
    )


def check(
    model: Zaya, prompts, texts, sampler: SamplerConfig, max_new_tokens, samples, session, tokenizer
) -> None:  # fmt: skip
    """Raises UserError, naming the argument, for anything `generate` cannot do; before anything is compiled."""
    config = model.config
    if sampler.drafts:
        require_mask(config)
    for name, value in (("max_new_tokens", max_new_tokens), ("samples", samples)):
        checks.check(name, value, checks.COUNT)
    if not len(prompts):
        raise UserError("prompts: got none, may be a list of one or more token lists")
    if session is not None and samples != 1:
        raise UserError(f"samples: got {samples}, may be 1 with a session (its rows are the samples)")
    if sampler.stop_strings and tokenizer is None:
        raise UserError("tokenizer: got None, may be a tokenizer when SamplerConfig.stop_strings is set")
    if sampler.min_new_tokens > max_new_tokens:
        raise UserError(
            f"SamplerConfig.min_new_tokens: got {sampler.min_new_tokens}, may be at most max_new_tokens "
            f"({max_new_tokens})"
        )
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        if not len(prompt):
            raise UserError(f"prompts[{i}]: got no tokens, may be one or more (start with a BOS token)")
        bad = [t for t in prompt if not 0 <= t < config.vocab_size]
        if bad:
            raise UserError(f"prompts[{i}]: got token {bad[0]}, may be in [0, {config.vocab_size})")
        if len(text) + max_new_tokens > config.max_position_embeddings:
            raise UserError(
                f"prompts[{i}]: got {len(text)} tokens and max_new_tokens {max_new_tokens}, may be at most "
                f"{config.max_position_embeddings} together (max_position_embeddings)"
            )
    for token in sampler.stop_tokens:
        if token >= config.vocab_size:
            raise UserError(f"SamplerConfig.stop_tokens: got {token}, may be in [0, {config.vocab_size})")
