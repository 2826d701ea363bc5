"""What converting a full-size checkpoint costs: memory, time, and a kill in the middle.

    python -m experiments.bench.convert --workdir=/tmp/small --output=small.json --preset=zaya1_1m
    python -m experiments.bench.convert --workdir=/tmp/z8b --output=results/bench/convert_8b.json

Makes a folder of random bfloat16 values with the preset's exact shapes (ZAYA1-8B: 17.7 GB) and converts it: to Zyphra's
legacy layout, that back, the folder to our own checkpoint, that back, each by `python -m experiments.convert` in a
process of its own. The ways out are killed (SIGKILL) half-way and resume. Every tensor of every result is compared bit
for bit with what it was made of. The folders are deleted after it. The disk needs three times the checkpoint's size.

Memory is the kernel's: VmHWM of /proc/PID/status is the peak of all resident pages, anonymous and of files, and RssAnon
of the anonymous ones, looked at every 50 ms.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import flags

from zaya_jax.architecture import ZayaConfig, preset
from zaya_jax.command_line import cli
from zaya_jax.command_line.models import scratch_folder
from zaya_jax.errors import UserError
from zaya_jax.interop.conversion.conversion import open_checkpoint
from zaya_jax.interop.families.table import ZAYA
from zaya_jax.interop.formats.folder import CONFIG_FILE
from zaya_jax.interop.formats.names import Path as Variable
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.interop.formats.shards import plan_shards, slots, write_shards
from zaya_jax.runs.provenance import describe, hardware

_WORKDIR = flags.DEFINE_string("workdir", None, "Scratch folder; must not exist. It is deleted in the end.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the numbers.")
_PRESET = flags.DEFINE_string("preset", "zaya1_8b", "Whose shapes.")
GIB = 1 << 30


class Random:
    """Tensors of random finite values, each known by its name alone; a source for `write_shards`."""

    def __init__(self, config: ZayaConfig) -> None:
        self._shapes = abstract_variables(config)

    def fetch(self, path: Variable, prefix: tuple[int, ...] = (), part: tuple[int, int] = (0, 1)) -> np.ndarray:
        struct = self._shapes[path]
        return random_values((path, prefix), struct.shape[len(prefix) :], struct.dtype)


def random_values(name: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Values of magnitude below 2, in rising order of memory."""
    rng = np.random.Generator(np.random.SFC64(zlib.crc32(repr(name).encode())))
    size = int(np.prod(shape, dtype=np.int64))
    if dtype == ml_dtypes.bfloat16:
        words = np.frombuffer(rng.bytes(2 * size), np.uint16) & np.uint16(0xBFFF)  # no exponent of all ones
        return words.view(ml_dtypes.bfloat16).reshape(shape)
    return rng.standard_normal(size, np.float32).reshape(shape)


def make_folder(folder: Path, config: ZayaConfig) -> int:
    """A Hugging Face folder of random weights; returns their bytes."""
    folder.mkdir(parents=True)
    (folder / CONFIG_FILE).write_text(json.dumps(ZAYA.config_to_huggingface(config)))
    specs = ZAYA.tensors(config)
    write_shards(folder, ZAYA, config, plan_shards(specs, 5_000_000_000), Random(config))
    return sum(path.stat().st_size for path in folder.iterdir())


def verify(folder: Path, config: ZayaConfig) -> int:
    """Compares a checkpoint of any layout with the values it was made of; returns how many tensors.

    Raises:
      UserError: names the first tensor that differs.
    """
    source, wanted = open_checkpoint(folder), Random(config)
    count = 0
    for name, entry, prefix in slots(ZAYA, config):
        found, value = source.fetch(entry.path, prefix), wanted.fetch(entry.path, prefix)
        if found.dtype != value.dtype or found.shape != value.shape or not _same(found, value):
            raise UserError(f"{folder}: {name} is not what it was made of")
        count += 1
    return count


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    word = {2: np.uint16, 4: np.uint32}[a.dtype.itemsize]
    rows = range(len(a)) if a.ndim > 1 else [slice(None)]
    bits = lambda x: np.ascontiguousarray(x).view(word)  # noqa: E731
    return all(np.array_equal(bits(a[row]), bits(b[row])) for row in rows)


@dataclasses.dataclass
class Watched:
    """A process and its memory."""

    seconds: float
    peak_gib: float  # VmHWM
    peak_anonymous_gib: float  # the largest RssAnon seen
    killed: bool
    text: str


def watch(arguments: list[str], kill_when: Any = None) -> Watched:
    """Runs `python -m experiments.convert`; kills it as soon as `kill_when()`.

    Raises:
      UserError: it failed; its last line.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.convert", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    peak, anonymous, killed = 0, 0, False
    while process.poll() is None:
        values = _memory(process.pid)
        peak, anonymous = max(peak, values.get("VmHWM", 0)), max(anonymous, values.get("RssAnon", 0))
        if kill_when and kill_when():
            process.send_signal(signal.SIGKILL)
            killed = True
            break
        time.sleep(0.05)
    text = process.communicate()[0]
    if process.returncode and not killed:
        raise UserError(f"experiments.convert: {text.strip().splitlines()[-1]}")
    return Watched(time.perf_counter() - began, peak / GIB, anonymous / GIB, killed, text)


def _memory(pid: int) -> dict[str, int]:
    """Bytes by the kernel's name."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    return {name: int(size) << 10 for name, size in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}


def measure(source: Path, output: Path, format: str, config: ZayaConfig, size: int, kill: bool) -> dict[str, Any]:
    """One conversion, killed half-way and resumed if so asked, then compared and described."""
    arguments = [f"--checkpoint={source}", f"--output={output}", f"--format={format}"]
    partial, runs = output.with_name(f".{output.name}.partial"), []
    if kill:
        runs.append(watch(arguments, lambda: _written(partial) > size / 2))
        if output.exists():
            raise UserError(f"{output}: was there before the kill; the checkpoint is too small for this")
    runs.append(watch(arguments))
    kept = re.search(r"resumed: (\d+)", runs[-1].text)
    began = time.perf_counter()
    return {
        "conversion": f"{source.name} -> {format}",
        "killed_after_s": round(runs[0].seconds, 1) if kill else None,
        "pieces_kept": int(kept[1]) if kept else 0,
        "seconds": round(sum(run.seconds for run in runs), 1),
        "peak_rss_gib": round(max(run.peak_gib for run in runs), 3),
        "peak_anonymous_gib": round(max(run.peak_anonymous_gib for run in runs), 3),
        "tensors_verified": verify(output, config),
        "verify_seconds": round(time.perf_counter() - began, 1),
    }


def _written(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # renamed meanwhile
            continue
    return total


def main() -> None:
    workdir = scratch_folder(_WORKDIR.value, "workdir")
    cli.check_output(_OUTPUT.value)
    config = preset(_PRESET.value)
    workdir.mkdir(parents=True, exist_ok=True)
    try:
        run(workdir, config)
    finally:
        shutil.rmtree(workdir, ignore_errors=True)


def run(workdir: Path, config: ZayaConfig) -> None:
    began = time.perf_counter()
    source = workdir / "huggingface"
    size = make_folder(source, config)
    print(f"made {size / 1e9:.2f} GB in {time.perf_counter() - began:.0f} s", flush=True)
    largest = max(int(np.prod(shape)) * dtype.itemsize for shape, dtype in ZAYA.tensors(config).values())
    numbers: dict[str, Any] = {
        "hardware": hardware(), "environment": describe(), "preset": _PRESET.value, "bytes": size,
        "largest_tensor_gib": round(largest / GIB, 3), "conversions": [],
    }  # fmt: skip
    for start, target, format, kill in (
        ("huggingface", "legacy", "legacy", True),
        ("legacy", "again", "huggingface", False),
        ("huggingface", "native", "native", True),
        ("native", "from_native", "huggingface", False),
    ):
        numbers["conversions"].append(measure(workdir / start, workdir / target, format, config, size, kill))
        print(numbers["conversions"][-1], flush=True)
        cli.write_numbers(_OUTPUT.value, numbers)  # a run of an hour may not reach its end
        for done in {"again": ("legacy", "again"), "from_native": ("native", "from_native")}.get(target, ()):
            shutil.rmtree(workdir / done)


if __name__ == "__main__":
    cli.run(main)
