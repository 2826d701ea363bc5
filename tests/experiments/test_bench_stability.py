"""The stability study's command: what it refuses, and a run of two arms, resumed."""

import json

import pytest

from tests import commands
from zaya_jax.reporting.tables import stability

MODULE = "experiments.bench.stability"
CONFIG = "--config=configs/stability.py:fast"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([CONFIG, "--parts=speed"], "error: --parts: got 'speed', "),
        ([CONFIG, "--arms=tidal"], "error: --arms: got 'tidal', did you mean tidar"),
        ([CONFIG, "--rates=0.1,fast"], "error: --rates: got '0.1,fast', may be positive numbers\n"),
        ([CONFIG, "--draws=2,2"], "error: --draws: got '2,2', may be three integers such as 16,4,4\n"),
        (["--parts=runs"], "error: --config: missing, may be configs/stability.py\n"),
        (["--config=configs/stability.py:arm=tidal"], "error: config argument arm: got 'tidal', may be one of"),
    ],
)
def test_mistakes_are_one_line(flags, says):
    process = commands.run(MODULE, *flags)
    assert process.returncode == 2 and process.stderr.startswith(says) and process.stderr.count("\n") == 1


@pytest.mark.slow
def test_two_arms_are_measured_once(tmp_path):
    output = tmp_path / "numbers.json"
    trained = commands.run("experiments.run", CONFIG, f"--workdir={tmp_path}/run", "--train_only",
                           "--config.phases=('pretrain',)")  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    flags = (CONFIG, f"--workdir={tmp_path}/run", f"--output={output}", "--arms=tidar,llada", "--rates=0.004,1000",
             "--seeds=2", "--draws=2,2,2")  # fmt: skip
    process = commands.run(MODULE, *flags)
    assert process.returncode == 0, process.stderr
    numbers = json.loads(output.read_text())
    assert len(numbers["runs"]) == 2 * 2 * 2 and len(numbers["noise"]) == 2 * 2 + 2
    assert {row["arm"] for row in numbers["decode"]} == {"tidar"}
    good = [row for row in numbers["runs"] if row["rate"] == 0.004]
    assert all(row["loss"] is not None and len(row["norms"]) == 20 for row in good)
    assert all(row["lossless"] == (row["sampler"] in ("autoregressive", "lossless")) for row in numbers["decode"])
    for table in (stability.weights_table, stability.noise_table, stability.runs_table, stability.decode_table):
        assert table(numbers).count("\n") >= 3
    again = commands.run(MODULE, *flags)
    assert again.returncode == 0 and json.loads(output.read_text()) == numbers
    arms = tmp_path / "run" / "arms" / "tidar.npz"
    whole = arms.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"\x80\x04N."):
        arms.write_bytes(broken)
        damaged = commands.run(MODULE, *flags, "--parts=noise", "--draws=2,2,3", f"--output={tmp_path / 'other.json'}")
        assert damaged.returncode == 2 and f"error: {arms}: cannot be read" in damaged.stderr, damaged.stderr
    other = commands.run(MODULE, *flags, "--config.convert.steps=3")
    assert other.returncode == 2 and "holds numbers of another steps: got 20, may be 3" in other.stderr
    for change, says in (
        ({"runs": [{}]}, r"runs[0].arm: missing"),
        ({"noise": 3}, "holds other values than it should"),
    ):
        output.write_text(json.dumps(numbers | change))
        damaged = commands.run(MODULE, *flags)
        assert damaged.returncode == 2 and says in damaged.stderr and "choose another --output" in damaged.stderr
