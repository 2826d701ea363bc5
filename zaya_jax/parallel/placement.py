"""A mesh and the rules that lay a model and its batches over it. Models know nothing of this.

Four mesh axes, each of any size:

| mesh axis | splits                                                            | by default carries the logical axes |
|-----------|-------------------------------------------------------------------|-------------------------------------|
| data      | rows of a batch                                                   | batch                               |
| fsdp      | rows of a batch; weights and their optimizer state                | batch, embed                        |
| expert    | rows of a batch; experts (tokens travel to them)                  | batch, expert                       |
| context   | the rows themselves: long texts                                   | sequence                            |

`rules` of the config give a logical axis (architecture/shards.py) to other mesh axes: {"embed": ("fsdp", "expert")}
splits the weights without experts over the experts' devices, too.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zaya_jax.architecture import Execution, ZayaConfig
from zaya_jax.architecture.execution import DEFAULT
from zaya_jax.architecture.moe.across import cheapest_exchange
from zaya_jax.architecture.sharding import ACTIVATION_AXES, WEIGHT_AXES, Shards
from zaya_jax.checks import Integer, check_fields
from zaya_jax.errors import UserError

AXES = ("data", "fsdp", "expert", "context")
DEVICES = 2**20  # of any axis; a mesh has no more devices than there are
SIZE = Integer(1, DEVICES)
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "sequence": ("context",),
    "expert": ("expert",),
    "embed": ("fsdp",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes and the rules for it.

    Attributes:
      data: 0 takes as many of the devices that are left as divide the batch's rows.
      rules: (logical axis, mesh axes) pairs in place of the default ones.
    """

    data: Annotated[int, Integer(0, DEVICES)] = 0
    fsdp: Annotated[int, SIZE] = 1
    expert: Annotated[int, SIZE] = 1
    context: Annotated[int, SIZE] = 1
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        check_fields("MeshConfig", self)
        for logical, names in self.rules:
            if logical not in (*WEIGHT_AXES, *ACTIVATION_AXES):
                raise UserError(f"rules: got {logical!r}, may be one of {(*ACTIVATION_AXES, *WEIGHT_AXES)}")
            unknown = [name for name in names if name not in AXES]
            if unknown:
                raise UserError(f"rules.{logical}: got {unknown[0]!r}, may be some of {AXES}")
            if len(set(names)) < len(names):
                raise UserError(f"rules.{logical}: got {names}, may be some of {AXES}, each once")
        # Each device computes its own rows and piece of a row; anything else would be computed twice and counted twice.
        rules = self.all_rules
        if sorted(rules["batch"] + rules["sequence"]) != sorted(AXES):
            got = f"{rules['batch']} and {rules['sequence']}"
            raise UserError(f"rules: batch and sequence got {got}, may share out {AXES}")
        if not set(rules["expert"]) <= set(rules["batch"]):
            raise UserError(f"rules.expert: got {rules['expert']}, may be some of batch's {rules['batch']}")

    @property
    def all_rules(self) -> dict[str, tuple[str, ...]]:
        return RULES | {logical: tuple(names) for logical, names in self.rules}


@dataclasses.dataclass(frozen=True)
class Placement:
    """Devices, and what each holds of a model, its optimizer and a batch."""

    mesh: Mesh
    shards: Shards

    def names(self, logical: str) -> tuple[str, ...]:
        return self.shards.names(logical)

    def split(self, logical: str) -> int:
        """Into how many pieces a logical axis is cut."""
        return math.prod(self.mesh.shape[name] for name in self.names(logical))

    def whole(self) -> NamedSharding:
        """Everything on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def rows(self) -> NamedSharding:
        """Arrays [batch, ...] by rows."""
        return NamedSharding(self.mesh, PartitionSpec(self.names("batch")))

    def specs(self, tree: Any) -> Any:
        """A PartitionSpec for each leaf of a tree of weights, or of states that hold trees of their shapes."""

        def spec(path, leaf) -> PartitionSpec:
            keys: list[str] = []  # the end of the path, where it runs through a tree of weights
            for key in reversed(path):
                if not isinstance(key, jax.tree_util.DictKey):
                    break
                keys.insert(0, key.key)
            return PartitionSpec(*(names or None for names in self.shards.spec(tuple(keys), np.ndim(leaf))))

        return jax.tree_util.tree_map_with_path(spec, tree)

    def shardings(self, tree: Any) -> Any:
        specs = self.specs(tree)
        is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=is_spec)

    def put(self, tree: Any) -> Any:
        """Weights or a training state, laid over the devices; every process must hold the same values."""
        return jax.tree.map(_put, tree, self.shardings(tree))

    def own_rows(self, count: int) -> np.ndarray:
        """Which of a batch's `count` rows this process's devices hold, in increasing order."""
        places = self.rows().addressable_devices_indices_map((count,)).values()
        return np.unique(np.concatenate([np.arange(count)[index] for index in places]))

    def put_batch(
        self, batch: Mapping[str, np.ndarray], own: tuple[int, np.ndarray] | None = None
    ) -> dict[str, jax.Array]:
        """A batch, of which each process puts its own devices' rows.

        Args:
          batch: the whole of it, the same in every process; or, with
          own: (rows of a batch, those that `own_rows` gives of so many), these alone.
        """
        if own is None:
            return {name: _put(value, self.rows()) for name, value in batch.items()}
        count, rows = own
        at = np.full(count, -1)
        at[rows] = np.arange(len(rows))

        def of(value: np.ndarray) -> jax.Array:
            shape = (count, *value.shape[1:])

            def part(index: Any) -> np.ndarray:
                return value[at[index[0]]][:, *index[1:]]

            return jax.make_array_from_callback(shape, self.rows(), part)

        return {name: of(value) for name, value in batch.items()}


def _put(value: Any, sharding: NamedSharding) -> jax.Array:
    everywhere = isinstance(value, jax.Array) and not value.is_fully_addressable  # laid over the processes already
    if sharding.is_fully_addressable or everywhere:
        return jax.device_put(value, sharding)
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def make_placement(
    config: MeshConfig, model: ZayaConfig, batch_size: int, row_length: int, block_size: int = 1,
    devices: list | None = None, execution: Execution = DEFAULT,
) -> Placement | None:  # fmt: skip
    """The placement that a config asks for; None on a single device.

    Args:
      batch_size, row_length: of the global batch.
      block_size: of the draft blocks, 1 without drafts.
      devices: jax.devices() by default; described devices of a target to compile for.
      execution: some ways to compute cannot be split.

    Raises:
      UserError: one line: sizes that do not go together, or more devices than there are.
    """
    here, devices = devices is None, jax.devices() if devices is None else devices
    sizes = {name: getattr(config, name) for name in AXES}
    others = sizes["fsdp"] * sizes["expert"] * sizes["context"]
    if not sizes["data"]:
        share = sizes["fsdp"] * sizes["expert"]
        fits = [n for n in range(1, len(devices) // others + 1) if batch_size % (n * share) == 0]
        sizes["data"] = max(fits, default=1)
    count = sizes["data"] * others
    if count > len(devices):
        raise UserError(f"mesh: got {sizes}, {count} devices, may be at most the {len(devices)} that are here")
    if jax.process_count() > 1 and count != len(devices):
        raise UserError(f"mesh: got {sizes}, {count} devices, may be all {len(devices)} of the run's processes")
    if count == 1:
        return None
    # Auto, not the default Explicit: what is not mapped (the optimizer) is left to the compiler.
    shape, kinds = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
    if here:
        mesh = jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices[:count])
    else:  # whose wiring `make_mesh` would ask for
        mesh = Mesh(np.array(devices[:count]).reshape(shape), AXES, axis_types=kinds)
    used = {axis: tuple(n for n in names if sizes[n] > 1) for axis, names in config.all_rules.items()}
    exchange = execution.expert_exchange
    if exchange == "auto":
        exchange = cheapest_exchange(devices[0].platform)
    placement = Placement(mesh, Shards(tuple((axis, names) for axis, names in used.items() if names), exchange))
    _check(placement, model, execution, batch_size, row_length, block_size)
    return placement


def _check(
    placement: Placement, model: ZayaConfig, execution: Execution, batch_size: int, row_length: int, block_size: int
) -> None:
    if placement.names("sequence"):
        if row_length % block_size:
            may_be = f"a multiple of block_size ({block_size}) where mesh.context splits it"
            raise UserError(f"row_length: got {row_length}, may be {may_be}")
        if model.succession != "text" or execution.attention_backend == "dense":
            raise UserError("mesh.context: may be 1 with model.succession 'row' or execution.attention_backend 'dense'")
    lengths = {
        "embed": ("model.hidden_size", model.hidden_size),
        "vocab": ("model.vocab_size", model.vocab_size),
        "mlp": ("model.moe_intermediate_size", model.moe_intermediate_size),
        "heads": ("model.num_attention_heads * head_dim", model.num_attention_heads * model.head_dim),
        "kv_heads": ("half of model.num_key_value_heads * head_dim", model.num_key_value_heads * model.head_dim // 2),
        "router": ("model.router_hidden_size", model.router_hidden_size),
        "expert": ("model.num_experts", model.num_experts),
        "batch": ("batch_size", batch_size),
        "sequence": (f"row_length / block_size ({block_size})", row_length // block_size),
    }
    for logical, (field, length) in lengths.items():
        split = placement.split(logical)
        if length % split:
            raise UserError(f"{field}: got {length}, may be a multiple of {split} (the mesh splits {logical!r} so)")
    if placement.names("expert"):
        if model.feed_forward != "moe":
            raise UserError("mesh.expert: may be 1 with model.feed_forward 'dense'")
        if execution.expert_backend not in ("auto", "sequential_vjp"):
            got = f"got {execution.expert_backend!r}, may be 'auto' or 'sequential_vjp'"
            raise UserError(f"execution.expert_backend: {got} where mesh.expert splits experts (`moe.across`)")
        if placement.shards.exchange == "all_to_all" and placement.mesh.devices.flat[0].platform == "cpu":
            raise UserError("execution.expert_exchange: got 'all_to_all', may be 'auto' or 'all_gather' on a CPU")
