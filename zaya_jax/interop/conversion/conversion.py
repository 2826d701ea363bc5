"""Checkpoints from any layout to any other, tensor by tensor, and on after a kill.

Everything that can be refused is, before the first byte is written. Then one tensor of the source at a time is read,
turned and written; the memory that takes is the largest stored tensor and what Python and the libraries need.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax.architecture import ZayaConfig
from zaya_jax.checks import no_such
from zaya_jax.errors import UserError
from zaya_jax.files import check_new, write_text
from zaya_jax.interop.conversion.card import write_card
from zaya_jax.interop.conversion.companions import ROLES, check_companions, copy_companions, ids_of, with_ids, write_ids
from zaya_jax.interop.conversion.locate import STAGES, find_checkpoint
from zaya_jax.interop.families.configuration import DTYPES
from zaya_jax.interop.families.table import FAMILIES, Family, family_of
from zaya_jax.interop.formats import native_arrays
from zaya_jax.interop.formats.folder import CONFIG_FILE, Folder
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.interop.formats.native import MODEL_FILE, write_model_file
from zaya_jax.interop.formats.native_arrays import Native
from zaya_jax.interop.formats.partial import Partial
from zaya_jax.interop.formats.shards import plan_shards, write_shards
from zaya_jax.interop.formats.tensorfile import blocks, count_not_finite, sha256
from zaya_jax.paths import absolute

FORMATS = ("huggingface", "legacy", "native")
NAMED = 20  # tensors that a report names one by one


@dataclasses.dataclass
class Report:
    """What a conversion did.

    Attributes:
      tensors, bytes: of the weights written, by this attempt and those before.
      kept: finished pieces of an earlier attempt that were found whole.
      rounded, values: how many values of this attempt's tensors changed when they were narrowed, of how many.
      not_finite: tensor -> values that are NaN or infinite, among those this attempt read.
      notes: what a user should know, a line each.
    """

    config: ZayaConfig
    tensors: int = 0
    bytes: int = 0
    kept: int = 0
    rounded: int = 0
    values: int = 0
    not_finite: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def see(self, name: str, found: np.ndarray, written: np.ndarray) -> None:
        """Counts over one block of a tensor."""
        self.values += found.size
        if bad := count_not_finite(found):
            self.not_finite[name] = self.not_finite.get(name, 0) + bad
        if written.dtype.itemsize < found.dtype.itemsize:
            self.rounded += int(np.count_nonzero(written.astype(found.dtype) != found))

    def lines(self) -> list[str]:
        """For people."""
        lines = list(self.notes)
        if self.kept:
            lines.append(f"resumed: {self.kept} finished pieces of an earlier attempt were checked and kept")
        if self.rounded:
            share = self.rounded / self.values
            lines.append(f"narrowed: {self.rounded} of {self.values} values were rounded ({share:.1%}); not reversible")
        shown = list(self.not_finite.items())[:NAMED]
        lines += [f"warning: {name}: {count} values are NaN or infinite" for name, count in shown]
        if len(self.not_finite) > NAMED:
            lines.append(f"warning: {len(self.not_finite) - NAMED} more tensors with NaN or infinite values")
        return lines


def open_checkpoint(directory: Path, ema: bool = False) -> Folder | Native:
    """A checkpoint of any kind (see `find_checkpoint`), checked, with nothing read but headers.

    Raises:
      FileNotFoundError, UserError: one line: no checkpoint, or one that is damaged; `ema` of a Hugging Face folder.
    """
    directory = find_checkpoint(directory)
    if (directory / MODEL_FILE).exists():
        return Native(directory, ema)
    if ema:
        raise UserError(f"checkpoint {directory}: a Hugging Face folder holds no average of the parameters")
    return Folder(directory)


def convert(
    checkpoint: Path,
    output: Path,
    format: str = "huggingface",
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    ema: bool = False,
    made: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    companions: Path | None = None,
) -> Report:
    """Writes a checkpoint in another layout, dtype or sharding; see the module.

    Args:
      checkpoint: a Hugging Face folder of any family, or one of our checkpoint folders, whose newest step is read; or
        a run's WORKDIR (see `find_checkpoint`).
      output: a folder that does not exist yet, or is empty. A partial one stands beside it until all is written.
      format: "huggingface" (the model's own family there), "legacy" (Zyphra's, ZAYA only), "native" (ours), or the name
        of a model family that can hold the model.
      dtype: of the parameters; None: as they are stored.
      max_shard_bytes: a safetensors file holds no more, except for a single larger tensor.
      ema: of one of our checkpoints, the average that training kept in place of the parameters.
      made: what the model card says of the program (version, commit, command).
      progress: called with bytes written so far and in all.
      companions: the folder whose tokenizer, chat template and generation settings go along; None: the checkpoint's.

    Raises:
      FileNotFoundError, UserError: one line; nothing was written.
      OSError: the disk refuses; the partial folder stays, and the same call resumes.
    """
    _check_names(format, dtype)
    checkpoint, output = find_checkpoint(checkpoint), absolute(output)
    companions = checkpoint if companions is None else companions
    check_new(output)
    check_companions(companions)
    source = open_checkpoint(checkpoint, ema)
    config = _retyped(source.config, dtype)
    if isinstance(source, Native):  # a Hugging Face folder says in its config.json what its texts end with
        config = with_ids(config, ids_of(companions))
    # Ours keeps any model; a family refuses here what it has no words for, such as adapters.
    family = None if format == "native" else family_of(config, format if format in FAMILIES else None)
    text = "" if family is None else json.dumps(family.config_to_huggingface(config), indent=2) + "\n"
    shards = {} if family is None else plan_shards(family.tensors(config), max_shard_bytes)
    structs = abstract_variables(config).values()
    report = Report(config)
    report.notes += _notes(source, config, format)
    identity = {
        "source": str(checkpoint), "source's files": source.identity(), "format": format,
        "dtype": config.param_dtype, "max_shard_bytes": max_shard_bytes, "ema": ema,
    }  # fmt: skip
    meter = _Meter(report, sum(struct.size * struct.dtype.itemsize for struct in structs), progress)
    _check_room(output, meter.total)
    _check_memory(source)
    with Partial(output, identity) as partial:
        if family is None:
            _write_native(partial, source, config, report, meter)
        else:
            write_text(partial.path / CONFIG_FILE, text)
            _write_folder(partial, source, family, config, shards, report, meter)
        report.notes += copy_companions(companions, partial.path, checkpoint)
        if format == "native" and isinstance(source, Folder):
            write_ids(partial.path, {role: getattr(config, f"{role}_token_id") for role in ROLES})
        if format != "native":
            write_card(
                partial.path, config, source_name(source), format, made or {}, workdir_of(checkpoint), report.lines()
            )
        partial.finish()
    report.tensors, report.bytes = sum(map(len, shards.values())) or len(structs), meter.total
    return report


def _check_names(format: str, dtype: str | None) -> None:
    if format not in FORMATS and format not in FAMILIES:
        raise no_such("format", format, dict.fromkeys((*FORMATS, *FAMILIES)))
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype: got {dtype!r}, may be one of {DTYPES}")


class _Meter:
    """A report's `see`, and how far things are."""

    def __init__(self, report: Report, total: int, progress: Callable[[int, int], None]) -> None:
        self._report, self.total, self._progress = report, total, progress
        self._done = 0

    def see(self, name: str, found: np.ndarray, written: np.ndarray) -> None:
        self._report.see(name, found, written)
        self.skip(written.nbytes)

    def skip(self, size: int) -> None:
        self._done += size
        self._progress(self._done, self.total)


def source_name(source: Folder | Native) -> str:
    if isinstance(source, Native):
        return f"{source.directory} (step {source.step})"
    return str(source.directory)


def _retyped(config: ZayaConfig, dtype: str | None) -> ZayaConfig:
    """The config of parameters of another dtype; what computes in the old one computes in the new."""
    if dtype is None:
        return config
    return config.replace(param_dtype=dtype, dtype=dtype if config.dtype == config.param_dtype else config.dtype)


def _size(spec: tuple[tuple[int, ...], np.dtype]) -> int:
    return int(np.prod(spec[0], dtype=np.int64)) * spec[1].itemsize


def _check_room(output: Path, size: int) -> None:
    """Raises OSError where the disk cannot hold what will be written, less what is there of it already."""
    parent = next(path for path in output.parents if path.exists())
    partial = output.with_name(f".{output.name}.partial")
    there = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(parent).free
    if size - there > free:
        raise OSError(f"{output}: needs {(size - there) / 1e6:,.2f} MB, the disk has {free / 1e6:,.2f} MB free")


def _check_memory(source: Folder | Native) -> None:
    """Raises UserError where a piece that must be decoded whole does not fit the memory that is free.

    Training saves an array as one piece for each device: at the 8B's size, ten gigabytes. What `convert` writes is in
    small pieces.
    """
    meminfo = Path("/proc/meminfo")
    if not isinstance(source, Native) or not meminfo.exists():
        return
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    if 2 * source.largest_chunk > free:  # as it is stored, and decoded
        need = f"pieces of up to {source.largest_chunk / 1e9:.1f} GB, which are decoded whole"
        raise UserError(f"checkpoint {source.directory}: stored in {need}; {free / 1e9:.1f} GB of memory are free")


def _write_folder(
    partial: Partial, source: Folder | Native, family: Family, config: ZayaConfig, shards: dict, report: Report,
    meter: _Meter,
) -> None:  # fmt: skip
    def done(file: str) -> bool:
        path = partial.path / file
        whole = partial.holds(file, lambda: [path.stat().st_size, sha256(path)])
        if whole:
            meter.skip(sum(_size(spec) for spec in shards[file].values()))
        return whole

    def finished(file: str, size: int, digest: str) -> None:
        partial.note(file, [size, digest])

    write_shards(partial.path, family, config, shards, source, meter.see, done, finished)
    report.kept = partial.kept


def _write_native(partial: Partial, source: Folder | Native, config: ZayaConfig, report: Report, meter: _Meter) -> None:
    step = source.step if isinstance(source, Native) else 0
    if not partial.holds("shell", lambda: step):
        shutil.rmtree(partial.path / str(step), ignore_errors=True)
        native_arrays.make_shell(partial.path, step, config)
        write_model_file(partial.path, config)
        partial.note("shell", step)
    partial.kept = 0
    shell = native_arrays.Shell(partial.path, step, config)
    checksums = dict.fromkeys(shell.structs, 0)
    for piece, path, prefix in shell.pieces():
        if partial.holds(piece, lambda path=path, prefix=prefix: shell.checksum(path, prefix)):
            checksum, struct = partial.noted(piece), shell.structs[path]
            meter.skip(int(np.prod(struct.shape[len(prefix) :], dtype=np.int64)) * struct.dtype.itemsize)
        else:
            checksum = _write_piece(shell, source, piece, path, prefix, meter)
            partial.note(piece, checksum)
        checksums[path] += checksum
    shell.finish(checksums)
    report.kept = partial.kept


def _write_piece(shell: Any, source: Any, piece: str, path: Any, prefix: tuple[int, ...], meter: _Meter) -> int:
    """Reads, casts and writes one piece; what it needed is free again when it returns."""
    found, dtype = source.fetch(path, prefix), shell.structs[path].dtype
    for block, written in blocks(found, dtype):
        meter.see(piece, block, written)
    return shell.write(path, prefix, np.ascontiguousarray(found, dtype))


def _notes(source: Folder | Native, config: ZayaConfig, format: str) -> list[str]:
    notes = []
    if isinstance(source, Folder) and source.halves:
        notes.append(f"{source.halves} tensors are float16, which float32 holds exactly")
    if isinstance(source, Folder) and source.mixed:
        notes.append(f"the source mixes dtypes; all parameters are written as {config.param_dtype}")
    if config.param_dtype != source.config.param_dtype:
        exact = "exactly" if config.param_dtype == "float32" else "rounded to the nearest"
        notes.append(f"dtype: {source.config.param_dtype} -> {config.param_dtype}, {exact}")
    if format != "native" and config.feed_forward == "moe":
        notes += _skip_note(source, config, format)
    return notes


def _skip_note(source: Folder | Native, config: ZayaConfig, format: str) -> list[str]:
    """What becomes of the skip expert in a library that computes it in its own way."""
    theirs, name = ("identity", "Zyphra's legacy code") if format == "legacy" else ("zero", "transformers")
    if config.skip_expert == theirs:
        return []
    biases = np.asarray(source.fetch(("balancing", "layers", "mlp", "gate", "biases")), np.float32)
    # It is chosen where its probability and bias exceed every expert's; probabilities are between 0 and 1.
    possible = np.flatnonzero(biases[:, :-1].max(axis=1) < 1 + biases[:, -1])
    if not len(possible):
        return [f"skip expert: {config.skip_expert} here, {theirs} in {name}; its bias is so low that none is chosen"]
    layers = ", ".join(map(str, possible[:NAMED]))
    return [
        f"warning: skip expert: {config.skip_expert} here, {theirs} in {name}, which computes something else where one "
        f"is chosen; possible in layers {layers}{' ...' if len(possible) > NAMED else ''}"
    ]


def workdir_of(checkpoint: Path) -> Path | None:
    """The run that a checkpoint of ours belongs to: WORKDIR/checkpoints/STAGE."""
    workdir = absolute(checkpoint).parent.parent
    return workdir if absolute(checkpoint).parent.name == STAGES and (workdir / CONFIG_FILE).exists() else None
