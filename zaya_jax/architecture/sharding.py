"""How a mapped computation's devices share one model: the logical axes of every parameter and activation.

Model code names logical axes and never a mesh axis. `Shards` says which names of the surrounding `jax.shard_map` carry
each of them; the config's mesh decides that (`zaya_jax.parallel`). Without rules nothing is split, and no collective
appears anywhere.

* batch, sequence: activations, by rows of a batch and by pieces of a row (`Layout.part`). They stay split; CCA fetches
  what stands before its piece (`cca`), attention the keys of all pieces.
* expert: expert weights. Tokens travel to them (`moe.across`).
* embed, mlp, heads, kv_heads, router, vocab: other axes of weights (FSDP), gathered for the layer that is computed.
"""

import dataclasses
from typing import Any

import jax

Array = jax.Array
Path = tuple[str, ...]
WEIGHT_AXES = ("expert", "embed", "mlp", "heads", "kv_heads", "router", "vocab")
ACTIVATION_AXES = ("batch", "sequence")

# By the end of a parameter's path; the leading axis of layers is added below. What is not here is a vector, or a small
# kernel of the convolutions, and is never split.
_AXES: dict[Path, tuple[str | None, ...]] = {
    ("embed_tokens",): ("vocab", "embed"),
    ("lm_head", "kernel"): ("embed", "vocab"),
    ("self_attn", "q_proj", "kernel"): ("embed", "heads"),
    ("self_attn", "k_proj", "kernel"): ("embed", "kv_heads"),
    ("self_attn", "v_proj", "kernel"): ("embed", "kv_heads"),
    ("self_attn", "v_proj_current", "kernel"): ("embed", "kv_heads"),
    ("self_attn", "v_proj_delayed", "kernel"): ("embed", "kv_heads"),
    ("self_attn", "o_proj", "kernel"): ("heads", "embed"),
    ("gate", "down_proj", "kernel"): ("embed", "router"),
    ("gate", "fc1", "kernel"): ("router", None),
    ("gate", "fc2", "kernel"): ("router", None),
    ("gate", "out_proj", "kernel"): ("router", None),
    ("mlp", "gate_up_proj"): ("embed", "mlp"),
    ("mlp", "down_proj"): ("mlp", "embed"),
}
_EXPERTS = (("mlp", "gate_up_proj"), ("mlp", "down_proj"))


def logical_axes(path: Path, ndim: int) -> tuple[str | None, ...]:
    """The logical axis of each dimension of a parameter, or of anything shaped like it (a moment, an average).

    Args:
      path: e.g. ("layers", "self_attn", "q_proj", "kernel"); only its end matters.
      ndim: the axis of layers included.
    """
    for end, axes in _AXES.items():
        if path[-len(end) :] == end:
            if end in _EXPERTS and ndim == 4:  # a dense feed-forward has the same names and one axis fewer
                axes = ("expert", *axes)
            return (None,) * (ndim - len(axes)) + axes
    return (None,) * ndim


@dataclasses.dataclass(frozen=True)
class Shards:
    """Which names of the surrounding `shard_map` split each logical axis; hashable, for it is part of the model.

    Attributes:
      rules: (logical axis, names) pairs. A name that already splits an earlier dimension of the same weight is left
        out there, so that "embed" may name the experts' axis too, for the weights that have no experts.
      exchange: how tokens travel to experts (`moe.across.EXCHANGES`).
    """

    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()
    exchange: str = "all_gather"

    def names(self, logical: str | None) -> tuple[str, ...]:
        return next((names for axis, names in self.rules if axis == logical), ())

    def spec(self, path: Path, ndim: int) -> tuple[tuple[str, ...], ...]:
        """The names that split each dimension of a weight, as a PartitionSpec takes them."""
        taken: list[str] = []
        spec = []
        for axis in logical_axes(path, ndim):
            free = tuple(name for name in self.names(axis) if name not in taken)
            taken += free
            spec.append(free)
        return tuple(spec)

    def gather(self, tree: Any) -> Any:
        """A tree of this device's weights, as they are stored -> the whole weights, but for the experts' axis.

        Its transpose adds up the gradients of all devices and leaves each its own share.
        """
        return self._gather(tree, (), 0)

    def gather_layer(self, tree: Any) -> Any:
        """`gather` for the weights of one layer, without the axis of layers."""
        return self._gather(tree, ("layers",), 1)

    def _gather(self, tree: Any, prefix: Path, missing: int) -> Any:
        def whole(path, leaf: Array) -> Array:
            keys, ndim = prefix + tuple(key.key for key in path), leaf.ndim + missing
            axes = zip(logical_axes(keys, ndim)[missing:], self.spec(keys, ndim)[missing:], strict=True)
            for dim, (axis, names) in enumerate(axes):
                if names and axis != "expert":
                    leaf = jax.lax.all_gather(leaf, names, axis=dim, tiled=True)
            return leaf

        return jax.tree_util.tree_map_with_path(whole, tree) if self.rules else tree
