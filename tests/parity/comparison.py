"""Our logits beside transformers', shared by the fixture tests and the live tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tests.helpers import cast, placed_as
from zaya_jax.architecture import Execution, Layout, Zaya, ZayaConfig, init_cache
from zaya_jax.architecture.execution import DEFAULT

U = 2.0**-8  # bfloat16's unit roundoff
TOLERANCE = 2e-4  # of the logits' std: the contract (docs/testing.md#what-is-proven-and-where)


@functools.cache
def compiled(config: ZayaConfig, execution: Execution = DEFAULT):
    """A jitted forward pass (variables, layout, cache) -> ZayaOutput; one per config, shared by its tests."""
    return jax.jit(Zaya(config, execution).apply)


@functools.cache
def _rows(config: ZayaConfig, execution: Execution):
    """A jitted (variables, tokens, valid) -> logits of whole rows, the layout's own operations included."""
    apply = Zaya(config, execution).apply
    return jax.jit(lambda variables, tokens, valid: apply(variables, Layout.causal(tokens, valid)).logits)


@functools.cache
def _chunk(config: ZayaConfig):
    """A jitted (variables, tokens, cache) -> (logits, the cache with the tokens)."""

    @jax.jit
    def run(variables, tokens, cache):
        result = Zaya(config).apply(variables, Layout.verify_and_draft(tokens, start=cache.length), cache)
        return result.logits, result.cache.commit(jnp.full((tokens.shape[0],), tokens.shape[1], jnp.int32))

    return run


def logits(
    config: ZayaConfig, variables, tokens: np.ndarray, valid: np.ndarray | None = None, execution: Execution = DEFAULT
) -> np.ndarray:
    """One pass over whole rows, float32 [batch, row, vocab]."""
    with jax.default_matmul_precision("highest"):
        return np.asarray(_rows(config, execution)(variables, tokens, valid))


def cached_logits(config: ZayaConfig, variables, tokens: np.ndarray, chunks: tuple[int, ...]) -> np.ndarray:
    """The same rows, fed in chunks through the cache."""
    assert sum(chunks) == tokens.shape[1], (chunks, tokens.shape)
    batch, row = tokens.shape
    cache, out, start = jax.jit(lambda: init_cache(config, batch, row))(), [], 0
    with jax.default_matmul_precision("highest"):
        for size in chunks:
            logits, cache = _chunk(config)(variables, tokens[:, start : start + size], cache)
            out.append(np.asarray(logits))
            start += size
    return np.concatenate(out, axis=1)


def deviation(got: np.ndarray, expected: np.ndarray, valid: np.ndarray) -> float:
    """max |got - expected| on real positions, relative to the expected logits' std there."""
    real = valid.astype(bool)
    return float(np.abs(got[real] - expected[real]).max() / expected[real].std())


def assert_hangs_on_every_parameter(config: ZayaConfig, variables, expected: dict) -> None:
    """Each array of the variables, disturbed alone, breaks the contract."""
    rng, flat = np.random.default_rng(0), traverse_util.flatten_dict(variables)
    for path, value in flat.items():
        noise = rng.standard_normal(value.shape, np.float32)
        disturbed = traverse_util.unflatten_dict(
            {**flat, path: placed_as(value, np.asarray(value) + np.float32(0.3) * noise)}
        )
        got = logits(config, disturbed, expected["tokens"], expected["valid"])
        assert deviation(got, expected["logits"], expected["valid"]) > 10 * TOLERANCE, path


def assert_as_near_in_bfloat16(config: ZayaConfig, variables, low: dict) -> None:
    """Weights rounded to bfloat16: our bfloat16 logits against float32 logits of the same rounded weights.

    The errors compared are root mean squares over all logits of real positions, ours and transformers' own, both
    against transformers' float32 logits. About 20 roundings of at most U reach the stream in each layer, and
    independent ones add as a root; a deviation is relative to the logits' standard deviation.
    """
    valid, wide = low["valid"].astype(bool), low["float32_logits"]
    params = cast(variables["params"], "bfloat16")
    rounded = {**variables, "params": cast(params, "float32")}
    assert deviation(logits(config, rounded, low["tokens"], valid), wide, valid) <= TOLERANCE
    half = config.replace(dtype="bfloat16", param_dtype="bfloat16")
    ours = logits(half, {**variables, "params": params}, low["tokens"], valid)
    assert ours.dtype == np.float32
    ours, theirs = (np.sqrt(np.mean((x - wide)[valid] ** 2)) / wide[valid].std() for x in (ours, low["logits"]))
    assert 0 < ours <= U * np.sqrt(20 * config.num_hidden_layers)
    assert ours <= theirs
