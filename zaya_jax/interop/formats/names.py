"""One table between our parameters and another library's tensors, read by both import and export.

Ours are stacked along a leading layer axis (`nn.scan`) and lie as JAX multiplies them; theirs are one tensor a layer
(or an expert) in torch's [out, in] order. A family of models (`families`) lists every pair once, as an `Entry`: where
ours stands, what theirs are called, and how one lies in terms of the other.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zaya_jax.architecture import Layout, Zaya, ZayaConfig
from zaya_jax.interop.formats.tensorfile import Spec

Path = tuple[str, ...]
Index = tuple[int | slice, ...]

EMBEDDING = "model.embed_tokens.weight"  # in every family
HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Lay:
    """How one tensor lies: functions between the two orders, on NumPy and JAX arrays alike."""

    to_huggingface: Callable[[Any], Any]
    from_huggingface: Callable[[Any], Any]


SAME = Lay(lambda x: x, lambda x: x)
# torch Linear: weight [out, in]; ours: kernel [in, out]
LINEAR = Lay(lambda x: x.T, lambda x: x.T)
# torch Conv1d with one channel a group: [channels, 1, taps]; ours: [taps, channels]. No tap is flipped: both correlate.
DEPTHWISE = Lay(lambda x: x.T[:, None, :], lambda x: x[:, 0, :].T)
# torch Conv1d with one head a group: [head * d_out, d_in, taps]; ours: [taps, head, d_in, d_out], d_in = d_out.
GROUPED = Lay(
    lambda x: x.transpose(1, 3, 2, 0).reshape(x.shape[1] * x.shape[3], x.shape[2], x.shape[0]),
    lambda x: x.reshape(-1, x.shape[1], x.shape[1], x.shape[2]).transpose(3, 0, 2, 1),
)
# experts: torch [expert, out, in] (gate first in gate_up's out); ours: [expert, in, out]
EXPERTS = Lay(lambda x: x.swapaxes(1, 2), lambda x: x.swapaxes(1, 2))


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of our arrays, or a part of one, and the tensors that another library keeps it in.

    Attributes:
      path: in variables, e.g. ("params", "layers", "self_attn", "q_proj", "kernel").
      names: theirs, row by row along our `stacked` leading axes.
      lay: of one tensor.
      stacked: leading axes of ours that `names` runs through: none, layers, or layers and experts.
      part: (i, n): the tensors are the i-th of n equal parts of our last axis, and other entries have the rest.
    """

    path: Path
    names: tuple[str, ...]
    lay: Lay = SAME
    stacked: int = 0
    part: tuple[int, int] = (0, 1)

    def slots(self, shape: Sequence[int]) -> Iterator[tuple[str, Index]]:
        """(their tensor, where in our array of this shape it stands), in order."""
        rows = itertools.product(*(range(size) for size in shape[: self.stacked]))
        for name, row in zip(self.names, rows, strict=True):
            yield name, (*row, *self._columns(shape))

    def slot_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one tensor, lying as ours does."""
        inner = tuple(shape[self.stacked :])
        return inner if self.part == (0, 1) else (*inner[:-1], inner[-1] // self.part[1])

    def _columns(self, shape: Sequence[int]) -> Index:
        number, count = self.part
        if count == 1:
            return ()
        width = shape[-1] // count
        return (*(slice(None),) * (len(shape) - self.stacked - 1), slice(number * width, (number + 1) * width))


def whole(path: str, name: str, lay: Lay = SAME) -> Entry:
    """An array of the whole model; `path` with slashes, in the parameters."""
    return Entry(("params", *path.split("/")), (name,), lay)


def layered(
    config: ZayaConfig,
    path: str,
    name: str,
    lay: Lay = SAME,
    *,
    collection: str = "params",
    part: tuple[int, int] = (0, 1),
) -> Entry:
    """An array of the scanned layers, `path` with slashes after them; "{}" in `name` stands for the layer."""
    names = tuple(name.format(layer) for layer in range(config.num_hidden_layers))
    return Entry((collection, "layers", *path.split("/")), names, lay, stacked=1, part=part)


def abstract_variables(config: ZayaConfig) -> dict[Path, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of our variables by path, by `jax.eval_shape`: nothing is allocated."""
    return dict(_abstract_variables(config))


@functools.lru_cache(maxsize=64)
def _abstract_variables(config: ZayaConfig) -> dict[Path, jax.ShapeDtypeStruct]:
    variables = jax.eval_shape(
        lambda key, tokens: Zaya(config).init(key, Layout.causal(tokens)),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((1, 1), jnp.int32),
    )
    return cast(dict[Path, jax.ShapeDtypeStruct], traverse_util.flatten_dict(variables))


def tensor_specs(entries: Sequence[Entry], config: ZayaConfig) -> dict[str, Spec]:
    """Name -> (shape, dtype) of every tensor of `entries`, which are of this config. Nothing is allocated."""
    ours = abstract_variables(config)
    specs: dict[str, Spec] = {}
    for entry in entries:
        array = ours[entry.path]
        slot = jax.ShapeDtypeStruct(entry.slot_shape(array.shape), array.dtype)
        theirs = jax.eval_shape(entry.lay.to_huggingface, slot)
        assert len(entry.names) == math.prod(array.shape[: entry.stacked]), entry
        specs.update(dict.fromkeys(entry.names, (tuple(theirs.shape), np.dtype(array.dtype))))
    return specs
