"""SamplerConfig takes whatever is plainly a number or a collection, and keeps Python's own values."""

import dataclasses
import json
from collections import deque
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from tests.sampling.test_generate import model_of
from zaya_jax.sampling import SamplerConfig, generate
from zaya_jax.sampling.core.random_streams import row_keys

PLAIN = SamplerConfig("single_pass", 8, (1, 3), temperature=0.5, top_k=4, stop_tokens=(2, 5), stop_strings=("a", "b"))


@pytest.mark.parametrize(
    "same",
    [
        dict(block_size=np.int64(8), temperature=np.float32(0.5), top_k=np.uint8(4)),
        dict(block_size=np.array(8), temperature=jnp.float32(0.5), top_k=jnp.int32(4), mode=np.str_("single_pass")),
        dict(temperature=Fraction(1, 2), stop_tokens={5, 2}, stop_strings={"b", "a"}, anchors={3, 1}),
        dict(stop_tokens=frozenset({2, 5}), stop_strings=["a", "b"], anchors=[np.int64(1), 3]),
        dict(stop_tokens=np.array([2, 5]), stop_strings=deque(["a", "b"]), anchors=np.array([1, 3])),
        dict(stop_tokens=jnp.array([2, 5]), stop_strings=np.array(["a", "b"]), anchors=range(1, 4, 2)),
        dict(stop_tokens={2: "a", 5: "b"}.keys(), stop_strings=("a", np.str_("b"))),
    ],
    ids=["NumPy", "arrays", "sets", "frozen sets", "a deque", "a range", "keys"],
)
def test_numbers_and_collections_are_kept_as_pythons(same):
    sampler = dataclasses.replace(PLAIN, **same)
    assert sampler == PLAIN and hash(sampler) == hash(PLAIN) and repr(sampler) == repr(PLAIN)
    assert json.dumps(dataclasses.asdict(sampler)) == json.dumps(dataclasses.asdict(PLAIN))


def test_acceptance_may_be_arrays():
    rates, runs = (0.75, 0.5, 0.25), ((1, 2, 4, 4), (1, 3, 3, 1))
    for given, wanted in ((rates, rates), (runs, runs)):
        for kind in (list, np.array, jnp.array):
            sampler = SamplerConfig(block_size=4, anchors=np.int64(2), acceptance=kind(given))
            assert sampler == SamplerConfig(block_size=4, anchors=2, acceptance=wanted) and hash(sampler)
            assert sampler.acceptance == wanted
    assert SamplerConfig(block_size=4, anchors=2, acceptance=[np.array([1, 2]), [1, 3]]).acceptance == ((1, 2), (1, 3))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("mode", [None, 3, ["single_pass"], np.array(["single_pass"]), b"single_pass"]),
        ("target", [3, ["autoregressive"], b"autoregressive", np.zeros(2)]),
        ("block_size", [True, np.bool_(True), 8.0, "8", None, [8], np.array([8, 8]), 10**9, float("nan")]),
        ("anchors", [None, 2.5, True, {"1": 2}, [1.0, 2.0], [[1, 2]], np.zeros((2, 2), int), b"all", object()]),
        ("acceptance", [0.5, "high", {0.1, 0.2, 0.3}, {}, [], [[]], [[1, 2], 0.5], [0.5] * 3, np.zeros((2, 2, 2))]),
        ("beta", ["half", None, np.array([0.5, 0.5]), np.bool_(True), 1j, np.nan]),
        ("temperature", [[1.0], np.ones(3), np.complex64(1), "warm"]),
        ("draft_temperature", [[1.0], "warm", np.inf]),
        ("top_k", [np.float32(3), 1.5, -1, None, {3}]),
        ("top_p", [0, 1.1, np.float32("nan")]),
        ("reveal", [0, np.True_, 1.0]),
        (
            "stop_tokens",
            [257, None, "257", b"2", {2: 1}, [2.0], [[1, 2]], {1, "a"}, [True], iter([1]), np.array([0.5])],
        ),
        ("stop_strings", ["stop", None, [1], [""], {"a": 1}, [b"a"], [["a"]], 3]),
        ("min_new_tokens", [None, "4", -1]),
    ],
)
def test_all_else_is_refused_in_one_line(field, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^SamplerConfig\.{field}: got ") as error:
            SamplerConfig(**{"acceptance": None, field: value})
        assert "\n" not in str(error.value) or isinstance(value, np.ndarray)


def test_generates_own_arguments_are_taken_likewise():
    model, variables = model_of()
    sampler = SamplerConfig("autoregressive")
    want = generate(model, variables, [[1, 2], [3, 4]], sampler, 5, seed=[1, 2]).tokens
    for prompts in (np.array([[1, 2], [3, 4]]), jnp.array([[1, 2], [3, 4]]), ((1, 2), (np.int32(3), 4))):
        got = generate(model, variables, prompts, sampler, np.int64(5), seed=np.array([1, 2]), samples=np.int32(1))
        assert got.tokens == want
        assert all(type(token) is int for text in got.session.texts for token in text)
    assert (row_keys(np.array(3), 2) == row_keys(3, 2)).all()
    for prompts in (5, [5], ["ab"], [[1.5]], [[True]], [[None]], None, "ab", {1: [2]}, [{1, 2}]):
        with pytest.raises(ValueError, match=r"^prompts"):
            generate(model, variables, prompts, sampler, 5)
    for name, values in {
        "seed": (1.5, "1", True, None, [1, 2.5], -1),
        "samples": (1.0, None),
        "max_new_tokens": ("5",),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}: got"):
                generate(model, variables, [[1], [2]], sampler, **{"max_new_tokens": 5, name: value})
