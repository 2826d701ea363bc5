"""The lowering command from the outside: refusals, and (slow, with the compilers at hand) real GPU code."""

import json
import subprocess

import pytest

from tests import commands
from zaya_jax.aot.targets import TARGETS, plugin_library


def command(module: str, *arguments: str) -> subprocess.CompletedProcess:
    # XLA_FLAGS: the tests' own, two CPU devices and no optimisation
    return commands.run(f"experiments.{module}", *arguments, XLA_FLAGS=None)


def refused(done: subprocess.CompletedProcess, words: str) -> bool:
    line = done.stderr.strip().splitlines()[-1]
    return done.returncode == 2 and done.stdout == "" and line.startswith("error: ") and words in line


def test_mistakes_are_one_line():
    config = "--config=configs/quickstart.py:preset=tiny"
    assert refused(
        command("lower", config, "--target=mi300"), "--target: got 'mi300', may be one of ['h100', 'mi300x',"
    )
    done = command("lower", config, "--target=mi300x", "--devices=3")
    assert refused(done, "--devices: got 3, may be a divisor of convert.batch_size (16)")
    try:
        plugin_library(TARGETS["mi355x"])
    except FileNotFoundError:
        done = command("lower", config, "--target=mi355x")
        assert refused(done, "MI355X: its compiler is not installed, may be had by: pip install jax-rocm7-plugin==")


def test_benchmarks_measure_nothing_for_a_device_that_is_not_there():
    done = command("bench.step_cost", "--device=mi300x")
    assert refused(done, "--device: got 'mi300x', but JAX computes on cpu (cpu); nothing is measured")


@pytest.mark.slow  # a minute a target; needs the extras lower-amd and lower-nvidia, but no GPU
@pytest.mark.parametrize("name", TARGETS)
def test_real_code_for_a_gpu_that_is_not_here(name, tmp_path):
    try:
        plugin_library(TARGETS[name])
    except FileNotFoundError as error:
        pytest.skip(str(error))
    done = command(
        "lower", "--config=configs/quickstart.py:preset=tiny", "--config.model.dtype=bfloat16", f"--target={name}",
        "--what=train", "--devices=8", f"--output={tmp_path / 'found.json'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compiled, not executed" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())["programs"]["train"]
    assert found["compiles"] and found["fits"] and found["devices"] == 8
    assert found["collectives"]["all-reduce"]["executions"] >= 1
    assert found["library_matmuls"] > 20 and not found["other_calls"]
    # hipBLASLt's grouped product takes bfloat16 on gfx942 only: two forward, four backward
    assert found["expert_backend"] == ("ragged_dot" if name == "mi300x" else "block_padded")
    assert found["grouped_matmuls"] == (6 if name == "mi300x" else 0)
    if name != "h100":
        assert found["kernels"]["count"] > 50 and found["kernels"]["vgpr_spills"] == 0
        assert all(TARGETS[name].architecture in each for each in found["kernels"]["architectures"])


@pytest.mark.slow  # a minute a target
@pytest.mark.parametrize("name", ["mi300x", "h100"])
def test_no_kernel_of_a_decoding_step_writes_an_array_as_large_as_a_layers_matrix(name, tmp_path):
    """ZAYA1-8B's shapes in two layers, batch 1."""
    try:
        plugin_library(TARGETS[name])
    except FileNotFoundError as error:
        pytest.skip(str(error))
    model = ["num_hidden_layers=2", "layer_types=('hybrid','hybrid')", "dtype=bfloat16", "param_dtype=bfloat16"]
    done = command(
        "lower", "--config=configs/quickstart.py:preset=zaya1_8b", *(f"--config.model.{field}" for field in model),
        "--config.evaluate.anchor_budget=3", f"--target={name}", "--what=steps", "--context=4096",
        f"--output={tmp_path / 'found.json'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())["programs"]
    one, many = found["autoregressive"], found["single_pass"]
    assert one["largest_write"] < 2 * 1024 * 2048 / 4  # a quarter of o_proj's bytes
    assert many["largest_write"] < 2 * 2048 * 4096  # an expert's; scores of 64 query tokens are half of it
    assert one["moved"] < 1.1 * one["traffic"]
