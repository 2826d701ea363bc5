"""What is in a checkpoint of any kind, and how two differ: from headers, or streamed; never a model in memory.

Unlike loading, taking stock does not stop at what is wrong: it lists it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from zaya_jax.architecture import ZayaConfig
from zaya_jax.checks import natural
from zaya_jax.interop.conversion.locate import find_checkpoint
from zaya_jax.interop.formats import sums
from zaya_jax.interop.formats.folder import COMPUTED, Folder, problems, read_config, stored_names, weight_files
from zaya_jax.interop.formats.names import Path as Variable
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.interop.formats.native import (
    MODEL_FILE,
    CheckpointError,
    check_sums,
    newest_step,
    open_array,
    read_metadata,
    read_model_file,
    saved_sums,
)
from zaya_jax.interop.formats.native_arrays import Native
from zaya_jax.interop.formats.tensorfile import STORED, TensorFile, count_not_finite
from zaya_jax.paths import one_line

MEASURED = (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))


@dataclasses.dataclass(frozen=True)
class Row:
    """A stored array; `kind` says what it is of: weights, buffers, average, optimizer, other."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    kind: str = "weights"

    @property
    def values(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass
class Inventory:
    """A checkpoint's contents.

    Attributes:
      about: lines on what it is.
      config: None where it cannot be read; then `problems` says why.
      rows: every stored array.
      problems: what is missing, unexpected or wrong, a line each.
    """

    directory: Path
    about: list[str]
    config: ZayaConfig | None
    rows: list[Row]
    problems: list[str]

    def read(self, row: Row) -> np.ndarray:
        return self._read(row)

    _read: Any = None


def take(directory: Path) -> Inventory:
    """Lists a checkpoint folder, as `find_checkpoint` finds it.

    Raises:
      FileNotFoundError, UserError: one line: no checkpoint is there, or its files' headers cannot be read.
    """
    directory = find_checkpoint(directory)
    return _native(directory) if (directory / MODEL_FILE).exists() else _folder(directory)


def _folder(directory: Path) -> Inventory:
    source, files = weight_files(directory)
    owners: dict[str, TensorFile] = {name: file for file in files for name in file.tensors}
    size = sum(file.path.stat().st_size for file in files)
    about = [f"Hugging Face folder, {len(files)} weight file{'s' * (len(files) > 1)} of {size:,} bytes"]
    config, wrong, buffers = None, [], set()
    try:
        family, config = read_config(directory, len(owners), size)
        about.append(f"family: {family.name} (tensors read as {family.name}'s)")
        specs = family.tensors(config)
        stored = stored_names(owners, specs, config.tie_word_embeddings)
        buffers = {stored.get(n) for e in family.entries(config) if e.path[0] != "params" for n in e.names}
        wrong = list(problems(source, files, specs, config.tie_word_embeddings))
        computed = [name for name in owners if COMPUTED.search(name) and name not in stored.values()]
        if computed:
            about.append(f"passed over, since computed: {', '.join(computed[:3])}{' ...' if computed[3:] else ''}")
    except (FileNotFoundError, ValueError) as error:
        wrong = [str(error)]
    rows = [
        Row(name, tensor.dtype, tensor.shape, tensor.stop - tensor.start, "buffers" if name in buffers else "weights")
        for file in files
        for name, tensor in file.tensors.items()
    ]
    return Inventory(directory, about, config, rows, wrong, lambda row: owners[row.name].read(row.name))


def _native(directory: Path) -> Inventory:
    config, step = read_model_file(directory), newest_step(directory)
    path = directory / str(step)
    numbers = sorted(number for found in directory.iterdir() if (number := natural(found.name)) is not None)
    extra, saved = read_metadata(path / sums.METADATA).get("custom_metadata"), saved_sums(path)
    about = [f"checkpoint of zaya_jax, steps {numbers}, the newest ({step}) listed"]
    extra = {name: value for name, value in extra.items() if name != sums.SUMS} if isinstance(extra, dict) else {}
    about += [f"{name}: {str(value)[:200]}" for name, value in extra.items()]
    about.append(f"checksums of {len(saved)} arrays" if saved else "no checksums of the arrays")
    metadata = next(path.glob("*/_METADATA"), None)
    if metadata is None:
        raise CheckpointError(f"checkpoint {path}: no tree of arrays in it")
    item, values = metadata.parent, read_metadata(metadata)
    rows, wrong, arrays = [], [], {}
    for keys in _stored_keys(values, metadata):
        try:
            array = open_array(item, values, ".".join(keys))
        except Exception as error:  # TensorStore raises many types
            wrong.append(f"{'/'.join(keys)}: cannot be opened ({one_line(error)})")
            continue
        dtype = array.dtype.numpy_dtype
        row = Row("/".join(keys), dtype.name, tuple(array.shape), math.prod(array.shape) * dtype.itemsize, _kind(keys))
        rows.append(row)
        arrays[row.name] = array
    about.append("holds " + ", ".join(sorted({row.kind for row in rows})))
    wrong += _unlike(config, rows)

    def read(row: Row) -> np.ndarray:
        try:
            value = np.asarray(arrays[row.name].read().result())
        except Exception as error:  # as above
            raise CheckpointError(f"checkpoint {item}: {row.name}: cannot be read: {one_line(error)}") from None
        if (name := row.name.replace("/", ".")) in saved:
            check_sums(path, saved, {name: sums.of_values(value)})
        return value

    return Inventory(directory, about, config, rows, wrong, read)


def _stored_keys(values: dict[str, Any], path: Path) -> Iterator[list[str]]:
    """The paths of the arrays that a tree's metadata lists. CheckpointError where it is no such list."""
    try:
        for entry in values["tree_metadata"].values():
            if not entry["value_metadata"].get("skip_deserialize"):
                yield [str(key["key"]) for key in entry["key_metadata"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: not a tree's metadata ({one_line(error)})") from None


def _kind(keys: list[str]) -> str:
    return {"params": "weights", "balancing": "buffers", "ema": "average"}.get(
        keys[0], "optimizer" if "opt" in keys[0] else "other"
    )


def _unlike(config: ZayaConfig, rows: list[Row]) -> Iterator[str]:
    """Where the weights of one of our checkpoints are not those of its configuration."""
    try:
        wanted = {"/".join(path): struct for path, struct in abstract_variables(config).items()}
    except (OverflowError, TypeError, ValueError) as error:  # the file's numbers, which nobody has checked
        yield f"{MODEL_FILE}: no model has its configuration: {one_line(error)}"
        return
    found = {row.name: row for row in rows if row.kind in ("weights", "buffers")}
    for name in sorted(set(wanted) | set(found)):
        if name not in found:
            yield f"{name}: missing, may be of shape {list(wanted[name].shape)}"
        elif name not in wanted:
            yield f"{name}: unexpected in this config's model"
        elif found[name].shape != wanted[name].shape or found[name].dtype != wanted[name].dtype.name:
            got, may = found[name], wanted[name]
            yield f"{name}: got {got.dtype}{list(got.shape)}, may be {may.dtype}{list(may.shape)}"


def grouped(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows whose names differ only in numbers, under one name with a star for each number."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = re.sub(r"(?<=[./])\d+(?=[./])", "*", row.name)
        groups.setdefault(f"{name} {row.dtype}{list(row.shape)}", []).append(row)
    return groups


@dataclasses.dataclass
class Statistics:
    """Over values, of which `finite` are finite; least, greatest and the root of the mean square are of those."""

    count: int = 0
    finite: int = 0
    least: float = math.inf
    greatest: float = -math.inf
    squares: float = 0.0

    @property
    def rms(self) -> float:
        return math.sqrt(self.squares / self.finite) if self.finite else math.nan

    def add(self, values: np.ndarray) -> None:
        for begin in range(0, values.size, 1 << 22):
            block = values.reshape(-1)[begin : begin + (1 << 22)]
            bad = count_not_finite(np.ascontiguousarray(block))
            block = block.astype(np.float32)
            block = block[np.isfinite(block)] if bad else block
            self.count += block.size + bad
            self.finite += block.size
            if block.size:
                self.least = min(self.least, float(block.min()))
                self.greatest = max(self.greatest, float(block.max()))
                self.squares += float(np.square(block, dtype=np.float64).sum())


def measurable(row: Row) -> bool:
    """Whether a row's values are of a dtype that `Statistics` takes."""
    return row.dtype in STORED or row.dtype in {dtype.name for dtype in MEASURED}


# --- two checkpoints --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Difference:
    """How one of our arrays differs between two checkpoints: largest and root-mean-square distance, A's own RMS."""

    name: str
    largest: float
    rms: float
    scale: float


def differences(a: Folder | Native, b: Folder | Native) -> tuple[int, list[Difference], list[str]]:
    """Compares two checkpoints array by array, layer by layer, as float32.

    Returns:
      (arrays that are equal bit for bit in value, those that differ, lines on arrays that only one has).
    """
    one, other = (abstract_variables(source.config) for source in (a, b))
    apart = [f"{'/'.join(path)}: only in {'the other' if path in other else 'the first'}"
             for path in sorted(set(one) ^ set(other))]  # fmt: skip
    equal, found = 0, []
    for path in [path for path in one if path in other]:
        name = "/".join(path)
        if one[path].shape != other[path].shape:
            apart.append(f"{name}: shapes {list(one[path].shape)} and {list(other[path].shape)}")
            continue
        difference = _difference(name, a, b, path, one[path].shape)
        if difference is None:
            equal += 1
        else:
            found.append(difference)
    return equal, found, apart


def _difference(name: str, a: Any, b: Any, path: Variable, shape: tuple[int, ...]) -> Difference | None:
    prefixes = [(row,) for row in range(shape[0])] if len(path) > 2 and path[1] == "layers" else [()]
    largest = squares = scale = 0.0
    for prefix in prefixes:
        x, y = (source.fetch(path, prefix) for source in (a, b))
        x, y = np.ascontiguousarray(x).reshape(-1), np.ascontiguousarray(y).reshape(-1)
        for begin in range(0, x.size, 1 << 22):
            one, two = (v[begin : begin + (1 << 22)].astype(np.float64) for v in (x, y))
            gap = np.abs(one - two)
            largest = max(largest, float(gap.max(initial=0.0))) if not np.isnan(gap).any() else math.nan
            squares, scale = squares + float(np.square(gap).sum()), scale + float(np.square(one).sum())
    count = max(1, math.prod(shape))
    return None if largest == 0.0 else Difference(name, largest, math.sqrt(squares / count), math.sqrt(scale / count))
