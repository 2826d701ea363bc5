"""The sampling benchmark's dry run: the line that a GPU would run, on a model of seconds."""

import json
import subprocess
from pathlib import Path

import pytest

from tests import commands, xla
from tests.helpers import random_variables
from zaya_jax import preset
from zaya_jax.interop import save_huggingface

ROOT = Path(__file__).parent.parent.parent


def command(module: str, *flags: str) -> subprocess.CompletedProcess:
    return commands.run(f"experiments.{module}", *flags, XLA_FLAGS=xla.CHEAPLY)


def measure(checkpoint: Path, block_size: int, sections: str, output: Path, *more: str) -> dict:
    measured = command(
        "bench.sampling", f"--checkpoint={checkpoint}", f"--block_size={block_size}", "--prompts=8", "--repeats=1",
        f"--only={sections}", f"--output={output}", *more,
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr[-2000:]
    numbers = json.loads(output.read_text())
    assert numbers["hardware"] and numbers["environment"]["git_commit"]
    return numbers


def check_anchors(rows: list[dict], block_size: int, batches: set[str]) -> None:
    ks = [(r["temperature"], r["anchors"], len(r["list"])) for r in rows]
    assert ks == [(t, k, k) for t in (0.0, 1.0) for k in (1, 2, 3, 4)[:block_size]]
    assert all(1 <= r["tokens_per_forward"] <= block_size and set(r["speedup"]) == batches for r in rows)


@pytest.mark.parametrize("section", ["predicted", pytest.param("anchors", marks=pytest.mark.slow)])
def test_a_model_is_measured(tmp_path, section):
    config = preset("tiny", vocab_size=260, mask_token_id=259, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    save_huggingface(tmp_path / "model", config, random_variables(config))
    numbers = measure(tmp_path / "model", 2, section, tmp_path / "bench.json", "--batches=8", "--new_tokens=8")
    if section == "anchors":
        check_anchors(numbers["anchors"], 2, {"8"})
    else:
        assert numbers["predicted"] and not any(r["run"] for r in numbers["predicted"])


@pytest.mark.slow  # seven minutes: every section compiles dozens of programs
def test_train_then_measure(tmp_path):
    """Both halves of the docstring's line, with a config and sizes of seconds."""
    tiny = [f"--config.model.{f}" for f in ("hidden_size=16", "num_hidden_layers=2", "num_experts=2", "head_dim=8")]
    small = [*tiny, "--config.pretrain.steps=2", "--config.convert.steps=2", "--config.control.steps=2"]
    small += ["--config.evaluate.prompts=4", "--config.evaluate.batch=4", "--config.evaluate.max_new_tokens=8"]
    config = "--config=configs/samplers.py:fast,block_size=4,preset=tiny"
    trained = command("run", config, f"--workdir={tmp_path / 'run'}", *small)
    assert trained.returncode == 0, trained.stderr[-2000:]
    sections = "rows,context,anchors,strategies,auto,predicted"
    more = ("--large=tiny", "--batches=1,2", "--new_tokens=12")
    numbers = measure(tmp_path / "run/checkpoints/convert", 4, sections, tmp_path / "bench.json", *more)
    check_anchors(numbers["anchors"], 4, {"1", "2"})
    sizes = {(r["model"], r["batch"]) for r in numbers["rows"]}
    assert sizes == {("trained", 1), ("trained", 2), ("tiny", 1), ("tiny", 2)}
    assert all(r["ratio"]["1"] == 1 and r["ratio"].keys() >= {"1", "20", "72"} for r in numbers["rows"])
    assert {r["mode"] for r in numbers["auto"]} <= {"autoregressive", "single_pass"}
    assert all(r["speedup"] > 0 and r["reason"] for r in numbers["auto"])
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
    failed = command("bench.sampling", flag)
    assert failed.returncode == 2 and names in failed.stderr and len(failed.stderr.strip().splitlines()) == 1
