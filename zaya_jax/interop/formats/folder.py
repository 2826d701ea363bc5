"""A Hugging Face folder as a source of our arrays: config.json and safetensors of any family, read a tensor at a time.

Opening one checks everything that headers can tell. No code of a folder is ever run: its Python files, `auto_map` and
pickles are not looked at.
"""

import functools
import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax.architecture import ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.files import read_json
from zaya_jax.interop.families.configuration import require
from zaya_jax.interop.families.table import Family, family_of_file
from zaya_jax.interop.formats.names import EMBEDDING, HEAD, Entry, abstract_variables
from zaya_jax.interop.formats.names import Path as Variable
from zaya_jax.interop.formats.tensorfile import STORED, Spec, TensorFile, read_header, within

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
ADAPTERS_FILE = "adapter_config.json"
OTHERS = (".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz")
SHOWN = 20  # problems that a message names; the others are counted
QUANTIZED = " (quantized weights are not supported)"
PREFIX = "model."  # which files may lack, or have once too often; transformers puts it right, too
# What some files hold beside the weights and no model reads: angles, masks and positions, which are computed.
COMPUTED = re.compile(
    r"(^|\.)(rotary_emb\.((original_)?inv_freq|cos_cached|sin_cached)|(self_)?(attn|attention)\.(masked_)?bias"
    r"|position_ids)$"
)


class Folder:
    """A checked checkpoint folder.

    Attributes:
      config: ours. Its param_dtype is the dtype that the parameters are stored in (the wider, into which the others fit
        exactly, where files mix them; float32 for float16).
      family: the family whose layout it has.
      mixed: whether the files mix dtypes.
      halves: how many tensors are float16.
    """

    def __init__(self, directory: Path) -> None:
        """Raises FileNotFoundError or UserError, one line, as `load_huggingface`."""
        self.directory = directory
        refuse_adapters(directory)
        within(directory, CONFIG_FILE)
        self.source, self.files = weight_files(directory)
        owners = {name: file for file in self.files for name in file.tensors}
        size = sum(file.path.stat().st_size for file in self.files)
        self.family, config = read_config(directory, len(owners), size)
        self._entries: dict[Variable, list[Entry]] = {}
        for entry in self.family.entries(config):
            self._entries.setdefault(entry.path, []).append(entry)
        self.shapes = {path: struct.shape for path, struct in abstract_variables(config).items()}
        self.specs = self.family.tensors(config)
        wrong = list(problems(self.source, self.files, self.specs, config.tie_word_embeddings))
        if wrong:
            more = f" (and {len(wrong) - SHOWN} more)" if len(wrong) > SHOWN else ""
            raise UserError("; ".join(wrong[:SHOWN]) + more)
        self._stored = stored_names(owners, self.specs, config.tie_word_embeddings)
        self._file = {name: owners[stored] for name, stored in self._stored.items()}
        buffers = {name for entry in self.family.entries(config) if entry.path[0] != "params" for name in entry.names}
        found = {self.dtype(name) for name in self.specs if name not in buffers}
        self.config = config.replace(param_dtype=max(found, key=lambda dtype: dtype.itemsize).name)
        self.mixed = len(found) > 1
        self.halves = sum(file.tensors[self._stored[name]].dtype == "F16" for name, file in self._file.items())
        self._last: tuple[str, np.ndarray] | None = None
        if config.tie_word_embeddings and self._stored.get(HEAD, self._stored[EMBEDDING]) != self._stored[EMBEDDING]:
            self._check_tied_head()

    def dtype(self, name: str) -> np.dtype:
        return STORED[self._file[name].tensors[self._stored[name]].dtype]

    def read(self, name: str) -> np.ndarray:
        """A tensor by its family's name, as it lies in its file. The last one read is kept: others may be wanted out of
        it."""
        if self._last is None or self._last[0] != name:
            self._last = None  # before the next is allocated
            self._last = (name, self._file[name].read(self._stored[name]))
        return self._last[1]

    def fetch(self, path: Variable, prefix: tuple[int, ...] = (), part: tuple[int, int] = (0, 1)) -> np.ndarray:
        """One of our arrays, or a piece of it, lying as ours does, in the files' dtype.

        Args:
          path: in the variables, e.g. ("params", "layers", "mlp", "down_proj").
          prefix: indices into its leading axes.
          part: (i, n): the i-th of n equal parts of its last axis.

        Returns:
          An array that may share memory with what is read next: use it before.
        """
        entries = self._entries[path]
        for entry in entries:
            if entry.part == part:
                return self._rows(entry, prefix)
            if entry.part == (0, 1):
                return columns(self._rows(entry, prefix), part)
        pieces = [self._rows(entry, prefix).copy() for entry in sorted(entries, key=lambda entry: entry.part)]
        return columns(np.concatenate(pieces, axis=-1), part)

    def _rows(self, entry: Entry, prefix: tuple[int, ...]) -> np.ndarray:
        lead = self.shapes[entry.path][: entry.stacked]
        own, inner = prefix[: entry.stacked], lead[len(prefix) :]
        count = math.prod(inner)
        first = functools.reduce(lambda row, axis: row * lead[axis] + own[axis], range(len(own)), 0) * count
        names = entry.names[first : first + count]
        if not inner:
            return entry.lay.from_huggingface(self.read(names[0]))[prefix[entry.stacked :]]
        if not names:  # a model of one layer has no router state to scale
            return np.empty((*inner, *entry.slot_shape(self.shapes[entry.path])), np.float32)
        dtype = max((self.dtype(name) for name in names), key=lambda dtype: dtype.itemsize)
        out = None
        for index, name in zip(itertools.product(*map(range, inner)), names, strict=True):
            piece = entry.lay.from_huggingface(self.read(name))
            if out is None:
                out = empty_like(piece, inner, dtype)
            out[index] = piece
        assert out is not None
        return out

    def identity(self) -> dict[str, Any]:
        """What tells this folder from another or a changed one: names, sizes and times of its files."""
        paths = [self.directory / CONFIG_FILE, *(file.path for file in self.files)]
        stats = {path.name: path.stat() for path in paths}
        return {name: [found.st_size, found.st_mtime_ns] for name, found in stats.items()}

    def _check_tied_head(self) -> None:
        head, embedding = (self._file[name].read(self._stored[name]) for name in (HEAD, EMBEDDING))
        wide = max(head.dtype, embedding.dtype, key=lambda dtype: dtype.itemsize)
        head, embedding = (x.astype(wide, copy=False).view(np.uint8) for x in (head, embedding))
        if not np.array_equal(head, embedding):
            path = self._file[HEAD].path
            raise UserError(f"{path}: tensor {HEAD}: differs from {EMBEDDING}, may be equal (tie_word_embeddings)")


def problems(source: Path, files: list[TensorFile], specs: Mapping[str, Spec], tied: bool) -> Iterator[str]:
    """What is wrong with the names, shapes and dtypes of a folder's tensors, a line for each.

    Args:
      source: what lists the tensors.
      specs: those that there should be; with `tied`, there may be a head too.
    """
    owners = {name: file for file in files for name in file.tensors}
    known = {**({HEAD: specs[EMBEDDING]} if tied else {}), **specs}
    stored = stored_names(owners, specs, tied)
    for name, file in owners.items():
        ours = _known_name(name, known)
        if ours is None and not COMPUTED.search(name):
            yield f"{file.path}: tensor {name}: unexpected in this config's model"
        elif ours is not None and stored[ours] != name:
            yield f"{file.path}: tensor {name}: may not stand beside {stored[ours]}, which it is too"
    for name, (shape, _) in known.items():
        if name not in stored:
            if name in specs:
                yield f"{source}: tensor {name}: missing, may be of shape {list(shape)}"
            continue
        file = owners[stored[name]]
        where, found = f"{file.path}: tensor {stored[name]}", file.tensors[stored[name]]
        if found.shape != shape:
            yield f"{where}: got shape {list(found.shape)}, may be {list(shape)}"
        elif found.dtype not in STORED:
            may_be = f"one of {sorted(STORED)}" + QUANTIZED * (found.dtype != "F64")
            yield f"{where}: got dtype {found.dtype}, may be {may_be}"


def stored_names(names: Iterable[str], specs: Mapping[str, Spec], tied: bool) -> dict[str, str]:
    """What each of a family's tensors is called in files that hold tensors of these names; see `PREFIX`.

    A tied model's one matrix may stand as the embedding, as the head, or as both.
    """
    known = {*specs, *((HEAD,) if tied else ())}
    names = list(names)
    found = {name: name for name in names if name in known}
    for name in names:
        if (ours := _known_name(name, known)) is not None:
            found.setdefault(ours, name)
    if tied and HEAD in found:
        found.setdefault(EMBEDDING, found[HEAD])
    return found


def _known_name(name: str, known: Iterable[str]) -> str | None:
    return next((ours for ours in (name, PREFIX + name, name.removeprefix(PREFIX)) if ours in known), None)


def columns(array: np.ndarray, part: tuple[int, int]) -> np.ndarray:
    """The i-th of n equal parts of an array's last axis."""
    number, count = part
    if count == 1:
        return array
    width = array.shape[-1] // count
    return array[..., number * width : (number + 1) * width]


def empty_like(piece: np.ndarray, lead: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Room for a stack of arrays like `piece`, in whose memory each lies as `piece` does: then copying is fast."""
    order = sorted(range(piece.ndim), key=lambda axis: -piece.strides[axis])
    out = np.empty((*lead, *(piece.shape[axis] for axis in order)), dtype)
    back = np.argsort(order) + len(lead)
    return out.transpose(*range(len(lead)), *back.tolist())


def read_config(directory: Path, tensors: int, size: int) -> tuple[Family, ZayaConfig]:
    """The config.json of a folder that has so many tensors and bytes of weights.

    Raises:
      FileNotFoundError, UserError: one line that names the file, and the field.
    """
    path = within(directory, CONFIG_FILE)
    values = read_json(path, strict=True)
    try:
        require(isinstance(values, dict), "the whole file", values, "a JSON object")
        family = family_of_file(values)
        config = family.config_from_huggingface(values)
        _check_plausible(family, config, tensors, size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return family, config


def _check_plausible(family: Family, config: ZayaConfig, tensors: int, size: int) -> None:
    """Refuses sizes that the files cannot have, before anything is built from them."""
    layers = config.num_hidden_layers * (config.num_experts if family.by_expert else 1)
    what = "num_hidden_layers" + (" * num_experts" * family.by_expert)
    require(layers <= tensors, what, layers, f"at most the {tensors} tensors of the files")
    experts = config.num_experts if config.feed_forward == "moe" else 1
    for fields in (
        {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size},
        {"num_hidden_layers": config.num_hidden_layers, "num_experts": experts, "hidden_size": config.hidden_size,
         "moe_intermediate_size": config.moe_intermediate_size},
        {"hidden_size": config.hidden_size, "num_attention_heads": config.num_attention_heads,
         "head_dim": config.head_dim},
        {"hidden_size": config.hidden_size,
         "router_hidden_size": config.router_hidden_size if config.router_classes else 1},
        {"cca_time1": config.cca_time1 if config.has("grouped") else 1, "head_dim * head_dim": config.head_dim**2},
        {"cca_time0": config.cca_time0 if config.has("depthwise") else 1, "channels": config.conv_channels},
    ):  # fmt: skip
        count = math.prod(fields.values())
        require(count <= size, " * ".join(fields), count, f"at most the {size} bytes of weights")


def weight_files(directory: Path) -> tuple[Path, list[TensorFile]]:
    """(what lists the tensors, the headers of the safetensors files).

    Raises:
      FileNotFoundError, UserError: one line that names the file, and the tensor.
    """
    if os.path.lexists(directory / WEIGHTS_FILE):  # a link that leads nowhere, too: `within` names it
        path = within(directory, WEIGHTS_FILE)
        return path, [read_header(path)]
    if not (directory / INDEX_FILE).exists():
        refuse_adapters(directory)
        _refuse_other_weights(directory)
        raise FileNotFoundError(f"{directory}: no weights, may hold {WEIGHTS_FILE} or {INDEX_FILE}")
    index = within(directory, INDEX_FILE)
    mapped = _weight_map(index)
    files = []
    for file in sorted(set(mapped.values())):
        try:
            path = within(directory, file)
        except FileNotFoundError:
            raise FileNotFoundError(f"{directory / file}: missing, though {INDEX_FILE} names this shard") from None
        files.append(read_header(path))
    for file in files:
        for name in file.tensors:
            if mapped.get(name) != file.path.name and not COMPUTED.search(name):
                message = f"unexpected, {INDEX_FILE} maps it to {mapped.get(name)}"
                raise UserError(f"{file.path}: tensor {name}: {message}")
    held = {name for file in files for name in file.tensors}
    for name, file in mapped.items():
        if name not in held and not COMPUTED.search(name):
            raise UserError(f"{directory / file}: tensor {name}: missing, though {INDEX_FILE} maps it here")
    return index, files


def _weight_map(index: Path) -> dict[str, str]:
    values = read_json(index, strict=True)
    mapped = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(mapped, dict) or not mapped:
        raise UserError(f"{index}: weight_map: got {str(mapped)[:60]}, may be an object from tensor to file name")
    for name, file in mapped.items():
        plain = isinstance(file, str) and file.isprintable() and Path(file).name == file and len(file) < 256
        if not plain or not file.endswith(".safetensors"):
            may_be = "the name of a .safetensors file beside the index"
            if isinstance(file, str) and file.endswith(PICKLES):
                may_be += " (a pickle can run code when it is read)"
            raise UserError(f"{index}: weight_map.{ascii(name[:200])[1:-1]}: got {file!r:.200}, may be {may_be}")
    return mapped


def refuse_adapters(directory: Path) -> None:
    """Raises UserError for a folder of PEFT adapters: its weights are a base model's only with them added."""
    if (directory / ADAPTERS_FILE).exists():
        raise UserError(
            f"{directory / ADAPTERS_FILE}: PEFT adapters: not supported; may be merged into their base model first "
            "(peft's merge_and_unload, then save_pretrained)"
        )


def _refuse_other_weights(directory: Path) -> None:
    """Raises UserError, naming a file, where a folder holds weights in another format or under another name."""
    paths = sorted(directory.iterdir()) if directory.is_dir() else []
    for path in paths:
        if path.suffix == ".safetensors":
            raise UserError(
                f"{path}: found without {INDEX_FILE}; may be named {WEIGHTS_FILE} if it holds the whole model (in "
                "transformers' layout)"
            )
    for path in sorted(paths, key=lambda path: not path.name.startswith("pytorch_model")):
        if path.suffix in PICKLES or path.name.endswith(".bin.index.json"):
            raise UserError(
                f"{path}: a pickle, which can run code when it is read: not supported; may be safetensors "
                "(transformers' save_pretrained writes them)"
            )
        if path.suffix in OTHERS:
            raise UserError(f"{path}: weights of another library: not supported; may be safetensors")
