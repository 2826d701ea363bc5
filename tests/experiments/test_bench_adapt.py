"""Adapters in minutes, dry: what the command refuses, and a whole small run on a CPU, resumed."""

import json

import pytest

from tests import commands
from tests.helpers import random_variables
from zaya_jax import preset
from zaya_jax.interop import save_huggingface

MODULE = "experiments.bench.adapt"
CONFIG = """
from tests.experiments import tiny

def get_config(start):
    c = tiny.get_config("lean")
    c.model.update(lora_rank=2, lora_alpha=4.0, lora_rows="drafts")
    c.phases, c.convert.start = ("convert",), start
    c.data.mixture = c.data.mixture[:1]
    c.convert.optimizer.update(freeze=("*", "!*lora*"), balancing_rate=0.0)
    return c
"""


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--output=x"], "error: --config: missing, may be a config file\n"),
        (["--config=x.py", "--output=x", "--tasks=addition", "--batches=0"], "error: --batches: got '0', may be"),
        (["--config=x.py", "--output=x"], "error: --tasks, --prompts_file: got neither"),
    ],
)
def test_mistakes_are_one_line(flags, says, tmp_path):
    process = commands.run(MODULE, *flags, cwd=str(tmp_path))
    assert process.returncode == 2 and process.stderr.startswith(says) and process.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run_trains_writes_and_times_adapters_and_resumes(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    config = preset("tiny", vocab_size=260)
    save_huggingface(tmp_path / "base", config, random_variables(config, scale=0.1))
    line = (
        f"--config={tmp_path / 'config.py'}:{tmp_path / 'base'}", "--tasks=addition", "--batches=1,2", "--prompts=2",
        "--max_new_tokens=8", "--minutes=0.02", "--draft_vocabulary=8", f"--output={tmp_path / 'out'}",
    )  # fmt: skip
    process = commands.run(MODULE, *line)
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "out" / "adapt.json").read_text())
    assert found["steps"] >= 1 and found["clean_tokens"] == found["steps"] * 4 * 48
    about = json.loads((tmp_path / "out" / "adapters" / "adapters.json").read_text())
    assert about["run"]["steps"] == found["steps"] and len(about["draft_vocabulary"]) == 8
    clocks = [json.loads((tmp_path / "out" / f"wall_clock_{batch}.json").read_text()) for batch in (1, 2)]
    assert [clock["batch"] for clock in clocks] == [1, 2]
    assert all(row["same"] == row["count"] for clock in clocks for row in clock["rows"] if row["temperature"] == 0)
    assert not (tmp_path / "out" / "probe").exists()
    (tmp_path / "out" / "wall_clock_2.json").unlink()
    again = commands.run(MODULE, *line)  # finds all but one
    assert again.returncode == 0 and (tmp_path / "out" / "wall_clock_2.json").exists(), again.stderr
    assert json.loads((tmp_path / "out" / "adapt.json").read_text()) == found
