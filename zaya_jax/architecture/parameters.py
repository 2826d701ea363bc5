"""Parameters of modules, read cheaply."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn


def parameter(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`module.param(name, init, shape, dtype)`.

    Flax traces `init` at each application, to compare its shape with the one that is there. Here the shapes are
    compared, and Flax is called where there is something to make or to complain of.
    """
    value = module.get_variable("params", name)
    if value is None or value.shape != shape:
        return module.param(name, init, shape, dtype)
    return value
