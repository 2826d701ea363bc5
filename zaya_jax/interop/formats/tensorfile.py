"""Safetensors files by their headers: what is in one, a tensor at a time, without mapping the file.

The format: eight bytes of header length (little endian), a JSON object from tensor name to {dtype, shape,
data_offsets}, then the tensors' bytes without a gap (https://github.com/huggingface/safetensors, "Format"). The library
reads through a memory map, whose pages count as the process's own until the kernel takes them back; plain reads of a
range keep a promise about memory. Everything that can be wrong with a file is found from its header, before any weight
is read, and no more is ever allocated than the file is long.
"""

import dataclasses
import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.files import open_plain, parse_json, replacing
from zaya_jax.paths import one_line

Spec = tuple[tuple[int, ...], np.dtype]  # a tensor's shape and dtype

MAX_HEADER = 100_000_000  # bytes; the library's own bound
BLOCK = 16 << 20  # bytes that are converted, scanned and written at a time
# Widths of every dtype the format has; those of them that we read, and as what: float32 holds every float16 exactly.
WIDTHS = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip
WRITTEN = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}
STORED = {**WRITTEN, "F16": np.dtype(np.float32)}
STORED_NAMES = {dtype: name for name, dtype in WRITTEN.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one tensor lies in its file; `start` and `stop` are bytes from the file's beginning."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """A safetensors file's header."""

    path: Path
    tensors: dict[str, Tensor]

    def read(self, name: str) -> np.ndarray:
        """One tensor in its dtype of `STORED`, by plain reads.

        Raises:
          UserError: the file has become shorter, or cannot be read; one line naming file and tensor.
        """
        tensor = self.tensors[name]
        out = np.empty(tensor.shape, STORED[tensor.dtype])
        flat = out.reshape(-1)
        try:
            with open(self.path, "rb", buffering=0) as file:  # whose header has been read
                file.seek(tensor.start)
                if tensor.dtype == "F16":
                    for begin in range(0, flat.size, BLOCK // 2):
                        half = np.empty(min(BLOCK // 2, flat.size - begin), np.float16)
                        _fill(file, half)
                        flat[begin : begin + half.size] = half
                else:
                    _fill(file, flat)
        except OSError as error:
            raise UserError(f"{self.path}: tensor {name}: cannot be read ({one_line(error)})") from None
        return out


def _fill(file: Any, flat: np.ndarray) -> None:
    """Reads as many bytes as the array has, into it."""
    rest = flat.view(np.uint8).data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise OSError("the file ends before the tensor does")
        rest = rest[count:]


def within(folder: Path, name: str) -> Path:
    """`folder / name`, a plain file that really lies there; `name` may have a folder in front.

    A link may lead to a file beside it, or into the `blobs` of Hugging Face's own cache, where a downloaded snapshot's
    files are links (models--X--Y/snapshots/REVISION -> ../../blobs).

    Raises:
      FileNotFoundError: no such file.
      UserError: a link that leads out of the folder, a pipe, a device, a folder.
    """
    path = folder / name
    try:
        real, root = path.resolve(strict=True), folder.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a name with a zero byte
        raise UserError(f"{path}: cannot be opened ({one_line(error)})") from None
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    if real.parent not in (root, root / Path(name).parent, blobs):
        raise UserError(f"{path}: a link to {real}, may not lead out of its folder")
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not a plain file")
    return path


def read_header(path: Path) -> TensorFile:
    """The header of a safetensors file, checked against the file's length.

    Raises:
      FileNotFoundError: no such file.
      UserError: one line naming the file, and the tensor where it is one's fault; a pipe or a device, too.
    """
    with open_plain(path, buffering=0) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little") if size >= 8 else size
            if length > min(size - 8, MAX_HEADER):
                raise UserError(f"a header of {length} bytes in {size}")
            values = parse_json(_exactly(file, length), strict=True)
            return TensorFile(path, _tensors(values, 8 + length, size))
        except (OSError, ValueError) as error:
            message = one_line(error)
            kind = "" if message.startswith("tensor ") else "truncated or not a safetensors file: "
            raise UserError(f"{path}: {kind}{message}") from None


def _exactly(file: Any, count: int) -> bytes:
    parts = []
    while count:
        part = file.read(count)
        if not part:
            raise OSError("the file ends within its header")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _tensors(values: Any, start: int, size: int) -> dict[str, Tensor]:
    """The header's tensors; they must cover the file from `start` to `size`, each byte once."""
    if not isinstance(values, dict):
        raise UserError("the header is no JSON object")
    tensors = {name: _tensor(name, entry, start) for name, entry in values.items() if name != "__metadata__"}
    reached, last = start, "the header"
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != reached:
            how = "overlaps" if tensor.start < reached else "leaves a gap after"
            raise UserError(f"tensor {name}: data_offsets: {how} {last}")
        reached, last = tensor.stop, f"tensor {name}"
    if reached != size:
        raise UserError(f"the tensors end at byte {reached}, the file at {size}")
    return tensors


def _tensor(name: str, entry: Any, start: int) -> Tensor:
    if not name.isprintable() or not 0 < len(name) <= 1000:
        raise UserError(f"tensor {name[:100]!a}: not a name")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"tensor {name}: may be an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in WIDTHS:
        raise UserError(f"tensor {name}: dtype: got {str(dtype)[:100]!r}, may be one of {sorted(WIDTHS)}")
    if not _naturals(shape) or len(shape) > 8:
        raise UserError(f"tensor {name}: shape: got {str(shape)[:100]}, may be at most 8 integers of at least 0")
    if not _naturals(offsets) or len(offsets) != 2:
        raise UserError(f"tensor {name}: data_offsets: got {str(offsets)[:100]}, may be two integers of at least 0")
    begin, end = offsets
    wanted = math.prod(shape) * WIDTHS[dtype]
    if end - begin != wanted:
        got = f"got {begin} to {end}" if max(begin, end) < 1 << 63 else "got too large a number"
        raise UserError(f"tensor {name}: data_offsets: {got}, but shape {shape} of {dtype} is {wanted} bytes")
    return Tensor(dtype, tuple(shape), start + begin, start + end)


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


# --- writing ----------------------------------------------------------------------------------------------------------


def make_header(specs: Mapping[str, Spec]) -> bytes:
    """The header of a file that holds these tensors in this order, its length included."""
    values: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without a format
    end = 0
    for name, (shape, dtype) in specs.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        values[name] = {"dtype": STORED_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(values, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def blocks(array: np.ndarray, dtype: np.dtype) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """An array's rows, a block at a time: (contiguous, as they are; the same in `dtype`), both flat."""
    if array.ndim == 0:
        array = array[None]
    row = max(1, array[:1].nbytes)
    count = max(1, BLOCK // row)
    for begin in range(0, len(array), count):
        block = np.ascontiguousarray(array[begin : begin + count]).reshape(-1)
        yield block, block if block.dtype == dtype else block.astype(dtype)


def write_file(
    path: Path,
    specs: Mapping[str, Spec],
    fetch: Callable[[str], np.ndarray],
    see: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
) -> tuple[int, str]:
    """Writes a safetensors file tensor by tensor; it takes its name when it is whole and on the disk.

    Args:
      fetch: a tensor of `specs` by name, in its shape, of any dtype that casts to its own.
      see: shown each block of a tensor, as fetched and as written.

    Returns:
      (bytes, sha256) of the file.

    Raises:
      WriteError: the disk refuses; what was written of the file is removed.
    """
    digest, size = hashlib.sha256(), 0

    def put(file: BinaryIO, data: Any) -> None:
        nonlocal size
        file.write(data)
        digest.update(data)
        size += len(data)

    with replacing(path) as partial, open(partial, "wb") as file:
        put(file, make_header(specs))
        for name, spec in specs.items():
            _write_tensor(file, put, name, spec, fetch(name), see)
    return size, digest.hexdigest()


def _write_tensor(
    file: BinaryIO, put: Callable, name: str, spec: Spec, array: np.ndarray, see: Callable | None
) -> None:
    shape, dtype = spec
    assert array.shape == shape, (name, array.shape, shape)
    for found, written in blocks(array, dtype):
        if see:
            see(name, found, written)
        put(file, written.view(np.uint8).data)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def count_not_finite(values: np.ndarray) -> int:
    """How many values of a float32 or bfloat16 array are NaN or infinite: those whose exponent is all ones."""
    word, mask = (np.uint16, 0x7F80) if values.dtype.itemsize == 2 else (np.uint32, 0x7F800000)
    mask = word(mask)
    return int(np.count_nonzero((values.view(word) & mask) == mask))
