"""Our own checkpoints (Orbax) array by array, without Orbax's need to hold whole arrays: a source of pieces, and a
target that is filled layer by layer.

Orbax keeps arrays in Zarr's formats through TensorStore; so do we. What surrounds them (a step's folder, its metadata)
is Orbax's own: `make_shell` has it save a tree of one-element arrays and then gives them their shapes.
"""

import itertools
import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore as ts
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from zaya_jax.architecture import ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.files import write_text
from zaya_jax.interop.formats import sums
from zaya_jax.interop.formats.folder import columns
from zaya_jax.interop.formats.names import Path as Variable
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.interop.formats.native import (
    CheckpointError,
    check_sums,
    newest_step,
    open_array,
    open_arrays,
    open_step,
    read_metadata,
    read_model_file,
    saved_sums,
    stored_name,
)
from zaya_jax.paths import one_line

CHUNK = 64 << 20  # bytes: an array of one piece is written in chunks of about this size
SMALL_LAYER = 1 << 20  # bytes of a layer below which a stack is one piece


class Native:
    """The newest step of one of our checkpoint folders, as a source of tensors.

    Attributes:
      config: the model's.
      step: its number.
      largest_chunk: bytes; reading any piece decodes whole chunks, and holds one.
    """

    def __init__(self, directory: Path, ema: bool = False) -> None:
        """Raises CheckpointError as `load_native`: no configuration, no whole step, arrays that do not fit it."""
        self.directory = directory
        self.config = read_model_file(directory)
        self.step = newest_step(directory)
        self._item, self._metadata = open_step(directory / str(self.step))
        self._ema = ema
        self._cached: tuple[Variable, Any] | None = None
        self._saved = saved_sums(directory / str(self.step))
        self._checked: set[Variable] = set()
        self._open = open_arrays(self._item, self._metadata, self.config, ema)
        self._structs = structs = abstract_variables(self.config)
        chunks = {path: math.prod(array.chunk_layout.read_chunk.shape or (1,)) for path, array in self._open.items()}
        self.largest_chunk = max(size * structs[path].dtype.itemsize for path, size in chunks.items())

    def fetch(self, path: Variable, prefix: tuple[int, ...] = (), part: tuple[int, int] = (0, 1)) -> np.ndarray:
        """As `Folder.fetch`; an array is first held to its checksum."""
        if path not in self._checked:
            self._check(path)
        return columns(self._read(path, prefix), part)

    def _read(self, path: Variable, prefix: tuple[int, ...]) -> np.ndarray:
        try:
            array = self._pieces_of_large(path) if prefix else self._open[path]
            return np.asarray(array[prefix].read().result())
        except Exception as error:  # TensorStore raises many types; all mean that the checkpoint is damaged
            raise CheckpointError(f"checkpoint {self._item}: {'/'.join(path)}: {one_line(error)}") from None

    def _check(self, path: Variable) -> None:
        """CheckpointError where an array's values are not those that were saved."""
        struct, name = self._structs[path], stored_name(path, self._ema)
        if name in self._saved:
            places = pieces(struct.shape, struct.dtype.itemsize)[1]
            found = sum(sums.of_values(self._read(path, at), before(struct.shape, at)) for at in places) % sums.MODULUS
            check_sums(self.directory / str(self.step), self._saved, {name: found})
        self._checked.add(path)

    def identity(self) -> dict[str, Any]:
        stats = [(self._item / name).stat() for name in ("_METADATA", "manifest.ocdbt") if (self._item / name).exists()]
        return {"step": self.step, "ema": self._ema, "files": [[s.st_size, s.st_mtime_ns] for s in stats]}

    def _pieces_of_large(self, path: Variable) -> Any:
        """An array whose chunks are kept once decoded, where they hold several layers: one array's at a time."""
        array = self._open[path]
        shape = array.chunk_layout.read_chunk.shape
        if shape[0] == 1:
            return array
        if self._cached is None or self._cached[0] != path:
            self._cached = None  # before the next one's chunks are decoded
            room = 2 * math.prod(shape) * array.dtype.numpy_dtype.itemsize
            self._cached = (path, open_array(self._item, self._metadata, stored_name(path, self._ema), room))
        return self._cached[1]


# --- writing ----------------------------------------------------------------------------------------------------------


def pieces(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """How an array is written: (the shape of a chunk, the places of its pieces along its leading axes).

    A large stack is written a layer, or a layer's expert, at a time; anything else whole, in chunks of rows.
    """
    depth = 0
    if len(shape) > 1 and math.prod(shape) * itemsize > CHUNK and math.prod(shape[1:]) * itemsize >= SMALL_LAYER:
        depth = 2 if len(shape) == 4 and shape[0] > 0 else 1 if len(shape) == 3 else 0
    inner = list(shape[depth:])
    if inner and math.prod(inner) * itemsize > CHUNK:
        inner[0] = max(1, CHUNK // (math.prod(inner[1:]) * itemsize))
    chunk = (1,) * depth + tuple(max(1, size) for size in inner)
    return chunk, list(itertools.product(*(range(size) for size in shape[:depth])))


def before(shape: tuple[int, ...], prefix: tuple[int, ...]) -> int:
    """How many values of an array stand before the piece at a place along its leading axes, in C order."""
    return sum(at * math.prod(shape[axis + 1 :]) for axis, at in enumerate(prefix))


def make_shell(directory: Path, step: int, config: ZayaConfig) -> None:
    """An Orbax step of this model under `directory`, whose arrays have their shapes and no contents yet."""
    structs = abstract_variables(config)
    small = {path: jax.numpy.zeros((1,) * struct.ndim, struct.dtype) for path, struct in structs.items()}
    context = ocp.Context()
    # A file a chunk: each is whole or absent, whenever the process dies. Zarr 2, whose files Orbax's check for data
    # knows without a database around them.
    context.array.saving.use_ocdbt = False
    context.array.saving.use_zarr3 = False
    quiet = logging.getLogger("absl")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with context, ocp.training.Checkpointer(str(directory)) as steps:
            steps.save(step, traverse_util.unflatten_dict(small), custom_metadata={"step": step})
    finally:
        quiet.setLevel(level)
    item = next((directory / str(step)).glob("*/_METADATA")).parent
    for path, struct in structs.items():
        _reshape_array(item / ".".join(path), struct)
    names = {".".join(path): struct for path, struct in structs.items()}
    _patch(item / "_METADATA", lambda values: _shape_tree(values, names))
    for file in (item / "array_metadatas").glob("process_*"):
        _patch(file, lambda values: _shape_list(values, names))


def _reshape_array(folder: Path, struct: Any) -> None:
    for file in folder.iterdir():
        if file.name != ".zarray":
            file.unlink()
    chunk, _ = pieces(struct.shape, struct.dtype.itemsize)
    _patch(folder / ".zarray", lambda values: values.update(shape=list(struct.shape), chunks=list(chunk)))


def _shape_tree(values: dict[str, Any], structs: dict[str, Any]) -> None:
    for entry in values["tree_metadata"].values():
        name = ".".join(key["key"] for key in entry["key_metadata"])
        if "write_shape" in entry["value_metadata"]:
            entry["value_metadata"]["write_shape"] = list(structs[name].shape)


def _shape_list(values: dict[str, Any], structs: dict[str, Any]) -> None:
    for entry in values["array_metadatas"]:
        struct = structs[entry["array_metadata"]["param_name"]]
        entry["array_metadata"]["write_shape"] = list(struct.shape)
        entry["array_metadata"]["chunk_shape"] = list(pieces(struct.shape, struct.dtype.itemsize)[0])


def _patch(file: Path, change: Any) -> None:
    values = json.loads(file.read_text())
    change(values)
    write_text(file, json.dumps(values))


class Shell:
    """The arrays of a step that `make_shell` made, to be filled."""

    def __init__(self, directory: Path, step: int, config: ZayaConfig) -> None:
        self._item = next((directory / str(step)).glob("*/_METADATA")).parent
        self.structs = abstract_variables(config)
        self._open: dict[Variable, Any] = {}

    def pieces(self) -> Iterator[tuple[str, Variable, tuple[int, ...]]]:
        """(name, array, place along its leading axes) of everything there is to write."""
        for path, struct in self.structs.items():
            for prefix in pieces(struct.shape, struct.dtype.itemsize)[1]:
                yield "/".join((*path, *map(str, prefix))), path, prefix

    def write(self, path: Variable, prefix: tuple[int, ...], value: np.ndarray) -> int:
        """Writes a piece, of the array's dtype, chunk by chunk; returns its checksum when it is on the disk.

        Raises:
          OSError: the disk refuses.
        """
        array = self._array(path)[prefix]
        rows = array.chunk_layout.write_chunk.shape[0]
        try:
            for begin in range(0, len(value), rows):
                end = min(begin + rows, len(value))
                array[begin:end].write(value[begin:end]).result()
        except Exception as error:  # TensorStore's; nothing of the user's goes into what it is asked here
            raise OSError(f"checkpoint {self._item}: {'/'.join(path)}: {one_line(error)}") from None
        return self._sum(path, prefix, value)

    def checksum(self, path: Variable, prefix: tuple[int, ...]) -> int:
        """The checksum of a piece as it is on the disk, in its place: an array's is the sum of its pieces'."""
        try:
            value = np.asarray(self._array(path)[prefix].read().result())
        except Exception as error:
            raise UserError(one_line(error)) from None
        return self._sum(path, prefix, value)

    def finish(self, checksums: dict[Variable, int]) -> None:
        """Puts the arrays' checksums, of all pieces together, beside them."""
        file = self._item.parent / sums.METADATA
        values = read_metadata(file)
        values["custom_metadata"][sums.SUMS] = {".".join(path): v % sums.MODULUS for path, v in checksums.items()}
        write_text(file, json.dumps(values))

    def _sum(self, path: Variable, prefix: tuple[int, ...], value: np.ndarray) -> int:
        return sums.of_values(value, before(self.structs[path].shape, prefix))

    def _array(self, path: Variable) -> Any:
        if path not in self._open:
            spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{self._item}/{'.'.join(path)}/"}}
            self._open[path] = ts.open(spec, read=True, write=True).result()
        return self._open[path]
