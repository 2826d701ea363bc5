"""The evaluate command from the outside: any checkpoint, any task, and a user's mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests import commands
from tests.helpers import random_variables
from zaya_jax import preset
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.interop import save_huggingface
from zaya_jax.reporting.results import read_results

ROOT = Path(__file__).parents[2]
MODEL = "--checkpoint=results/quickstart/model"


def run(*args: str) -> tuple[int, str]:
    done = commands.run("experiments.evaluate", *args)
    return done.returncode, done.stdout + done.stderr


# The command's main, and once more after a kill's damage: in one process, so that the second traces nothing.
TWICE = """
    import shutil, sys
    from pathlib import Path
    from absl import flags
    from experiments import evaluate

    flags.FLAGS(["evaluate", *sys.argv[2:]])
    evaluate.main()
    output = Path(sys.argv[1])
    shutil.copytree(output / "after", output / "before")
    path = output / "after" / "answers" / "countdown-lossless-temperature-1.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:9])
    evaluate.main()
"""


def test_a_checkpoint_is_evaluated_on_several_tasks_and_resumes(tmp_path):
    args = [
        MODEL, "--tasks=addition,countdown", f"--output={tmp_path / 'after'}", "--prompts=2", "--samples=2",
        "--batch=2", "--max_new_tokens=8", "--samplers=lossless", "--temperatures=1", "--block_size=4",
    ]  # fmt: skip
    done = commands.run("tests.snippet", TWICE, str(tmp_path), *args)
    assert done.returncode == 0, done.stderr
    rows, again = (read_results(tmp_path / when / "results.csv") for when in ("before", "after"))
    assert [(r["source"], r["sampler"], r["temperature"], r["samples"]) for r in rows] == [
        (task, sampler, 1, 2) for task in ("addition", "countdown") for sampler in ("autoregressive", "lossless")
    ]
    assert all(r["rows_per_forward"] == (1 if r["sampler"] == "autoregressive" else 20) for r in rows)
    assert rows[0]["p_value"] is None and rows[1]["p_value"] > 0
    before, after = (
        (tmp_path / when / "answers" / "countdown-lossless-temperature-1.jsonl").read_text()
        for when in ("before", "after")
    )
    assert [json.loads(line).get("problem") for line in before.splitlines()] == [None, 0, 1]
    # what was cut short, as a kill would, is finished to the same answers
    assert [json.loads(line)["problem"] for line in after.splitlines()[1:]] == [0, 1]
    kept = ("source", "sampler", "temperature", "accuracy", "tokens", "forwards", "p_value")
    assert [{k: r[k] for k in kept} for r in again] == [{k: r[k] for k in kept} for r in rows]


def test_a_text_is_read_without_a_task(tmp_path):
    (tmp_path / "sums.txt").write_text("".join(f"{i}+{i}={2 * i}\n\n" for i in range(400)))
    status, output = run(MODEL, f"--texts={tmp_path / 'sums.txt'}", f"--output={tmp_path / 'out'}")
    assert status == 0, output
    (row,) = read_results(tmp_path / "out" / "results.csv")
    assert (row["kind"], row["source"]) == ("likelihood", "sums.txt")
    assert row["bits_per_byte"] == pytest.approx(row["ar_loss"] / np.log(2), rel=0.05)  # of bytes; ends count as text


@pytest.mark.parametrize(
    ("name", "args", "flag"),
    [("evaluate", ["--tasks=addition", "--output=x"], "--samplers"), ("generate", ["--prompt=a"], "--mode")],
)
def test_a_model_without_a_mask_token_names_the_commands_own_flag(name, args, flag, tmp_path):
    config = preset("tiny", vocab_size=260, mask_token_id=NO_MASK, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    save_huggingface(tmp_path / "model", config, random_variables(config))
    done = commands.run(f"experiments.{name}", f"--checkpoint={tmp_path / 'model'}", *args)
    assert done.returncode == 2 and not (ROOT / "x").exists()
    assert f"cannot draft: sample with {flag}=autoregressive, or" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ([], "error: --checkpoint: missing"),
        ([MODEL, "--tasks=addition"], "error: --output: missing"),
        ([MODEL, "--tasks=poetry", "--output=x"], "error: --tasks: got 'poetry', may be one of addition"),
        (
            [MODEL, "--tasks=addition", "--output=x", "--samplers=quick"],
            "error: --samplers: got 'quick', may be one of",
        ),
        ([MODEL, "--tasks=addition", "--output=x", "--temperatures=warm"], "error: --temperatures: got warm, may be"),
        ([MODEL, "--tasks=addition", "--output=x", "--temperatures=-1"], "error: --temperatures: got -1"),
        (
            [MODEL, "--tasks=addition", "--output=x", "--chat"],
            f"error: --chat: {ROOT}/results/quickstart/model has no chat",
        ),
        ([MODEL, "--tasks=addition", "--output=x", "--anchor_budget=9"], "error: --anchor_budget: got 9, may be"),
        ([MODEL, "--texts=nothing.txt", "--output=x"], f"error: --texts: {ROOT}/nothing.txt is no file"),
        ([MODEL, "--output=x"], "error: --tasks: missing, may be any of"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(args, line):
    status, output = run(*args)
    assert status == 2
    assert len(output.strip().splitlines()) == 1 and output.startswith(line), output
    assert not (ROOT / "x").exists()


def test_a_runs_own_table_is_not_written_over(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    few = ["--prompts=1", "--samples=1", "--max-new-tokens=1", "--samplers=autoregressive", "--temperatures=0"]
    status, output = run(MODEL, "--tasks=addition", f"--output={tmp_path}", *few)
    assert status == 2
    assert output.startswith(f"error: --output: got {tmp_path}, which is another's (config.json)")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
