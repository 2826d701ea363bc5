"""Writing a family's tensors into safetensors shards, one at a time, from anything that can fetch our arrays."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from zaya_jax.architecture import ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.files import write_text
from zaya_jax.interop.families.table import Family
from zaya_jax.interop.formats.folder import INDEX_FILE, WEIGHTS_FILE
from zaya_jax.interop.formats.names import Entry, Spec, abstract_variables
from zaya_jax.interop.formats.names import Path as Variable
from zaya_jax.interop.formats.tensorfile import write_file

See = Callable[[str, np.ndarray, np.ndarray], None]  # tensor, a block as it was found, the same as it is written


class Source(Protocol):
    """Where our arrays come from; see `Folder.fetch`."""

    def fetch(self, path: Variable, prefix: tuple[int, ...] = (), part: tuple[int, int] = (0, 1)) -> np.ndarray: ...


def plan_shards(tensors: dict[str, Spec], max_bytes: int) -> dict[str, dict[str, Spec]]:
    """File name -> its tensors, in the table's order; no file holds more, except for a single larger tensor.

    Raises:
      UserError: max_bytes < 1.
    """
    if max_bytes < 1:
        raise UserError(f"max_shard_bytes: got {max_bytes}, may be at least 1")
    shards: list[dict[str, Spec]] = [{}]
    room = max_bytes
    for name, (shape, dtype) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        if size > room and shards[-1]:
            shards.append({})
            room = max_bytes
        shards[-1][name] = (shape, dtype)
        room -= size
    if len(shards) == 1:
        return {WEIGHTS_FILE: shards[0]}
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": shard for n, shard in enumerate(shards, start=1)}


def slots(family: Family, config: ZayaConfig) -> Iterator[tuple[str, Entry, tuple[int, ...]]]:
    """(tensor, its entry, its place along our leading axes) of everything a family stores."""
    shapes = {path: struct.shape for path, struct in abstract_variables(config).items()}
    for entry in family.entries(config):
        for name, index in entry.slots(shapes[entry.path]):
            yield name, entry, tuple(i for i in index if isinstance(i, int))


def write_shards(
    directory: Path,
    family: Family,
    config: ZayaConfig,
    shards: dict[str, dict[str, Spec]],
    source: Source,
    see: See | None = None,
    done: Callable[[str], bool] = lambda file: False,
    finished: Callable[[str, int, str], None] = lambda file, size, digest: None,
) -> None:
    """Writes the shards and, for more than one, their index.

    Args:
      see: shown every block of every tensor.
      done: whether a file is there already.
      finished: called with the (name, bytes, sha256) of each file written.
    """
    places = {name: (entry, prefix) for name, entry, prefix in slots(family, config)}

    def fetch(name: str) -> np.ndarray:
        entry, prefix = places[name]
        return entry.lay.to_huggingface(source.fetch(entry.path, prefix, entry.part))

    for file, specs in shards.items():
        if not done(file):
            finished(file, *write_file(directory / file, specs, fetch, see))
    if len(shards) > 1:
        specs = [spec for shard in shards.values() for spec in shard.values()]
        total = sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs)
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: file for file, shard in shards.items() for name in shard},
        }
        write_text(directory / INDEX_FILE, json.dumps(index, indent=2) + "\n")
