"""Drafters: what is trained at a slot is what is drafted at it, and a cache holds what its text gives.

Float64, a fixed text, a target with CCA and experts and one that is a Llama; each drafter with every parameter random.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import random_tokens, random_variables, small_config
from zaya_jax.architecture import Layout, Zaya, init_cache
from zaya_jax.architecture.drafters.config import DrafterConfig
from zaya_jax.errors import UserError

DRAFTERS = {
    "dflash": DrafterConfig("dflash", drafts=3, layers=2),
    "dflash, causal": DrafterConfig("dflash", drafts=3, causal=True, taps=(0, 2)),
    "eagle3": DrafterConfig("eagle3", drafts=3, own_head=True),
    "mtp": DrafterConfig("mtp", drafts=3),
    "medusa": DrafterConfig("medusa", drafts=3, own_head=True),
}
TARGETS = {
    "zaya": {},
    "llama": dict(attention="gqa", feed_forward="dense", residual_scaling=False, partial_rotary_factor=1.0),
}
# Each drafter over one target, and over the other in the slow tests.
ON_LLAMA = ("dflash, causal", "mtp")
EACH = [
    pytest.param(name, target, marks=() if (name in ON_LLAMA) == (target == "llama") else pytest.mark.slow)
    for name in DRAFTERS
    for target in TARGETS
]
ROWS = 4  # of a forward: of the prompt, and of the pending token and three drafts
KEPT = ((1, 4), (3, 1), (2, 2))  # committed by each, of either sequence
PROMPT = (4, 3)


def model_of(name: str, target: str = "zaya"):
    config = small_config(dtype="float64", param_dtype="float64", drafter=DRAFTERS[name], **TARGETS[target])
    return Zaya(config), random_variables(config)


class Drafting:
    """A drafter's two forms over one target; everything is traced within one program."""

    def __init__(self, model: Zaya, variables):
        self.model, self.variables, self.drafter = model, variables, model.config.drafter
        self.chain = self.drafter.kind in ("eagle3", "mtp")
        self.taps = self.drafter.taps_of(model.config.num_hidden_layers)

    def call(self, *args, method: str = "draft"):
        return self.model.apply(self.variables, *args, method=method)

    def logits(self, hidden):
        """[..., drafts, M] -> [..., drafts, V]."""
        slots = range(hidden.shape[-2])
        return jnp.stack([self.call(hidden[..., s, :], s, method="draft_head") for s in slots], axis=-2)

    def features(self, layout, cache=None):
        return self.model.apply(self.variables, layout, cache, self.taps, method="features")[:2]

    def train(self, tokens, document, first):
        layout = Layout.causal(tokens, document=document)
        features, embedded = self.features(layout)[0], self.call(tokens, method="embed")
        return self.logits(self.call("training", features, embedded, layout, first))

    def observe(self, cache, features, tokens, pending, count):
        """A forward's rows of tokens [B, T], the first `count` committed, `pending` [B] after them."""
        if not self.chain:
            return self.call("observe", cache, features, count)
        last = jnp.arange(tokens.shape[1]) == count[:, None] - 1
        following = jnp.where(last, pending[:, None], jnp.roll(tokens, -1, axis=1))
        return self.call("observe", cache, features, self.call(following, method="embed"), count)

    def propose(self, cache, pending, following):
        """Logits [B, drafts, V] of the tokens after the pending one where each draft is as `following` [B, n] says."""
        n = self.drafter.drafts
        if self.drafter.kind == "dflash":
            return self.logits(self.call("propose", cache, self.call(pending, method="embed"), n))
        if self.drafter.kind == "medusa":
            return self.logits(self.call("propose", cache, n))
        hidden, so_far = self.call("first", cache)
        out = [hidden]
        for s in range(n - 1):
            hidden, so_far = self.call("next", cache, so_far, self.call(following[:, s : s + 1], method="embed"))
            out.append(hidden)
        return self.logits(jnp.concatenate(out, axis=1))


def at(tokens, start, size):
    return jnp.take_along_axis(tokens, start[:, None] + jnp.arange(size), axis=1)


@functools.partial(jax.jit, static_argnums=0)
def step(model, variables, cache, state, text, kept):
    """(cache, drafter's state, its proposals) after `kept` [2] more tokens of `text` [2, T]; drafts beyond are rubbish.

    `cache` and `state` None: before the first step.
    """
    d = Drafting(model, variables)
    if cache is None:
        return init_cache(model.config, 2, 40), d.call("empty", 2, 40), None
    rubbish = (text + 5) % model.config.vocab_size
    real = jnp.arange(ROWS) < kept[:, None]
    tokens = jnp.where(real, at(text, cache.length, ROWS), at(rubbish, cache.length, ROWS))
    features, pending_cache = d.features(Layout.verify_and_draft(tokens, cache.length), cache)
    cache = pending_cache.commit(kept)
    pending = at(text, cache.length, 1)[:, 0]
    state = d.observe(state, features, tokens, pending, kept)
    np.testing.assert_equal(state.length.shape, cache.length.shape)
    return cache, state, d.propose(state, pending, at(text, cache.length + 1, d.drafter.drafts))


def decode(model, variables, text):
    """The drafter's proposals and states while `text` is committed piece by piece; one program for every piece."""
    cache, state, _ = step(model, variables, None, None, text, np.array(PROMPT))
    proposals, states = [], []
    for kept in (PROMPT, *KEPT):
        cache, state, proposed = step(model, variables, cache, state, text, np.array(kept))
        states.append(jax.device_get(state))
        proposals.append(jax.device_get(proposed))
    return proposals, states


@functools.partial(jax.jit, static_argnums=0)
def read_at_once(model, variables, text, length):
    """The drafter's state after the first `length` [2] tokens, read in one forward."""
    d = Drafting(model, variables)
    layout = Layout.verify_and_draft(text, 0, count=length)
    features, _ = d.features(layout, init_cache(model.config, 2, 40))
    return d.observe(d.call("empty", 2, 40), features, text, at(text, length, 1)[:, 0], length)


@functools.partial(jax.jit, static_argnums=0)
def train(model, variables, text, document, first):
    return Drafting(model, variables).train(text, document, first)


@pytest.mark.parametrize(("name", "target"), EACH)
def test_a_trained_slot_is_the_slot_that_is_drafted(name, target, x64):
    """And the state after any commits is that of the text, whatever was drafted and refused on the way."""
    model, variables = model_of(name, target)
    text = random_tokens(model.config, 2, 16)
    # the rows that are trained: rubbish of another document before, after and in place of what follows the text
    before = 3
    row = np.concatenate([random_tokens(model.config, 2, before, seed=1), text, text[:, :2]], axis=1)
    document = np.array([[1] * before + [2] * 16 + [3] * 2] * 2, np.int32)
    lengths = np.cumsum([PROMPT, *KEPT], axis=0)  # [step, sequence]
    anchored = name.startswith("dflash")
    trained = np.asarray(train(model, variables, row, document, (before + lengths.T).astype(np.int32)))
    proposals, states = decode(model, variables, text)
    for step, length in enumerate(lengths):
        for i in range(2):
            expected = trained[i, step] if anchored else trained[i, before + length[i] - 1]
            np.testing.assert_allclose(proposals[step][i], expected, rtol=0, atol=1e-12)
        fresh = jax.device_get(read_at_once(model, variables, text, length.astype(np.int32)))
        np.testing.assert_array_equal(states[step].length, length)
        np.testing.assert_allclose(states[step].hidden, fresh.hidden, rtol=0, atol=1e-12)
        for i in range(2):
            for field in ("key", "value"):
                got, expected = (getattr(state, field)[i, :, : length[i]] for state in (states[step], fresh))
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
    assert np.ptp(proposals[0][0], axis=0).max() > 0.01  # slots differ


def test_a_drafter_is_made_beside_its_model_and_read_back():
    config = small_config(drafter=DrafterConfig("eagle3", taps=(0, 1), own_head=True))
    params = random_variables(config)["params"]
    assert {"drafter", "drafter_head"} <= set(params)
    assert small_config(drafter={"kind": "eagle3", "taps": [0, 1], "own_head": True}) == config


def test_what_no_drafter_can_be_is_refused():
    for fields, words in (
        (dict(kind="medusa", layers=2), "DrafterConfig.layers: got 2, may be 1 where kind is 'medusa'"),
        (dict(kind="mtp", taps=(1,)), r"DrafterConfig.taps: got \(1,\), may be \(\) where kind is 'mtp'"),
        (dict(kind="eagle"), "DrafterConfig.kind: got 'eagle', may be one of"),
    ):
        with pytest.raises(UserError, match="^" + words):
            DrafterConfig(**fields)
    with pytest.raises(UserError, match=r"^ZayaConfig.drafter.taps: got \(3,\), may be of 0 .. num_hidden_layers \(2"):
        small_config(drafter=DrafterConfig(taps=(3,)))
    with pytest.raises(UserError, match=r"^ZayaConfig.drafter: got 3, may be a DrafterConfig or None"):
        small_config(drafter=3)
