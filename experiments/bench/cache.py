"""What the compilation cache saves: whole commands with it off, empty and filled, in seconds.

    python -m experiments.bench.cache --base=tests/experiments/tiny.py --repeats=1
    python -m experiments.bench.cache --output=results/bench/compilation_cache.json

Measured are `experiments.run` of a config to its report and `experiments.generate` with the model it made, each a
process of its own on this machine, as a user types them. In turn, --repeats times:

* off: --compilation_cache= (everything is compiled, nothing is written);
* cold: with an empty folder, as the first time;
* warm: with the folder that cold filled, as every time after.

Seconds are the process's from start to end, importing JAX included. All must say the same: generated texts are
compared, and the runs' tables but for their times.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from zaya_jax.command_line import cli
from zaya_jax.errors import UserError
from zaya_jax.reporting.results import Row, read_results
from zaya_jax.runs import provenance

_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_BASE = flags.DEFINE_string("base", "configs/quickstart.py:fast", "Config that is run, with its :argument.")
_PROMPT = flags.DEFINE_string("prompt", "123+989=", "What is continued with the model that the config makes.")
_NEW = flags.DEFINE_integer("new_tokens", 64, "Tokens of the continuation.", lower_bound=1, upper_bound=2**24)
_REPEATS = flags.DEFINE_integer("repeats", 3, "How often each side is measured.", lower_bound=1, upper_bound=10_000)
SIDES = ("off", "cold", "warm")
TIMES = ("seconds", "tokens_per_second", "speedup", "milliseconds", "cost_ratio")  # columns that no two runs share


def main() -> None:
    cli.check_output(_OUTPUT.value)
    numbers: dict[str, Any] = {
        "hardware": provenance.hardware(), "environment": provenance.describe(), "base": _BASE.value,
        "prompt": _PROMPT.value, "new_tokens": _NEW.value, "repeats": _REPEATS.value, "commands": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        for name, measured in measure(Path(scratch)).items():
            row: dict[str, Any] = {"command": name, **measured}
            numbers["commands"].append(row)
            told = ", ".join(f"{side} {row[side]['median']:.1f} s" for side in SIDES)
            print(f"{name}: {told}; warm takes {row['warm_over_off']:.2f} of off", flush=True)
    cli.write_numbers(_OUTPUT.value, numbers)


def measure(scratch: Path) -> dict[str, dict[str, Any]]:
    """By command, the seconds of every side and what the cache holds."""
    seconds: dict[str, dict[str, list[float]]] = {name: {side: [] for side in SIDES} for name in ("run", "generate")}
    tables: list[list[Row]] = []
    texts: list[str] = []
    sizes: dict[str, dict[str, int]] = {}
    bar = tqdm(total=2 * len(SIDES) * _REPEATS.value, desc="commands", leave=False, dynamic_ncols=True)
    for turn in range(_REPEATS.value):
        for side in SIDES:
            workdir = scratch / f"{turn}-{side}"
            for name in seconds:
                # each command has a folder of its own, or generate would find programs of the run's evaluation
                cache = scratch / f"{turn}-{name}-cache"
                line = command(name, workdir, "" if side == "off" else str(cache))
                began = time.perf_counter()
                said = finish(line)
                seconds[name][side].append(time.perf_counter() - began)
                if name == "run":
                    tables.append(without_clocks(read_results(workdir / "results.csv")))
                else:
                    texts.append(said)
                if side == "cold":
                    files = [path for path in cache.rglob("*") if path.is_file()]
                    sizes[name] = {"programs": len(files), "bytes": sum(path.stat().st_size for path in files)}
                bar.update()
    bar.close()
    if any(table != tables[0] for table in tables) or len(set(texts)) > 1:
        raise UserError("the cache changes what a command says; nothing is written")
    return {name: summary(times) | {"cache": sizes[name]} for name, times in seconds.items()}


def command(name: str, workdir: Path, cache: str) -> list[str]:
    """A command as it is typed, but for where things lie."""
    common = [f"--compilation_cache={cache}", *([f"--threads={threads}"] if (threads := flags.FLAGS.threads) else [])]
    if name == "run":
        return [sys.executable, "-m", "experiments.run", f"--config={_BASE.value}", f"--workdir={workdir}", *common]
    asked = [f"--prompt={_PROMPT.value}", f"--max_new_tokens={_NEW.value}", "--temperature=0"]
    checkpoint = workdir / "checkpoints" / "convert"
    return [sys.executable, "-m", "experiments.generate", f"--checkpoint={checkpoint}", *asked, *common]


def finish(line: list[str]) -> str:
    """Runs a command without a cache from the environment; returns its stdout."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"{line[2]}: status {done.returncode}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
        )
    return done.stdout


def without_clocks(rows: list[Row]) -> list[Row]:
    return [{column: value for column, value in row.items() if column not in TIMES} for row in rows]


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Median and all seconds of each side, and what is left of "off"."""
    sides = {
        side: {"median": round(statistics.median(all_), 2), "seconds": [round(one, 2) for one in all_]}
        for side, all_ in times.items()
    }
    off = statistics.median(times["off"])
    return sides | {f"{side}_over_off": round(statistics.median(times[side]) / off, 3) for side in ("cold", "warm")}


if __name__ == "__main__":
    cli.run(main)
