"""convert, inspect, compare and their benchmark, as a user calls them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers import random_variables
from zaya_jax.architecture import preset
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.native import write_model_file
from zaya_jax.training.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
CONFIG = preset("tiny")


def run(door: str, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"experiments.{door}", *flags]
    return subprocess.run(command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "model"
    save_huggingface(folder, CONFIG, random_variables(CONFIG))
    return folder


def test_there_and_compared(start, tmp_path):
    out = tmp_path / "legacy"
    result = run("convert", f"--checkpoint={start}", f"--output={out}", "--format=legacy", "--max_shard_gb=0.0001")
    assert result.returncode == 0, result.stderr
    assert re.search(r"done: .*legacy \(79 tensors, 0.00 GB, float32\)", result.stdout), result.stdout
    assert len(list(out.glob("*.safetensors"))) > 1
    result = run("compare", f"--checkpoint={start}", f"--other={out}", "--text=123+")
    assert result.returncode == 0, result.stderr
    for line in ("1 x 4 tokens", "largest difference 0, 0 of their std", "KL 0 nats", "top-1 agreement 100.0%",
                 "36 equal, 0 differ"):  # fmt: skip
        assert line in result.stdout, result.stdout


def test_a_narrowed_copy_differs_a_little(start, tmp_path):
    run("convert", f"--checkpoint={start}", f"--output={tmp_path / 'half'}", "--dtype=bfloat16")
    result = run("compare", f"--checkpoint={start}", f"--other={tmp_path / 'half'}", "--length=16", "--listed=2")
    assert result.returncode == 0, result.stderr
    gap, kl = (float(re.search(pattern, result.stdout)[1]) for pattern in (r", (\S+) of their std", r"KL (\S+) nats"))
    assert 0 < gap < 1 and 0 < kl < 0.1, result.stdout
    assert "1 equal, 35 differ" in result.stdout  # the balancing biases stay float32


def test_inspect_lists_what_training_saves(tmp_path):
    variables = random_variables(CONFIG)
    write_model_file(tmp_path, CONFIG)
    with Checkpoints(tmp_path) as steps:
        for step in (1, 2):
            state = {**variables, "ema": variables["params"], "optimizer": {"mu": variables["params"]["norm"]}}
            steps.save(step, state, {"data": 7})
    result = run("inspect", f"--checkpoint={tmp_path}", "--stats")
    assert result.returncode == 0, result.stderr
    for part in ("steps [1, 2], the newest (2)", "data: 7", "holds average, buffers, optimizer, weights",
                 "ema/embed_tokens float32[260, 32]", "optimizer: 1 arrays, 32 values", "rms", "complete"):  # fmt: skip
        assert part in result.stdout, result.stdout


def test_inspect_says_all_that_is_wrong_and_still_lists(start, tmp_path):
    tensors = load_file(start / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["ghost"] = tensors.pop("model.layers.0.self_attn.qk_norm.temp")
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((start / "config.json").read_text())
    result = run("inspect", f"--checkpoint={tmp_path}")
    assert result.returncode == 1
    for part in ("model.layers.*.mlp.experts.gate_up_proj F32[4, 64, 32] x 2", "tensor ghost: unexpected",
                 "model.norm.weight: missing", "qk_norm.temp: missing"):  # fmt: skip
        assert part in result.stdout, result.stdout


MISTAKES = {
    "no checkpoint": ("convert", ["--output=x"], "--checkpoint: missing, may be a folder"),
    "no folder": ("convert", ["--checkpoint=/nowhere", "--output=x"], "checkpoint /nowhere: not a folder"),
    "tokens": ("compare", ["--checkpoint={start}", "--other={start}", "--tokens=1 x"], "may be token ids"),
    "large token": ("compare", ["--checkpoint={start}", "--other={start}", "--tokens=260"], "may be ids below 260"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(start, case):
    door, flags, message = MISTAKES[case]
    result = run(door, *(flag.format(start=start) for flag in flags))
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr, result.stderr


@pytest.mark.slow
def test_the_benchmark_kills_resumes_and_verifies(tmp_path):
    output = tmp_path / "numbers.json"
    result = run("bench_convert", f"--workdir={tmp_path / 'w'}", "--preset=zaya1_25m", f"--output={output}")
    assert result.returncode == 0, result.stderr
    rows = json.loads(output.read_text())["conversions"]
    assert [row["tensors_verified"] for row in rows] == [259] * 4
    assert rows[2]["pieces_kept"] > 0 and rows[0]["killed_after_s"] > 0
    assert not (tmp_path / "w").exists()
