"""The accelerators' benchmark, dry: what it refuses, and a run of seconds on a CPU."""

import json

import pytest

from tests import commands

MODULE = "experiments.bench.gpu"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--presets=huge"], "error: --presets: got 'huge', may be"),
        (["--batches=0"], "error: --batches: got '0', may be integers"),
        (["--contexts=much"], "error: --contexts: got 'much', may be integers"),
    ],
)
def test_mistakes_are_one_line(flags, says):
    process = commands.run(MODULE, *flags)
    assert process.returncode == 2 and process.stderr.startswith(says) and process.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_dry_run_measures_every_way_to_sample(tmp_path):
    output = tmp_path / "gpu.json"
    small = ("--presets=tiny", "--batches=1,2", "--contexts=16", "--block_size=4", "--steps=2", "--repeats=1")
    process = commands.run(MODULE, *small, "--minutes=0", f"--output={output}")
    assert process.returncode == 0 and "not measured: tiny, batch 2, context 16: --minutes=0" in process.stdout
    process = commands.run(MODULE, *small, "--batches=1", f"--output={output}")
    assert process.returncode == 0, process.stderr
    numbers = json.loads(output.read_text())
    found = {row["sampler"]: row for row in numbers["rows"]}
    assert {name: row["query_tokens"] for name, row in found.items()} == {
        "autoregressive": 1, "single_pass, 1": 8, "single_pass, 3": 16, "two_pass": 9, "single_pass, all": 20
    }  # fmt: skip
    for row in numbers["rows"]:
        if row["sampler"] != "autoregressive":
            assert row["speedup"]["4.6"] == pytest.approx(
                4.6 * found["autoregressive"]["milliseconds"] / row["milliseconds"]
            )
    assert numbers["reported"]["H100"]["1"] == 2.6 and not numbers["not_measured"]
