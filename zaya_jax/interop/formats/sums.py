"""A checksum of an array's values, whatever devices hold it and however files cut it: read is what was saved.

TensorStore keeps no checksum of what arrays hold, so a bit that flips on a disk would be read as another weight. The
values in C order are words of 32 bits (two of a value of 64; a narrower one fills its own); the checksum is the sum of
word i times (2 i + 1), modulo 2^32. An odd factor keeps any change of one word apart from none, and a sum of parts is
the sum of the whole, so pieces, shards and devices may each add their own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.files import read_object

METADATA = "_CHECKPOINT_METADATA"  # Orbax's, of a step
SUMS = "sums"  # in a step's own metadata: {name of an array: its checksum}
BLOCK = 1 << 15  # words that are multiplied at a time: what is between fits a cache
MODULUS = 1 << 32
FACTORS = np.arange(1, 2 * BLOCK, 2, dtype=np.uint32)


def of_values(values: np.ndarray, begin: int = 0) -> int:
    """The checksum of an array, or of a piece of one that is contiguous in C order.

    Args:
      begin: how many of the whole array's values stand before the piece.
    """
    words = np.ascontiguousarray(values).reshape(-1)
    words = words.view(np.uint32 if words.itemsize > 4 else f"u{words.itemsize}")
    plain = weighted = 0
    for first in range(0, len(words), BLOCK):
        block = words[first : first + BLOCK].astype(np.uint32, copy=False)
        own = int(block.sum(dtype=np.uint32))
        plain += own
        weighted += int((block * FACTORS[: len(block)]).sum(dtype=np.uint32)) + 2 * first * own
    return (weighted + 2 * begin * max(1, values.itemsize // 4) * plain) % MODULUS


def of_tree(tree: Any) -> dict[str, int]:
    """{dotted name: checksum} of a pytree's arrays; what lies on accelerators, or not on this process alone, stays."""
    found = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    sums = {name: of_values(np.asarray(leaf)) for name, leaf in found.items() if _is_near(leaf)}
    groups: dict[Any, dict[str, jax.Array]] = {}  # one program cannot take arrays of different devices
    for name in found.keys() - sums:
        groups.setdefault(frozenset(found[name].sharding.device_set), {})[name] = found[name]
    for group in groups.values():
        sums |= {name: int(value) for name, value in on_devices(group).items()}
    return {name: sums[name] for name in found}


def _is_near(leaf: Any) -> bool:
    """Whether a leaf's values are in this process' own memory."""
    if not isinstance(leaf, jax.Array):
        return True
    return leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())


@jax.jit
def on_devices(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """uint32 [] checksums of arrays of any shardings, each read once where it lies."""
    return {name: _on_device(array) for name, array in arrays.items()}


def _on_device(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    size = array.dtype.itemsize
    words = jax.lax.bitcast_convert_type(array, {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32))
    place, stride = jnp.zeros((), jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        at = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place, stride = place + at * np.uint32(stride % MODULUS), stride * words.shape[axis]
    return jnp.sum(words.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


def of_step(path: Path) -> dict[str, int]:
    """The checksums that a step keeps; none where it was saved without.

    Raises:
      FileNotFoundError, UserError: metadata that cannot be read, in one line that names the file.
    """
    extra = read_object(path / METADATA).get("custom_metadata")
    return known(extra if isinstance(extra, Mapping) else {}, path)


def known(extra: Mapping[str, Any], path: Path) -> dict[str, int]:
    """The checksums in what stands beside a step's arrays. UserError: something else is there."""
    sums = extra.get(SUMS, {})
    if not isinstance(sums, dict) or not all(isinstance(value, int) for value in sums.values()):
        raise UserError(f"{path / METADATA}: {SUMS}: got {sums!r:.60}, may be an object of integers")
    return sums


def differing(saved: Mapping[str, int], read: Mapping[str, int]) -> list[str]:
    """Names of the arrays that were read otherwise than they were saved."""
    return [name for name, value in read.items() if saved.get(name, value) != value]
