"""The bfloat16 benchmark's numbers on a tiny model, and what it says about mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.bench._bfloat16_logits import U, compare, parting, tie_bound
from tests import commands
from tests.helpers import random_variables
from zaya_jax import preset
from zaya_jax.interop import save_huggingface

ROOT = Path(__file__).parents[2]


def run(*flags: str) -> subprocess.CompletedProcess:
    return commands.run("experiments.bench.bfloat16", *flags)


@pytest.mark.slow  # compiles two dozen programs
def test_a_tiny_model_is_measured(tmp_path):
    config = preset("tiny", vocab_size=260, mask_token_id=259, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    save_huggingface(tmp_path / "model", config, random_variables(config, scale=0.1))
    output = tmp_path / "numbers.json"
    small = ("--prompts=3", "--texts=2", "--new_tokens=8", "--block_size=2", "--repeats=1")
    done = run(f"--checkpoint={tmp_path / 'model'}", f"--output={output}", *small)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(output.read_text())
    (row,) = numbers["logits"]
    assert 0 < row["zaya_jax"]["unchanged"]["rms"] <= U * np.sqrt(20 * config.num_hidden_layers)
    assert row["unchanged_positions"] <= row["positions"]
    assert [(r["dtype"], r["texts"]) for r in numbers["greedy"]] == [("bfloat16", 3), ("float32", 3)]
    assert numbers["greedy"][1]["identical"] == 3
    kinds = [(r["kind"], set(r["milliseconds"])) for r in numbers["cost"]]
    sides = {"bfloat16", "float32", "bfloat16, rounded everywhere"}
    assert kinds == [("prefill", sides), ("decode", sides)]
    # a section alone, without torch: the others stay, and a line says what was left out
    numbers["cost"] = []
    output.write_text(json.dumps(numbers))
    code = "import runpy, sys; sys.modules['torch'] = None; runpy.run_module('experiments.bench.bfloat16', run_name="
    flags = [f"--checkpoint={tmp_path / 'model'}", f"--output={output}", "--only=logits", *small]
    again = subprocess.run(
        [sys.executable, "-c", code + "'__main__')", *flags], cwd=ROOT, text=True, capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "checkpoint: transformers left out: " in again.stdout
    after = json.loads(output.read_text())
    assert after["cost"] == [] and "transformers" not in after["logits"][0]


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("--only=speed", "--only: got 'speed'"),
        ("--models=8b", "--models: got '8b'"),
        ("--dtypes=float16", "--dtypes: got 'float16'"),
    ],
)
def test_bad_flags_are_one_line(flag, names):
    failed = run(flag)
    assert failed.returncode == 2 and names in failed.stderr and len(failed.stderr.strip().splitlines()) == 1


def test_positions_after_a_changed_expert_are_counted_separately():
    """One text of four tokens, one layer: the third's expert changes, and the error there is ten times as large."""
    logits = np.array([[3.0, 1.0], [0.0, 2.0], [1.0, 0.0], [5.0, 4.0]], np.float32)
    error = np.array([[1, 0], [0, 1], [10, 0], [0, 10]], np.float32) / 100

    def reference(row):
        return logits, np.array([[0, 1, 1, 0]])

    def side(row):
        return logits + error, np.array([[0, 1, 0, 0]])

    found = compare(reference, {"ours": side}, [[1, 2, 3, 4]])
    assert (found["positions"], found["unchanged_positions"]) == (4, 2)
    assert found["deviation"] == pytest.approx(logits.std())
    ours = found["ours"]
    assert ours["unchanged"]["rms"] == pytest.approx(np.sqrt(0.5) / 100 / logits.std(), rel=1e-4)
    assert ours["all"]["max"] == pytest.approx(0.1 / logits.std(), rel=1e-4)
    assert (ours["changed_experts"], ours["top1_differs"], ours["top1_ties"]) == (0.25, 0, 0)


@pytest.mark.parametrize(("gap", "tie"), [(0.9, True), (1.1, False)])
def test_a_text_may_part_only_where_two_tokens_are_nearly_tied(gap, tie):
    """Two layers move a token's logit by 2 U of the deviation, so two tokens' by 4 U; eight layers twice as far."""
    assert (tie_bound(2), tie_bound(8), tie_bound(1)) == (4 * U, 8 * U, 4 * U)
    logits = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)
    logits[[7, 9]] = 5, 5 - gap * 4 * U * logits.std()

    def forward(text):
        assert text == [1, 2, 3]
        return np.stack([np.zeros_like(logits), logits]), np.zeros((0, 3))

    row = parting([1, 2], [3, 7, 4], [3, 9, 4], forward, tie_bound(2))
    assert row["at"] == 1 and row["tie"] is tie and row["gap"] == pytest.approx(gap * 4 * U, rel=1e-3)
    assert parting([1, 2], [3], [3, 9], forward, 1.0) == {"at": 1, "gap": None, "tie": False}  # one ends early
