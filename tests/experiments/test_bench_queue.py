"""The command that measures continuous batching: a run of seconds."""

import json

import pytest

from tests import commands

TINY = ("--prompts=40", "--batch=8", "--repeats=1", "--max_new_tokens=32", "--samplers=lossless")


@pytest.mark.slow
def test_a_tiny_run_writes_what_it_measured(tmp_path):
    output = tmp_path / "numbers.json"
    process = commands.run("experiments.bench.queue", *TINY, f"--output={output}")
    assert process.returncode == 0, process.stderr
    numbers = json.loads(output.read_text())
    (row,) = numbers["rows"]
    assert (numbers["prompts"], numbers["batch"], row["sampler"], row["temperature"]) == (40, 8, "lossless", 1)
    assert row["same_texts"] == 40 and row["ratio"] == row["batches"]["median"] / row["queue"]["median"]
    assert 0 <= row["queue"]["idle"] < row["batches"]["idle"] < 1
    assert "times as fast" in process.stdout
