"""The command that times a model with and without its drafts: what it refuses, and a run of seconds."""

import json

import pytest

from tests import commands
from zaya_jax.reporting.tables.wall_clock import wall_clock_table

MODULE = "experiments.bench.drafting"
MODEL = "--checkpoint=results/quickstart/model"
SMALL = ("--prompts=2", "--probes=2", "--max_new_tokens=24", "--temperatures=0")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--tasks=sums"], "error: --tasks: got 'sums', may be"),
        ([], "error: --tasks, --prompts_file: got neither, may be one or both\n"),
        (["--tasks=addition", "--temperatures=warm"], "error: --temperatures: got warm, may be numbers"),
        (
            ["--tasks=addition", "--batch=4", "--prompts=6"],
            "error: --batch: got 4, may be at most 3: --probes, and half",
        ),
        (["--tasks=addition", "--chat"], "error: --chat: results/quickstart/model has no chat template\n"),
    ],
)
def test_mistakes_are_one_line(flags, says):
    process = commands.run(MODULE, MODEL, *flags)
    assert process.returncode == 2 and process.stderr.startswith(says) and process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "rows: missing; choose another --output"), ('{"rows": [{}]}', "rows[0].tokens_per_second: missing"),
        ('{"rows": 3}', "holds other values than it should"), ("[" * 100_000, "not valid JSON: nested too deeply"),
    ],
)  # fmt: skip
def test_an_output_that_cannot_be_continued_is_named_and_left_alone(text, says, tmp_path):
    (tmp_path / "numbers.json").write_text(text)
    process = commands.run(MODULE, MODEL, "--tasks=addition", f"--output={tmp_path / 'numbers.json'}")
    assert process.returncode == 2 and f"{tmp_path / 'numbers.json'}: {says}" in process.stderr, process.stderr
    assert process.stderr.count("\n") == 1 and (tmp_path / "numbers.json").read_text() == text


@pytest.mark.slow
def test_a_small_run_writes_what_it_measured(tmp_path):
    output, prompts = tmp_path / "numbers.json", tmp_path / "sums.txt"
    prompts.write_text("".join(f"{n}+{n}=\n" for n in range(10, 14)))
    process = commands.run(MODULE, MODEL, "--tasks=addition", f"--prompts_file={prompts}", *SMALL, f"--output={output}")
    assert process.returncode == 0, process.stderr
    numbers = json.loads(output.read_text())
    assert [(row["prompts"], row["count"], row["temperature"]) for row in numbers["rows"]] == [
        ("addition", 2, 0.0), ("sums", 2, 0.0)
    ]  # fmt: skip
    for row in numbers["rows"]:
        assert row["same"] == 2 and row["tokens"]["plain"] == row["tokens"]["drafting"]  # greedy, lossless
        rates = {name: sum(row["tokens"][name]) / sum(row["seconds"][name]) for name in ("plain", "drafting")}
        assert row["tokens_per_second"] == pytest.approx(rates)
        assert row["ratio"] == pytest.approx(rates["drafting"] / rates["plain"])
        assert row["interval"][0] <= row["ratio"] <= row["interval"][1]
        assert row["query_tokens"] == row["block_size"] * (1 + len(row["anchors"]))
        assert 1 <= row["tokens_per_forward"] <= row["block_size"]
        ratios = {"autoregressive": 1.0, "single_pass": row["ratio"], "drafter": None}  # none was timed
        assert row["auto_ratio"] == ratios[row["auto"]] and (row["auto"] == "drafter") == bool(row["auto_drafter"])
    assert wall_clock_table(numbers).count("\n") == 3 and "2 of 2" in process.stdout
