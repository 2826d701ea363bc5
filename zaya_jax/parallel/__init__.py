"""Devices: how many, and how a batch is laid over them. Models know nothing of this."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def use_cpu_devices(count: int) -> None:
    """Splits the CPU into `count` devices; call it before anything else touches JAX.

    For data parallelism on one machine, and for testing it; all devices share the cores.

    Raises:
      ValueError: count below 1.
      RuntimeError: JAX has already started (from JAX itself).
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"cpu_devices: got {count!r}, may be an integer of at least 1")
    jax.config.update("jax_num_cpu_devices", count)


def data_mesh(batch_size: int) -> Mesh | None:
    """A mesh with one axis "data" over as many devices as divide the batch; None if that is one device."""
    count = max(n for n in range(1, jax.device_count() + 1) if batch_size % n == 0)
    if count == 1:
        return None
    # Auto, not the default Explicit: sharding is propagated, and layers need no sharding types.
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))
