"""The sampling benchmark's dry run: the line that a GPU would run, on a model of seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def door(module: str, *flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", f"experiments.{module}", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.mark.parametrize(
    "sections",
    ["anchors,predicted", pytest.param("rows,context,anchors,strategies,auto,predicted", marks=pytest.mark.slow)],
)
def test_train_then_measure(sections, tmp_path):
    """Both halves of the docstring's line, with a config and sizes of seconds."""
    tiny = [f"--config.model.{f}" for f in ("hidden_size=16", "num_hidden_layers=2", "num_experts=2", "head_dim=8")]
    small = [*tiny, "--config.pretrain.steps=2", "--config.convert.steps=2", "--config.control.steps=2"]
    small += ["--config.evaluate.prompts=4", "--config.evaluate.batch=4", "--config.evaluate.max_new_tokens=8"]
    config = "--config=configs/samplers.py:fast,block_size=4,preset=tiny"
    trained = door("run", config, f"--workdir={tmp_path / 'run'}", *small)
    assert trained.returncode == 0, trained.stderr[-2000:]
    output = tmp_path / "bench.json"
    measured = door(
        "bench_sampling", f"--checkpoint={tmp_path / 'run/checkpoints/convert'}", "--block_size=4", "--large=tiny",
        "--batches=1,2", "--prompts=8", "--repeats=1", "--new_tokens=12", f"--only={sections}",
        f"--output={output}",
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr[-2000:]
    numbers = json.loads(output.read_text())
    assert numbers["hardware"] and numbers["environment"]["git_commit"]
    ks = [(r["temperature"], r["anchors"], len(r["list"])) for r in numbers["anchors"]]
    assert ks == [(t, k, k) for t in (0.0, 1.0) for k in (1, 2, 3, 4)]
    assert all(1 <= r["tokens_per_forward"] <= 4 and set(r["clock_over_ar"]) == {"1", "2"} for r in numbers["anchors"])
    assert not any(r["run"] for r in numbers["predicted"])
    if "rows" in sections:
        assert {(r["model"], r["batch"]) for r in numbers["rows"]} == {
            ("trained", 1),
            ("trained", 2),
            ("tiny", 1),
            ("tiny", 2),
        }
        assert all(r["ratio"]["1"] == 1 and r["ratio"].keys() >= {"1", "20", "72"} for r in numbers["rows"])
        assert {r["mode"] for r in numbers["auto"]} <= {"autoregressive", "single_pass"}
        assert all(r["clock_over_ar"] > 0 and r["reason"] for r in numbers["auto"])
        assert len(numbers["strategies"]) == 26 and set(numbers["context"]) == {"1024", "32768"}


@pytest.mark.parametrize(
    ("flag", "names"),
    [
        ("--batches=1,x", "--batches: got 'x'"),
        ("--only=rows,speed", "--only: got 'speed'"),
        ("--output=/nowhere/x.json", "its folder does not exist"),
        ("--checkpoint=/nowhere", "/nowhere"),
    ],
)
def test_bad_flags_are_one_line(flag, names):
    failed = door("bench_sampling", flag)
    assert failed.returncode == 2 and names in failed.stderr and len(failed.stderr.strip().splitlines()) == 1
