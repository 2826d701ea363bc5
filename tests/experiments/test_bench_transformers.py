"""The command that measures decoding against transformers: what it says without torch, and a run of seconds with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import commands
from tests.helpers import need_transformers_zaya

ROOT = Path(__file__).parents[2]
MODULE = "experiments.bench.transformers"
# The command as `python -m` runs it, on a machine where `import torch` fails.
WITHOUT_TORCH = f"""
import runpy, sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)
sys.meta_path.insert(0, Hide())
runpy.run_module("{MODULE}", run_name="__main__")
"""


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], cwd=ROOT, text=True, capture_output=True, timeout=600)


def test_without_torch_one_line_names_the_extra():
    process = run("-c", WITHOUT_TORCH)
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("error: bench.transformers needs torch and transformers")
    assert process.stderr.count("\n") == 1
    assert 'pip install -e ".[parity]"' in process.stderr


def test_mistaken_batches_are_one_line():
    process = commands.run(MODULE, "--batches=1,none")
    assert process.returncode == 2
    assert process.stderr == "error: --batches: got 1,none, may be integers of at least 1, e.g. 1,8\n"


def test_a_tiny_run_agrees_and_writes_its_numbers(tmp_path):
    need_transformers_zaya()
    output = tmp_path / "numbers.json"
    process = run("-m", MODULE, "--presets=tiny", "--batches=2", "--new_tokens=4", "--repeats=1", f"--output={output}")
    assert process.returncode == 0, process.stderr
    numbers = json.loads(output.read_text())
    assert {"hardware", "environment", "transformers"} <= numbers.keys()
    assert {"torch", "transformers"} <= numbers["environment"]["packages"].keys()
    (row,) = numbers["transformers"]
    assert (row["preset"], row["batch"], row["new_tokens"], row["experts"]) == ("tiny", 2, 4, 16)
    assert row["agreement"] == 1.0
    times = row["milliseconds_per_token"]
    assert row["ratio"] == pytest.approx(times["transformers"] / times["zaya_jax"])
    chosen = {name: row["setting"][name] for name in ("attention", "experts", "threads")}
    fastest = min(row["trial"], key=lambda trial: trial["milliseconds_per_token"])
    assert fastest == {**chosen, "milliseconds_per_token": fastest["milliseconds_per_token"]}
