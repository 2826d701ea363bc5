"""How fast text becomes batches: tokens/s of a core, and how long a run waits for its first batch.

    python -m experiments.bench.input --folder=/tmp/input --dry_run
    python -m experiments.bench.input --folder=/tmp/input --tokenizer=TOKENIZER --numbers=results/input/input.json

Makes two corpora out of this Python's own library, documents numbered so that none is another's copy: many small files,
and .jsonl files of many bytes. Each is prepared by `experiments.prepare`'s function in as many processes as there are
cores. Then processes of their own start as a run does, from nothing to the first batch, on prepared rows and, of the
many files, on texts (`prepare_text`, prepared before: what a run did at every start). Last, how fast one thread makes
batches of rows. Beside it stands what an 8-GPU node needs at 40% of peak, from FLOPs: a bound, nothing was run there.

The page is docs/results/input.md.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from absl import flags

from zaya_jax.architecture import preset
from zaya_jax.command_line import cli
from zaya_jax.command_line.models import scratch_folder
from zaya_jax.costs.flops import training_flops
from zaya_jax.costs.roofline import HARDWARE
from zaya_jax.data.builders import prepare_text
from zaya_jax.data.packed import PackedRows
from zaya_jax.data.packing import Preparation, prepare_rows
from zaya_jax.data.pipeline import make_train_iterator
from zaya_jax.errors import UserError
from zaya_jax.files import make_folder
from zaya_jax.runs.provenance import cores, describe, hardware
from zaya_jax.text.tokenizers import load_tokenizer

_FOLDER = flags.DEFINE_string("folder", None, "Scratch folder; must not exist. It is deleted in the end.")
_FILES = flags.DEFINE_integer("files", 200_000, "Small files.", lower_bound=100, upper_bound=10_000_000)
_FILE_BYTES = flags.DEFINE_integer("file_bytes", 2_000, "Bytes of each.", lower_bound=100, upper_bound=10**7)
_BYTES = flags.DEFINE_integer("bytes", 10**10, "Bytes of the large corpus.", lower_bound=10**6, upper_bound=10**13)
_TOKENIZER = flags.DEFINE_string("tokenizer", "bytes", "What both are tokenised with.")
_ROW_LENGTH = flags.DEFINE_integer("row_length", 4096, "Tokens in a row.", lower_bound=16, upper_bound=2**20)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "That prepare; default: one a core.", lower_bound=1, upper_bound=4096
)
_DRY = flags.DEFINE_bool("dry_run", False, "1,000 files and 4 MB: shows that it runs.")
_NUMBERS = flags.DEFINE_string("numbers", None, "JSON file for the numbers.")

BATCH, BATCHES, UTILISATION, GPUS = 16, 50, 0.4, 8

FIRST = """
import json, sys, time
began = time.time()
from pathlib import Path
from zaya_jax.data.builders import prepare_text
from zaya_jax.data.packed import PackedRows
from zaya_jax.data.pipeline import make_train_iterator
from zaya_jax.text.tokenizers import load_tokenizer
kind, path, data, tokenizer, row = sys.argv[1:]
imported = time.time()
source = PackedRows(Path(path), "train") if kind == "rows" else prepare_text([path], Path(data), "train")
next(make_train_iterator([(source, 1.0)], load_tokenizer(tokenizer), int(row), 16, seed=0))
print(json.dumps({"imports": imported - began, "first_batch": time.time() - imported}))
"""


def main() -> None:
    folder = scratch_folder(_FOLDER.value)
    cli.check_output(_NUMBERS.value)
    files, size = (1_000, 4 * 10**6) if _DRY.value else (_FILES.value, _BYTES.value)
    make_folder(folder)
    numbers: dict[str, Any] = {
        "hardware": hardware(), "environment": describe(), "tokenizer": Path(_TOKENIZER.value).name,
        "row_length": _ROW_LENGTH.value, "batch": BATCH, "corpora": [], "needed": needed(),
    }  # fmt: skip
    try:
        for name, make, how_much in (("many files", write_files, files), ("large", write_lines, size)):
            texts = folder / "texts"
            began = time.perf_counter()
            make(texts, how_much)
            print(f"{name}: written in {time.perf_counter() - began:.0f} s", flush=True)
            numbers["corpora"].append({"name": name} | measure(texts, folder, name == "many files"))
            print(numbers["corpora"][-1], flush=True)
            cli.write_numbers(_NUMBERS.value, numbers)
            for left in ("texts", "rows", "data"):
                shutil.rmtree(folder / left, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table(numbers)


def documents() -> Iterator[str]:
    """The library's files, over and over, each time with another number in front."""
    root = Path(os.__file__).parent
    texts = [path.read_text(encoding="utf-8", errors="ignore") for path in sorted(root.glob("*.py"))]
    number = 0
    while True:
        for text in texts:
            number += 1
            yield f"# {number}\n{text}"


def write_files(folder: Path, count: int) -> None:
    """`count` files of about --file_bytes, a thousand in a folder."""
    made, size = documents(), _FILE_BYTES.value
    pieces = (text[at : at + size] for text in made for at in range(0, len(text), size))
    for number, text in enumerate(islice(pieces, count)):
        if number % 1000 == 0:
            make_folder(folder / f"{number // 1000:05}")
        (folder / f"{number // 1000:05}" / f"{number}.txt").write_text(f"{number} {text}")


def write_lines(folder: Path, size: int) -> None:
    """Documents of `size` bytes together, in .jsonl files of at most 1 GB."""
    make_folder(folder)
    made, left, number = documents(), size, 0
    while left > 0:
        with (folder / f"{number:04}.jsonl").open("w") as file:
            room = min(left, 10**9)
            left -= room
            while room > 0:
                line = json.dumps({"text": next(made)}) + "\n"
                room -= file.write(line)
        number += 1


def measure(texts: Path, folder: Path, also_texts: bool) -> dict[str, Any]:
    """Preparing a corpus, starting on it, and reading rows."""
    processes, tokenizer = _PROCESSES.value or cores(), load_tokenizer(_TOKENIZER.value)
    what = Preparation((str(texts),), _TOKENIZER.value, _ROW_LENGTH.value)
    began, spent = time.perf_counter(), cpu_seconds()
    manifest = prepare_rows(what, folder / "rows", processes)
    seconds, spent = time.perf_counter() - began, cpu_seconds() - spent
    tokens = sum(count["tokens"] for count in manifest["counts"].values())
    found = {
        "files": sum(1 for path in texts.rglob("*") if path.is_file()), "bytes": manifest["source"]["bytes"],
        "tokens": tokens, "shards": len(manifest["shards"]), "rows_bytes": sum(s["bytes"] for s in manifest["shards"]),
        "processes": processes, "prepare_seconds": seconds, "prepare_cpu_seconds": spent,
        "tokens_per_cpu_second": tokens / spent,
    }  # fmt: skip
    found["first_batch_of_rows"] = first_batch("rows", folder / "rows", folder)
    if also_texts:
        began = time.perf_counter()
        prepare_text([str(texts)], folder / "data", "train")
        found["tfds_seconds"] = time.perf_counter() - began
        found["first_batch_of_texts"] = first_batch("texts", texts, folder)
    iterator = make_train_iterator([(PackedRows(folder / "rows", "train"), 1.0)], tokenizer, what.row_length, BATCH, 0)
    next(iterator)
    began, spent = time.perf_counter(), cpu_seconds()
    for _ in range(BATCHES):
        next(iterator)
    seconds, spent = time.perf_counter() - began, cpu_seconds() - spent
    iterator.close()
    read = BATCHES * BATCH * what.row_length
    return found | {"read_tokens_per_second": read / seconds, "read_tokens_per_cpu_second": read / spent}


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def first_batch(kind: str, path: Path, folder: Path) -> dict[str, float]:
    """Seconds from a new process's start to its first batch, without and with imports."""
    command = [sys.executable, "-c", FIRST, kind, str(path), str(folder / "data"), _TOKENIZER.value]
    done = subprocess.run([*command, str(_ROW_LENGTH.value)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"first batch of {kind}: {done.stderr.strip().splitlines()[-1]}")
    return {name: round(value, 3) for name, value in json.loads(done.stdout.splitlines()[-1]).items()}


def needed() -> dict[str, float]:
    """Tokens/s of ZAYA1-8B's training on 8 GPUs at 40% of their peaks: pretraining at 4k, TiDAR at 32k."""
    model, found = preset("zaya1_8b"), {}
    for name, row, tidar in (("pretrain 4k", 4096, False), ("midtrain 32k", 32_768, True)):
        flops = training_flops(model, 1, row, tidar, 16) / row
        found |= {f"{name}, {gpu}": UTILISATION * GPUS * its.flops / flops for gpu, its in HARDWARE.items()}
    return found


def table(numbers: dict[str, Any]) -> None:
    rate = min(corpus["tokens_per_cpu_second"] for corpus in numbers["corpora"])
    read = min(corpus["read_tokens_per_cpu_second"] for corpus in numbers["corpora"])
    print(f"\n{'node of 8':24} {'tokens/s':>10} {'cores to tokenise':>18} {'cores to read rows':>19}")
    for name, tokens in numbers["needed"].items():
        print(f"{name:24} {tokens:10,.0f} {tokens / rate:18.2f} {tokens / read:19.3f}")


if __name__ == "__main__":
    cli.run(main, keep_programs=False)
