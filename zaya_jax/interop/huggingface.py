"""ZAYA1 checkpoints in Hugging Face's layout: a directory with config.json and safetensors, in and out.

Reading and writing of files is safetensors'; which tensor is which is `names.entries`. Everything that can be wrong
with a file is found from its header, before any weight is read.
"""

import contextlib
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zaya_jax.architecture import ZayaConfig
from zaya_jax.interop.configuration import require
from zaya_jax.interop.families import Family, family_of, family_of_file
from zaya_jax.interop.names import EMBEDDING, HEAD, Entry, Index, Path, abstract_variables

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
STORED = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}

Directory = str | os.PathLike[str]
Variables = dict[str, Any]
Place = Callable[[Path, np.ndarray], Any]


def load_huggingface(directory: Directory, place: Place | None = None) -> tuple[ZayaConfig, Variables]:
    """Reads a ZAYA1 checkpoint that transformers (5.23.0) or `save_huggingface` wrote.

    Each tensor is read once, and one stacked array is built at a time, so host memory peaks at the weights placed so
    far plus one stack.

    Args:
      directory: holds config.json and model.safetensors, or model.safetensors.index.json and its shards.
      place: what becomes of each stacked array, given its path in the variables, e.g. ("params", "embed_tokens"), and
        the NumPy array. None puts it on JAX's default device; a sharded load passes `jax.device_put` with a sharding.

    Returns:
      (config, variables). config.param_dtype is the dtype the parameters are stored in, float32 or bfloat16 (the wider,
      into which the others fit exactly, when the file mixes them); the balancing biases are float32 always.

    Raises:
      FileNotFoundError: a file is missing; names it.
      ValueError: one line naming the file and the field or tensor that is wrong: malformed JSON, an unsupported config,
        a truncated or corrupt file, a missing, unexpected or wrongly shaped tensor, a tied head that is not the
        embedding.
    """
    directory = pathlib.Path(directory)
    config_path = directory / CONFIG_FILE
    values = _read_json(config_path)
    try:
        require(isinstance(values, dict), "the whole file", values, "a JSON object")
        family = family_of_file(values)
        config = family.config_from_huggingface(values)
    except ValueError as error:
        raise ValueError(f"{config_path}: {error}") from None
    place = place or (lambda path, array: jnp.asarray(array))
    with contextlib.ExitStack() as stack:
        tensors = _Tensors(directory, stack)
        param_dtype = _check_tensors(tensors, family, config)
        config = config.replace(param_dtype=param_dtype.name)
        shapes = abstract_variables(config)
        flat = {path: place(path, _stack(tensors, parts, shapes[path])) for path, parts in _by_path(family, config)}
    return config, traverse_util.unflatten_dict(flat)


def save_huggingface(
    directory: Directory, config: ZayaConfig, variables: Mapping[str, Any], max_shard_bytes: int = 5_000_000_000
) -> None:
    """Writes a checkpoint that transformers' `ZayaForCausalLM.from_pretrained` and `load_huggingface` read.

    It is written beside `directory` and renamed into place when whole: a failed or killed save leaves no `directory`.

    Args:
      directory: must not exist, or be empty.
      config: the model's; its param_dtype is what is stored.
      variables: {"params": ..., "balancing": ...}, the arrays NumPy's or JAX's, params of config.param_dtype.
      max_shard_bytes: a file holds no more, except for a single larger tensor.

    Raises:
      ValueError: a missing, unexpected or wrongly shaped or typed array; `directory` holds files; max_shard_bytes < 1.
    """
    directory = pathlib.Path(directory).absolute()
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes: got {max_shard_bytes}, may be at least 1")
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise ValueError(f"{directory}: got a path that is taken, may be a new or an empty directory")
    text = json.dumps(family_of(config).config_to_huggingface(config), indent=2) + "\n"
    arrays = _check_variables(config, variables)
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f".{directory.name}.partial-{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        (partial / CONFIG_FILE).write_text(text)
        _write_shards(partial, config, arrays, max_shard_bytes)
        os.replace(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# --- reading ----------------------------------------------------------------------------------------------------------


class _Tensors:
    """Every tensor of a directory's safetensors files, by name, without reading any."""

    def __init__(self, directory: pathlib.Path, stack: contextlib.ExitStack) -> None:
        self.source, files, mapped = _weight_files(directory)
        self.file: dict[str, pathlib.Path] = {}
        self._open: dict[pathlib.Path, Any] = {}
        for path in files:
            self._open[path] = stack.enter_context(_open(path))
            for name in self._open[path].keys():  # noqa: SIM118 (not a dict)
                if mapped is not None and mapped.get(name) != path.name:
                    raise ValueError(
                        f"{path}: tensor {name}: unexpected, {self.source.name} maps it to {mapped.get(name)}"
                    )
                self.file[name] = path
        for name, file in (mapped or {}).items():
            if name not in self.file:
                raise ValueError(f"{directory / file}: tensor {name}: missing, though {self.source.name} maps it here")

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """(shape, safetensors' dtype name), from the file's header."""
        view = self._open[self.file[name]].get_slice(name)
        return tuple(view.get_shape()), view.get_dtype()

    def read(self, name: str) -> np.ndarray:
        path = self.file[name]
        try:
            return self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: tensor {name}: cannot be read ({_line(error)})") from None


def _weight_files(directory: pathlib.Path) -> tuple[pathlib.Path, list[pathlib.Path], dict[str, str] | None]:
    """(what lists the tensors, the safetensors files, the index's tensor -> file name or None)."""
    single, index = directory / WEIGHTS_FILE, directory / INDEX_FILE
    if single.is_file():
        return single, [single], None
    if not index.is_file():
        raise FileNotFoundError(f"{directory}: no weights, may hold {WEIGHTS_FILE} or {INDEX_FILE}")
    values = _read_json(index)
    mapped = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(mapped, dict) or not mapped:
        raise ValueError(f"{index}: weight_map: got {mapped!r}, may be an object from tensor to file name")
    for name, file in mapped.items():
        if not isinstance(file, str) or not file or pathlib.PurePath(file).name != file:
            raise ValueError(f"{index}: weight_map.{name}: got {file!r}, may be the name of a file beside the index")
    files = [directory / file for file in sorted(set(mapped.values()))]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, though {INDEX_FILE} names this shard")
    return index, files, mapped


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError as error:  # of which JSONDecodeError and UnicodeDecodeError are kinds
        raise ValueError(f"{path}: not valid JSON ({_line(error)})") from None


def _open(path: pathlib.Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({_line(error)})") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_tensors(tensors: _Tensors, family: Family, config: ZayaConfig) -> np.dtype:
    """Names, shapes and dtypes against the config, from headers alone; returns the parameters' dtype."""
    expected = family.tensors(config)
    buffers = {name for entry in family.entries(config) if entry.path[0] != "params" for name in entry.names}
    tied_head = {HEAD} if config.tie_word_embeddings else set()
    for name in tensors.file:
        if name not in expected and name not in tied_head:
            hint = " (Zyphra's legacy layout is not read)" if "zaya_block" in name or ".qkv." in name else ""
            raise ValueError(f"{tensors.file[name]}: tensor {name}: unexpected in this config's model{hint}")
    found = set()
    for name, (shape, _) in expected.items():
        if name not in tensors.file:
            raise ValueError(f"{tensors.source}: tensor {name}: missing, may be of shape {list(shape)}")
        dtype = _check_header(tensors, name, shape)
        if name not in buffers:
            found.add(dtype)
    if HEAD in tied_head & set(tensors.file):
        _check_header(tensors, HEAD, expected[EMBEDDING][0])
        if tensors.read(HEAD).tobytes() != tensors.read(EMBEDDING).tobytes():
            path = tensors.file[HEAD]
            raise ValueError(f"{path}: tensor {HEAD}: differs from {EMBEDDING}, may be equal (tie_word_embeddings)")
    return max(found, key=lambda dtype: dtype.itemsize)


def _check_header(tensors: _Tensors, name: str, shape: tuple[int, ...]) -> np.dtype:
    got, dtype = tensors.header(name)
    if got != shape:
        raise ValueError(f"{tensors.file[name]}: tensor {name}: got shape {list(got)}, may be {list(shape)}")
    if dtype not in STORED:
        raise ValueError(f"{tensors.file[name]}: tensor {name}: got dtype {dtype}, may be one of {sorted(STORED)}")
    return STORED[dtype]


def _by_path(family: Family, config: ZayaConfig) -> list[tuple[Path, list[Entry]]]:
    """The entries of each of our arrays."""
    parts: dict[Path, list[Entry]] = {}
    for entry in family.entries(config):
        parts.setdefault(entry.path, []).append(entry)
    return list(parts.items())


def _stack(tensors: _Tensors, parts: list[Entry], shape: Any) -> np.ndarray:
    """One of our arrays, from all of its layers' tensors."""
    out = np.empty(shape.shape, shape.dtype)
    for entry in parts:
        for name, index in entry.slots(shape.shape):
            out[index] = entry.lay.from_huggingface(tensors.read(name))
    return out


# --- writing ----------------------------------------------------------------------------------------------------------


def _check_variables(config: ZayaConfig, variables: Mapping[str, Any]) -> dict[Path, Any]:
    """The variables by path, of the config's shapes and dtypes."""
    arrays = cast(dict[Path, Any], traverse_util.flatten_dict({name: dict(tree) for name, tree in variables.items()}))
    expected = abstract_variables(config)
    for path in sorted(set(arrays) ^ set(expected)):
        state = "missing" if path in expected else "unexpected in this config's model"
        raise ValueError(f"variables: {'/'.join(path)}: {state}")
    for path, want in expected.items():
        got = (tuple(np.shape(arrays[path])), np.dtype(arrays[path].dtype))
        if got != (want.shape, want.dtype):
            raise ValueError(
                f"variables: {'/'.join(path)}: got {got[1]}{list(got[0])}, may be {want.dtype}{list(want.shape)}"
            )
    return arrays


def _shards(config: ZayaConfig, max_bytes: int) -> list[list[str]]:
    """Tensor names, file by file, in the table's order."""
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, (shape, dtype) in family_of(config).tensors(config).items():
        size = int(np.prod(shape)) * dtype.itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= size
    return shards


def _write_shards(directory: pathlib.Path, config: ZayaConfig, arrays: Mapping[Path, Any], max_bytes: int) -> None:
    source = {
        name: (entry, index)
        for entry in family_of(config).entries(config)
        for name, index in entry.slots(arrays[entry.path].shape)
    }
    shards = _shards(config, max_bytes)
    mapped, total = {}, 0
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = dict(_tensors(source, arrays, names))
        save_file(tensors, directory / file, metadata={"format": "pt"})  # transformers refuses files without a format
        mapped.update(dict.fromkeys(names, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": mapped}
        (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _tensors(source: Mapping[str, tuple[Entry, Index]], arrays: Mapping[Path, Any], names: list[str]) -> Iterator:
    for name in names:
        entry, index = source[name]
        yield name, np.ascontiguousarray(entry.lay.to_huggingface(np.asarray(arrays[entry.path][index])))
