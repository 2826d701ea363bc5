"""How much memory a device or this machine has, and whether something fits: asked before it is compiled or made."""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax

from zaya_jax.errors import UserError

CGROUPS = Path("/sys/fs/cgroup")
MINE = Path("/proc/self/cgroup")


def host_memory() -> int:
    """Bytes that this process may use: the machine's, or less where its container or batch job (cgroup) has less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    try:
        lines = MINE.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = CGROUPS / controllers
            own = root / path.lstrip("/")
            # a group's limit holds for all groups in it; a container may see its own group as the root
            for folder in (own, *(parent for parent in own.parents if parent.is_relative_to(root)), root):
                for name in ("memory.max", "memory.limit_in_bytes"):
                    try:
                        text = (folder / name).read_text().strip()
                    except OSError:
                        continue
                    if text.isdecimal():  # "max": none
                        yield int(text)


def device_memory(device: jax.Device | None = None, sharers: int = 1) -> int | None:
    """Bytes that JAX may use of a device (jax.devices()[0]); None where the device does not say.

    Args:
      sharers: CPU devices that are used together: they share the machine's memory.
    """
    device = jax.devices()[0] if device is None else device
    if device.platform == "cpu":
        return host_memory() // sharers
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a backend that keeps no count
        return None


def require(what: str, needed: int, there: int | None, change: str, parts: str = "") -> None:
    """UserError, before anything is made, where `needed` bytes are more than are there (None: nobody knows).

    Args:
      what: what needs them, the first words of the message.
      change: what the user may change.
      parts: what the bytes are for.
    """
    if there is not None and needed > there:
        parts = parts and f" ({parts})"
        raise UserError(f"{what}: needs at least {binary(needed)}{parts}, {binary(there)} are there; {change}")


def require_arrays(what: str, structs: Iterable[jax.ShapeDtypeStruct], places: Iterable[jax.sharding.Sharding]) -> None:
    """UserError where arrays, each laid over devices by its sharding, are more than one of these devices holds."""
    total, device, sharers = 0, None, 1
    for struct, place in zip(structs, places, strict=True):
        total += math.prod(place.shard_shape(struct.shape)) * struct.dtype.itemsize
        device, sharers = next(iter(place.addressable_devices)), len(place.addressable_devices)
    change = "may be read on a larger machine or over more devices (experiments.convert needs no more than a tensor)"
    require(what, total, device_memory(device, sharers), change, "a device's share of the weights")


def binary(size: float) -> str:
    """Bytes -> '1.5 MiB'."""
    for exponent, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 2**exponent:
            return f"{size / 2**exponent:.3g} {unit}"
    return f"{size:.0f} B"
