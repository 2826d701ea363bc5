"""Small models with every parameter random, shared by the tests."""

import contextlib
import functools
import resource
import signal
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from zaya_jax.architecture import Layout, Zaya, ZayaConfig, preset
from zaya_jax.architecture.moe.router import BALANCING, init_balancing_biases
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import TrainState, init_state


@contextlib.contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Fails where what stands in it does not end; what waits within a library's own code is not interrupted."""

    def stop(*_: object) -> None:
        raise AssertionError(f"more than {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """A disk that takes no more of a file: what is written beyond fails, in Python and in the writers in C++."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def small_config(**changes) -> ZayaConfig:
    """Two layers, two KV heads, four experts; everything a model of ours has, small enough to enumerate."""
    base = dict(vocab_size=17, hidden_size=16, head_dim=4, moe_intermediate_size=8, router_hidden_size=8)
    special = dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    return preset("tiny", **{**base, **special, **changes})


@functools.lru_cache(maxsize=32)
def _initial_variables(config: ZayaConfig, wide: bool) -> dict:
    """Zeros and ones, where a model that is to be trained would also draw; `wide`: jax_enable_x64, as it is set.

    By NumPy, of what `init` is seen to ask for while it is traced: compiling it would take longer than the model.
    """
    ones, param = set(), nn.Module.param

    def watched(module: nn.Module, name: str, init: Callable, *args, **named):
        if init is nn.initializers.ones:
            ones.add((*module.scope.path, name))
        return param(module, name, init, *args, **named)

    def initial(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        collection, *rest = (key.key for key in path)
        if collection == "params":
            return np.full(leaf.shape, tuple(rest) in ones, leaf.dtype)
        assert collection == BALANCING, collection
        return np.broadcast_to(np.asarray(init_balancing_biases(leaf.shape[-1])), leaf.shape)

    with mock.patch.object(nn.Module, "param", watched):
        tokens = np.zeros((1, 2), np.int32)
        shapes = jax.eval_shape(lambda: Zaya(config).init(jax.random.key(0), Layout.causal(tokens)))
    return jax.tree.map_with_path(initial, shapes)


def random_variables(config: ZayaConfig, seed: int = 0, scale: float = 0.35) -> dict:
    """Variables in which no parameter is at its initial value, so that no term can hide."""
    leaves, tree = jax.tree.flatten(_initial_variables(config, jax.config.jax_enable_x64))
    rng = np.random.default_rng(seed)
    noisy = [np.asarray(x) + (scale * rng.standard_normal(x.shape)).astype(x.dtype) for x in leaves]
    return jax.tree.unflatten(tree, jax.device_put(noisy))  # jnp.asarray compiles a program for each shape


def cast(tree, dtype: str):
    """The tree's arrays in another dtype, by NumPy: a program for each shape would take longer."""
    return jax.tree.map(lambda x: placed_as(x, np.asarray(x).astype(jnp.dtype(dtype))), tree)


def placed_as(x: jax.Array, values: np.ndarray) -> jax.Array:
    """Values where `x` is, and bound to it as `x` is; a program that takes `x` would be compiled anew for others."""
    return jax.device_put(values, x.sharding if x.committed else None)


def fresh_state(variables: dict, optimizer: OptimizerConfig, seed: int = 0) -> TrainState:
    """`init_state` in one program, of copies: a train step gives its state's buffers away."""
    copies = jax.device_put(jax.tree.map(np.array, variables))
    return jax.jit(lambda copies: init_state(copies, optimizer, seed))(copies)


def built(constructor: Callable[..., Layout], tokens, **named) -> Layout:
    """A layout by one of `Layout`'s constructors in one program; called directly, each of its operations is one.

    Arrays may differ from call to call, all else is the program's.
    """
    arrays = {name: x for name, x in named.items() if isinstance(x, np.ndarray | np.generic | jax.Array)}
    return _builder(constructor, tuple((name, x) for name, x in named.items() if name not in arrays))(tokens, arrays)


@functools.cache
def _builder(constructor: Callable[..., Layout], static: tuple):
    return jax.jit(lambda tokens, arrays: constructor(tokens, **dict(static), **arrays))


def drawn_by(objective, key: jax.Array, *shape: int) -> dict:
    """What an objective draws for a batch of that shape, in one program."""
    return jax.device_get(jax.jit(lambda key: objective.draw(key, *shape))(key))


def random_tokens(config: ZayaConfig, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)


def need_transformers_zaya() -> None:
    """Skips a test that compares with transformers' ZAYA where the `parity` extra is not installed."""
    pytest.importorskip("torch", reason="the comparison needs the `parity` extra: torch")
    transformers = pytest.importorskip("transformers", reason="the comparison needs the `parity` extra: transformers")
    if not hasattr(transformers, "ZayaForCausalLM"):
        pytest.skip(f"transformers {transformers.__version__} has no ZAYA, 5.23.0 has")
