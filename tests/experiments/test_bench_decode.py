"""The command that measures a decoding forward: what it refuses, and a run of seconds."""

import json

import pytest

from tests import commands
from tests.helpers import need_transformers_zaya

MODULE = "experiments.bench.decode"
TINY = ("--preset=tiny", "--rows=1,4", "--context=16", "--steps=2", "--repeats=1")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "error: --checkpoint, --preset: got both or neither, may be one of the two\n"),
        (("--preset=tiny", "--batches=0"), "error: --batches: got '0', may be integers in [1, 4096], e.g. 1,8\n"),
        (("--preset=tiny", "--rows="), "error: --rows: got '', may be integers in [1, 4096], e.g. 1,8\n"),
    ],
)
def test_mistakes_are_one_line(flags, says):
    process = commands.run(MODULE, *flags)
    assert (process.returncode, process.stderr) == (2, says)


@pytest.mark.slow
def test_a_tiny_run_writes_what_it_measured(tmp_path):
    output = tmp_path / "numbers.json"
    process = commands.run(MODULE, *TINY, "--batches=1", f"--output={output}")
    assert process.returncode == 0, process.stderr
    numbers = json.loads(output.read_text())
    (step,) = numbers["autoregressive"]
    one, four = numbers["forwards"]
    assert [row["rows"] for row in (one, four)] == [1, 4]
    assert numbers["summary"] == {
        "ratio_to_transformers": {},
        "fraction_of_bandwidth": {"1": step["fraction_of_bandwidth"]},
        "rows_over_one": {"1": 1.0, "4": four["milliseconds"] / one["milliseconds"]},
    }
    moved = step["bytes"] / (step["milliseconds"] / 1e3)
    assert step["fraction_of_bandwidth"] == pytest.approx(moved / numbers["copy_gigabytes_per_second"] / 1e9)
    assert "4 query tokens" in process.stdout


def test_beside_transformers(tmp_path):
    need_transformers_zaya()
    output = tmp_path / "numbers.json"
    process = commands.run(MODULE, *TINY, "--batches=2", "--transformers", f"--output={output}")
    assert process.returncode == 0, process.stderr
    numbers = json.loads(output.read_text())
    (step,) = numbers["autoregressive"]
    assert numbers["summary"]["ratio_to_transformers"] == {"2": step["transformers"] / step["milliseconds"]}
    assert step["setting"]["threads"] >= 1
