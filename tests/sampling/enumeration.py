"""The whole output distribution of a sampler, by forcing every outcome of every draw in turn.

The enumeration runs the loop's own `begin` and `advance`. Instead of random numbers, `Forced` answers each draw (which
draft, accepted or not, which pending token) with a prescribed outcome and multiplies the probabilities of the
distributions it was asked to draw from. So what is summed is the distribution of the code that `generate` runs: cache,
batching, stops and all.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import random_variables, small_config
from zaya_jax.architecture import Layout, Zaya
from zaya_jax.architecture.draft_vocabulary import with_draft_vocabulary
from zaya_jax.sampling import SamplerConfig
from zaya_jax.sampling.core.distributions import at_token
from zaya_jax.sampling.core.random_streams import Purpose
from zaya_jax.sampling.loop import Prompts, Sizes, State, advance, begin
from zaya_jax.sampling.options import options_of, plan_of
from zaya_jax.sampling.strategies.base import Plan, make_setup

VOCAB, SIZE, NEW = 3, 3, 4
PROMPTS = ([1, 0, 2, 2], [2])  # two rows of one batch, of different lengths
BATCH = 512  # rows the compiled step runs at once
Distribution = dict[tuple[int, ...], float]


class Forced:
    """Outcomes instead of noise; sums up the log-probability of what it answered, of drafts apart from the rest.

    `pending` is one token, or one for each row of the forward where each is drawn after (`strategies.walk`); drafts are
    answered in order, however many calls ask for them.
    """

    def __init__(self, pending, drafts, survivors) -> None:
        self.pending, self.drafts, self.survivors = (x.astype(jnp.int32) for x in (pending, drafts, survivors))
        self.log_weight = self.log_drafts = jnp.zeros(pending.shape[:1], jnp.float64)
        self.drawn = 0

    def draw(self, purpose, position, distribution, warm, at=None):
        distribution = jax.nn.log_softmax(distribution, axis=-1)
        if purpose == Purpose.PENDING:
            chosen = at_token(distribution, self.pending)
            self.log_weight += chosen.reshape(len(chosen), -1).sum(axis=1)
            return self.pending
        wanted = self.drafts[:, self.drawn : self.drawn + distribution.shape[-2]]
        self.drawn += distribution.shape[-2]
        self.log_drafts += at_token(distribution, wanted).sum(axis=1)
        return wanted

    def accept(self, position, log_probability):
        """The first `survivors` drafts live, the next one (if any) dies; those after it are not tested."""
        index, survivors = jnp.arange(log_probability.shape[1]), self.survivors[:, None]
        log_reject = jnp.log1p(-jnp.exp(log_probability))
        chosen = jnp.where(index < survivors, log_probability, jnp.where(index == survivors, log_reject, 0))
        self.log_weight += jnp.where(index <= survivors, chosen, 0).sum(axis=1)
        return index < survivors


MODELS: dict[str, dict] = {
    "zaya": {},  # compressed convolutional attention and experts
    "llama": dict(attention="gqa", feed_forward="dense", residual_scaling=False, partial_rotary_factor=1.0),
}
# Drafters whose chains are fixed, given the text: their drafts are no outcomes, but the tokens after all rows are.
FIXED = {"ngram"}


@functools.cache
def tiny_model(name: str = "zaya"):
    with jax.enable_x64(True):
        config = small_config(
            vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1, num_experts=2, dtype="float64", param_dtype="float64",
            **MODELS[name],
        )  # fmt: skip
        return Zaya(config), random_variables(config, seed=2, scale=0.55)


@functools.cache
def logits_after(text: tuple[int, ...], anchor: int | None = None, name: str = "zaya") -> np.ndarray:
    """AR logits after the text [VOCAB]; or with an anchor, of the block after its first tokens [SIZE, VOCAB]."""
    tokens = np.zeros((1, 16), np.int32)
    tokens[0, : len(text)] = text
    out = _plain(name)(tokens, np.array([len(text)]), np.array([[len(text) if anchor is None else anchor]]))
    return np.asarray(out[len(text) - 1] if anchor is None else out[16:])


@functools.cache
def _plain(name: str):
    model, variables = tiny_model(name)

    @jax.jit
    def run(tokens, count, anchors):
        return model.apply(variables, Layout.verify_and_draft(tokens, 0, anchors, SIZE, count)).logits[0]

    return run


@functools.cache
def _compiled(plan: Plan, drafted: tuple[int, ...], name: str):
    """(begin, advance) with forced outcomes; each also returns the outcomes' log-probabilities, and the drafts'."""
    model, variables = tiny_model(name)
    variables = with_draft_vocabulary(model.config, variables, drafted) if drafted else variables

    @jax.jit
    def first(tokens, count, seen, options, outcomes):
        noise = Forced(*outcomes)
        setup = make_setup(model, variables, plan, options, noise)
        capacity = tokens.shape[1] + NEW + 3 * SIZE
        state = begin(setup, Prompts(tokens, count, seen), jnp.int32(NEW), Sizes(NEW, 1, capacity))
        return state, noise.log_weight, noise.log_drafts

    @jax.jit
    def go(state, options, outcomes):
        noise = Forced(*outcomes)
        state = advance(make_setup(model, variables, plan, options, noise), state, jnp.int32(NEW))
        return state, noise.log_weight, noise.log_drafts

    return first, go


def _take(state: State, index: np.ndarray) -> State:
    """Rows `index`; in the cache the batch is axis 1, but for length."""
    picked = state.cache.over_batch(lambda axis, x: x[:, index] if axis else x[index])
    return jax.tree.map(lambda x: x[index], state.replace(cache=None)).replace(cache=picked)


def _join(states: list[State]) -> State:
    first, *rest = (s.cache for s in states)
    cache = first.over_batch(lambda axis, *x: np.concatenate(x, axis), *rest)
    return jax.tree.map(lambda *x: np.concatenate(x), *[s.replace(cache=None) for s in states]).replace(cache=cache)


def _merge(prompt: np.ndarray, weight: np.ndarray, state: State):
    """Adds up rows that have emitted the same and will go on the same."""
    rows, count = len(weight), np.asarray(state.progress.count)
    text = np.where(np.arange(state.tokens.shape[1]) < count[:, None], state.tokens, -1)
    carry = [np.round(np.asarray(x, np.float64), 9) + 0.0 for x in jax.tree.leaves(state.carry)]
    columns = [x.reshape(rows, -1).astype(np.float64) for x in (prompt, text, count, np.asarray(state.done), *carry)]
    key = np.ascontiguousarray(np.concatenate(columns, axis=1))
    key = key.view(np.dtype((np.void, key.dtype.itemsize * key.shape[1]))).ravel()  # rows compared as bytes
    _, index, group = np.unique(key, return_index=True, return_inverse=True)
    return prompt[index], np.bincount(group, weight), _take(state, index)


def _outcomes(drafts: int, drafted: int) -> list[np.ndarray]:
    """Every (pending, drafts, survivors) of a step; a draft is one of `drafted` tokens."""
    every = itertools.product(range(VOCAB), itertools.product(range(drafted), repeat=drafts), range(drafts + 1))
    pending, drafted, survivors = zip(*every, strict=True)
    return [np.array(pending), np.array(drafted).reshape(len(pending), drafts), np.array(survivors)]


def _step(go, options, state: State, rows: np.ndarray, outcomes: list[np.ndarray]):
    """`go` for any number of (row of the state, outcome): the states after it, and both log-probabilities."""
    pieces = []
    for at in range(0, len(rows), BATCH):
        part = np.resize(np.arange(at, min(at + BATCH, len(rows))), BATCH)  # the last one is filled up
        out = jax.device_get(go(_take(state, rows[part]), options, [x[part] for x in outcomes]))
        kept = np.arange(min(BATCH, len(rows) - at))
        pieces.append((_take(out[0], kept), *(x[kept] for x in out[1:])))
    states, *weights = zip(*pieces, strict=True)
    return _join(list(states)), *map(np.concatenate, weights)


def _successors(go, options, state: State, alive: np.ndarray, every: list[np.ndarray], drafts_ahead: bool):
    """Yields (rows of `state`, their states after a step, the probability of that), every outcome of each once.

    Args:
      drafts_ahead: a step's drafts are tested in the next step. So none of those of a row's last step is ever read, and
        one stands for all of them.
    """
    rows, index = (x.ravel() for x in np.meshgrid(alive, np.arange(len(every[0])), indexing="ij"))
    if drafts_ahead:
        one = (every[1] == 0).all(1)[index]
        rows, index = rows[one], index[one]
        after, log_weight, _ = _step(go, options, state, rows, [x[index] for x in every])
        ends = np.flatnonzero(after.done)
        yield rows[ends], _take(after, ends), np.exp(log_weight[ends])
        goes_on = ~after.done & (log_weight > -np.inf)
        rows, index = rows[goes_on], index[goes_on]
        like = [np.flatnonzero((every[0] == every[0][i]) & (every[2] == every[2][i])) for i in index]
        rows, index = np.repeat(rows, list(map(len, like))), np.concatenate([np.zeros(0, int), *like])
    if len(rows):
        after, log_weight, log_drafts = _step(go, options, state, rows, [x[index] for x in every])
        yield rows, after, np.exp(log_weight + log_drafts)


def _fixed_outcomes(rows: int) -> list[np.ndarray]:
    """Every (tokens after all rows, no drafts, no survivors) of a step whose drafts are fixed."""
    after = np.array(list(itertools.product(range(VOCAB), repeat=rows)))
    return [after, after[:, :0], np.zeros(len(after), int)]


def sampler_distribution(
    sampler: SamplerConfig, drafted: tuple[int, ...] = (), name: str = "zaya"
) -> list[Distribution]:
    """The distribution of each prompt's continuation (up to NEW tokens or a stop) under the sampler.

    Args:
      drafted: the draft vocabulary, if the model has one.
      name: the model's, of MODELS.
    """
    plan, options = plan_of(sampler), options_of(sampler, np.float64)
    first, go = _compiled(plan, drafted, name)
    if sampler.tree_size or sampler.drafter in FIXED:
        every = _fixed_outcomes(plan.block_size)
    else:
        drafts = plan.block_size if sampler.mode == "two_pass" else plan.block_size - 1
        every = _outcomes(drafts, len(drafted) or VOCAB)
    total: list[Distribution] = [{} for _ in PROMPTS]

    width = max(map(len, PROMPTS))
    begins = [x[every[2] == 0] for x in every]  # nothing is tested yet
    if sampler.mode in ("two_pass", "drafter"):  # nor drafted
        begins = [np.arange(VOCAB), np.zeros((VOCAB, 0), int), np.zeros(VOCAB, int)]
    prompt = np.repeat(np.arange(len(PROMPTS)), len(begins[0]))
    tokens = np.array([list(p) + [0] * (width - len(p)) for p in PROMPTS])[prompt]
    count = np.array([len(p) for p in PROMPTS])[prompt]
    seen = np.array([[t in p for t in range(VOCAB)] for p in PROMPTS])[prompt]
    forced = [np.concatenate([x] * len(PROMPTS)) for x in begins]
    state, log_weight, log_drafts = jax.device_get(first(tokens, count, seen, options, forced))
    prompt, weight, state = _merge(prompt, np.exp(log_weight + log_drafts), state)

    while len(weight):
        for i in np.flatnonzero(state.done):
            text = tuple(state.tokens[i, : state.progress.count[i]].tolist())
            total[prompt[i]][text] = total[prompt[i]].get(text, 0.0) + weight[i]
        alive = np.flatnonzero(~state.done & (weight > 0))
        if not len(alive):
            break
        pieces = []
        for rows, after, probability in _successors(go, options, state, alive, every, sampler.mode == "single_pass"):
            new_weight = probability * weight[rows]
            keep = np.flatnonzero(new_weight > 0)
            if len(keep):
                pieces.append(_merge(prompt[rows[keep]], new_weight[keep], _take(after, keep)))
        prompts, weights, states = zip(*pieces, strict=True)
        prompt, weight, state = _merge(np.concatenate(prompts), np.concatenate(weights), _join(list(states)))
    return total


def total_variation(a: list[Distribution], b: list[Distribution]) -> float:
    """The largest over prompts."""
    return max(sum(abs(x.get(t, 0.0) - y.get(t, 0.0)) for t in {*x, *y}) / 2 for x, y in zip(a, b, strict=True))
