"""The sweep door: combinations, names, shared stages, failures that stop nobody else, and going on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.common import axis, product, sweep, together, zipped
from experiments.sweep import read_jobs, slurm_parameters
from zaya_jax.analysis.results import read_results, read_sweep
from zaya_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def test_products_and_zips():
    a, b = axis("seed", 0, 1), axis("convert.objective.block_size", 4, 8)
    assert [dict(job) for job in product(a, b)] == [
        {"seed": s, "convert.objective.block_size": n} for s in (0, 1) for n in (4, 8)
    ]
    assert [tuple(dict(job).values()) for job in zipped(a, b)] == [(0, 4), (1, 8)]
    assert together(evaluate__beta=0.5, seed=1) == [(("evaluate.beta", 0.5), ("seed", 1))]
    with pytest.raises(ValueError, match="argument 2 is longer"):
        zipped(a, axis("seed", 0, 1, 2))


def test_names_say_what_tells_jobs_apart():
    jobs = product(together(evaluate__samples=4), axis("evaluate.temperatures", (0.0, 1.0), (1.0,)))
    assert list(read_jobs(sweep("s", "c.py", jobs))) == ["temperatures=0.0_1.0", "temperatures=1.0"]
    assert list(read_jobs(sweep("s", "c.py", together(seed=1)))) == ["base"]
    with pytest.raises(ValueError, match="job seed=1 stands in it twice"):
        read_jobs(sweep("s", "c.py", [*axis("seed", 1, 1), *axis("seed", 2)]))
    with pytest.raises(ValueError, match="has no jobs"):
        read_jobs(sweep("s", "c.py", []))


def test_slurm_parameters():
    assert slurm_parameters(["timeout_min=60", "partition=gpu"]) == {"timeout_min": 60, "slurm_partition": "gpu"}
    with pytest.raises(ValueError, match="--slurm: got 'gpu', may be NAME=VALUE"):
        slurm_parameters(["gpu"])


def run(workdir: Path, *args: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "experiments.sweep", "--config=tests/experiments/tiny_sweep.py"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}", *args], cwd=ROOT, text=True, capture_output=True, timeout=900
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_sweep_trains_shared_stages_once_survives_a_failure_and_goes_on(tmp_path):
    workdir = tmp_path / "sweep"
    status, output = run(workdir, "--workers=1")
    assert status == 1
    (failure,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert "block_size=0" in failure and "Objective.block_size: got 0" in failure
    assert "2 of 3 jobs finished" in output
    rows = read_sweep(workdir / "results.csv")
    names = list(dict.fromkeys(row["run"] for row in rows))
    assert len(names) == 2 and {row["changes"]["convert.objective.alpha"] for row in rows} == {1.0, 0.5}
    for name in names:
        own = read_results(workdir / "runs" / name / "results.csv")
        assert [r["accuracy"] for r in own] == [r["accuracy"] for r in rows if r["run"] == name]
        assert {r["samples"] for r in own if r["kind"] == "sampling"} == {2}
    # both start from one pretraining, which the first of them trained
    stages = [path.name.partition("-")[0] for path in (workdir / "stages").iterdir() if path.is_dir()]
    assert sorted(stages) == ["control", "convert", "convert", "pretrain"]
    trained = [{m["stage"] for m in read_metrics(workdir / "runs" / name / "metrics.jsonl")} for name in names]
    assert "pretrain" in trained[0] and "pretrain" not in trained[1]

    before = {name: (workdir / "runs" / name / "results.csv").stat().st_mtime_ns for name in names}
    status, output = run(workdir, "--only=alpha")
    assert status == 0 and "2 of 3 jobs finished" in output
    assert before == {name: (workdir / "runs" / name / "results.csv").stat().st_mtime_ns for name in names}


COMMANDS_OF_SLURM = {
    "sbatch": """
        id=$$
        SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0 \\
            bash "$1" >/dev/null 2>&1 &
        echo "Submitted batch job $id"
    """,
    "srun": """
        while true; do
            case "$1" in
                --unbuffered) shift ;;
                --output | --error) shift 2 ;;
                *) exec "$@" ;;
            esac
        done
    """,
    "sacct": "echo 'JobID|State|NodeList'",
}


def test_slurm_runs_jobs_and_tells_why_they_fail(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))  # holds no Slurm, whatever this machine has
    status, output = run(tmp_path / "nowhere", "--executor=slurm", "--only=block_size=0")
    assert status == 2 and "error: --executor=slurm: Could not detect" in output
    for name, text in COMMANDS_OF_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{path}")
    status, output = run(tmp_path / "w", "--executor=slurm", "--slurm=timeout_min=5", "--only=block_size=0")
    assert status == 1
    (failure,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert "status 2" in failure and "Objective.block_size: got 0" in failure
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2\nexit 1\n")
    status, output = run(tmp_path / "w", "--executor=slurm", "--only=block_size=0")
    assert status == 1 and "Slurm: " in output and "invalid partition" in output


def test_a_folder_with_another_sweep_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "other", "config": "tests/experiments/tiny.py"}))
    status, output = run(tmp_path)
    assert status == 2
    assert output.strip().endswith("holds another sweep: name ('other' there, 'tiny' now); choose another")


def test_a_list_is_commands_that_can_be_typed(tmp_path):
    status, output = run(tmp_path / "w", "--list", "--only=alpha=0.5")
    assert status == 0 and not (tmp_path / "w").exists()
    (line,) = output.strip().splitlines()
    assert "'--config.evaluate.temperatures=(1.0,)'" in line and "--config.convert.objective.alpha=0.5" in line
