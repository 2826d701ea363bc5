"""The sweep command: combinations, names, shared stages, failures that stop nobody else, and resuming."""

import csv
import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from configs.common import axis, product, sweep, together, zipped
from experiments.sweep import gather, last_error, run_job, slurm_parameters
from tests import commands
from tests.helpers import no_file_above
from zaya_jax.errors import UserError
from zaya_jax.reporting import sweep_summary
from zaya_jax.reporting.results import read_results, read_sweep, write_results
from zaya_jax.runs import run_folder
from zaya_jax.runs.jobs import FAILED, Job, check_jobs, find_base, read_jobs, to_redo
from zaya_jax.training.logging.metrics import read_metrics

pytestmark = pytest.mark.early

ROOT = Path(__file__).parents[2]


def test_products_and_zips():
    a, b = axis("seed", 0, 1), axis("convert.objective.block_size", 4, 8)
    assert [dict(job) for job in product(a, b)] == [
        {"seed": s, "convert.objective.block_size": n} for s in (0, 1) for n in (4, 8)
    ]
    assert [tuple(dict(job).values()) for job in zipped(a, b)] == [(0, 4), (1, 8)]
    assert together(evaluate__beta=0.5, seed=1) == [(("evaluate.beta", 0.5), ("seed", 1))]
    with pytest.raises(ValueError, match=r"zipped: got axes of \[2, 3\] values"):
        zipped(a, axis("seed", 0, 1, 2))


def test_names_say_what_tells_jobs_apart():
    jobs = product(together(evaluate__samples=4), axis("evaluate.temperatures", (0.0, 1.0), (1.0,)))
    assert list(read_jobs(sweep("s", "c.py", jobs))) == ["temperatures=0.0_1.0", "temperatures=1.0"]
    assert list(read_jobs(sweep("s", "c.py", together(seed=1)))) == ["base"]
    with pytest.raises(ValueError, match="job seed=1 stands in it twice"):
        read_jobs(sweep("s", "c.py", [*axis("seed", 1, 1), *axis("seed", 2)]))
    with pytest.raises(ValueError, match="has no jobs"):
        read_jobs(sweep("s", "c.py", []))


def test_fields_that_end_in_the_same_word_have_whole_names_and_folders_of_before_are_found(tmp_path):
    axes = axis("seed", 0, 1), axis("evaluate.seed", 1), axis("data.packing", "first_fit", "best_fit")
    jobs = read_jobs(sweep("s", "c.py", product(axes[0], zipped(axis("evaluate.seed", 0, 1), axes[2]))))
    names = [f"seed={a}-evaluate.seed={b}-packing={c}" for a in (0, 1) for b, c in ((0, "first_fit"), (1, "best_fit"))]
    assert list(jobs) == names
    (tmp_path / "runs" / "seed=0-seed=1-packing=best_fit").mkdir(parents=True)
    assert list(check_jobs("c.py", jobs, tmp_path)) == [names[0], "seed=0-seed=1-packing=best_fit", *names[2:]]
    assert list(read_jobs(sweep("s", "c.py", product(axes[1], axes[0])))) == ["seed=0", "seed=1"]  # one is in all


@pytest.mark.parametrize(
    ("name", "config", "jobs", "line"),
    [
        ("../../x", "c.py", axis("seed", 1), r"sweep: name: got '\.\./\.\./x', may be at most 100 letters"),
        (3, "c.py", axis("seed", 1), "sweep: name: got 3"),
        ("s", 3, axis("seed", 1), "sweep: config: got 3, may be a text"),
        ("s", "", axis("seed", 1), "sweep: config: got '', may be a text"),
        ("s", "c.py", ["seed"], r"sweep: jobs: got \('seed',\), may be tuples of \(field, value\)"),
        ("s", "c.py", axis(3, 1), "sweep: jobs: got "),
        ("s", "c.py", axis("name", "a", "b" * 300), "sweep s: job name=b{55}[.]{3}: 305 letters name its folder"),
    ],
)
def test_a_sweep_file_that_makes_something_else_is_one_line(name, config, jobs, line):
    with pytest.raises(UserError, match=f"^{line}") as error:
        read_jobs(sweep(name, config, jobs))
    assert "\n" not in str(error.value)


def test_slurm_parameters():
    assert slurm_parameters(["timeout_min=60", "partition=gpu"]) == {"timeout_min": 60, "slurm_partition": "gpu"}
    with pytest.raises(ValueError, match="--slurm: got 'gpu', may be NAME=VALUE"):
        slurm_parameters(["gpu"])


def test_the_base_config_is_found_from_the_sweeps_file_then_the_clone_then_here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    sweep_file = tmp_path / "there" / "blocks.py"
    assert find_base("configs/study.py:fast,block_size=4", sweep_file) == f"{ROOT}/configs/study.py:fast,block_size=4"
    (tmp_path / "here" / "mine.py").touch()
    assert find_base("mine.py", sweep_file) == "mine.py"
    (tmp_path / "there" / "mine.py").touch()
    assert find_base("mine.py:fast", sweep_file) == f"{tmp_path}/there/mine.py:fast"
    with pytest.raises(
        FileNotFoundError, match=r"sweep: config: got 'none.py:fast', may be a config file; there is"
    ) as e:
        find_base("none.py:fast", sweep_file)
    assert all(str(place) in str(e.value) for place in (tmp_path / "here", tmp_path / "there", ROOT))


BASE = str(ROOT / "tests" / "experiments" / "tiny.py")


def test_every_jobs_config_is_checked_whole(tmp_path):
    changes = {
        "good": {"evaluate.samples": 2},
        "bad": {"evaluate.anchor_budget": 9},
        "unknown": {"evaluate.nothere": 1},
        "typed": {"evaluate.samples": "many"},
    }
    jobs = check_jobs(BASE, changes, tmp_path)
    assert jobs["good"].config.evaluate.samples == 2 and not jobs["good"].mistake
    assert "evaluate.anchor_budget: got 9" in jobs["bad"].mistake
    assert "nothere" in jobs["unknown"].mistake and "many" in jobs["typed"].mistake
    assert not list(tmp_path.iterdir())


def finish(job: Job, accuracy: float, **seconds: float) -> None:
    """What a finished run leaves, as far as a sweep reads it."""
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").write_text(job.config.to_json_best_effort())
    (job.folder / "environment.json").write_text(json.dumps({"seconds": seconds}))
    common = {"kind": "sampling", "model": "convert", "source": "addition", "temperature": 1.0, "accuracy": accuracy}
    rows = [
        common | {"sampler": "autoregressive"},
        common | {"sampler": "lossless", "tokens_per_forward": 4.5, "block_size": 4},
    ]
    write_results(job.folder / "results.csv", [*rows, {"kind": "likelihood", "model": "convert", "ar_loss": 0.25}])


def test_a_finished_job_of_another_config_is_told_from_this_one_and_left_out_of_the_table(tmp_path):
    changes = {f"alpha={alpha}": {"convert.objective.alpha": alpha, "evaluate.samples": 4} for alpha in (1.0, 0.5)}
    jobs = check_jobs(BASE, changes, tmp_path)
    for job in jobs.values():
        assert not job.finished
        finish(job, 0.5)
    jobs = check_jobs(BASE, changes, tmp_path)
    assert all(job.finished and job.difference is None for job in jobs.values())
    changes["alpha=0.5"]["evaluate.samples"] = 16  # as when all jobs share it and it is edited: the name stays
    jobs = check_jobs(BASE, changes, tmp_path)
    assert jobs["alpha=0.5"].difference == "evaluate.samples (4 there, 16 now)" and not jobs["alpha=0.5"].finished
    gather(tmp_path, jobs)
    assert {row["run"] for row in read_sweep(tmp_path / "results.csv")} == {"alpha=1.0"}


def test_a_sweeps_table_has_a_column_for_each_field_that_a_job_changes(tmp_path):
    changes = {"alpha=0.5": {"convert.objective.alpha": 0.5}, "seed=1": {"seed": 1}}
    jobs = check_jobs(BASE, changes, tmp_path)
    for job in jobs.values():
        finish(job, 0.5)
    gather(tmp_path, jobs)
    with (tmp_path / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    told = {(row["run"], row["kind"], row["config.convert.objective.alpha"], row["config.seed"]) for row in table}
    of_all = [("alpha=0.5", "0.5", "0"), ("seed=1", "4.0", "1")]  # what a job leaves unchanged is the base's
    assert told == {(run, kind, alpha, seed) for run, alpha, seed in of_all for kind in ("sampling", "likelihood")}
    back = read_sweep(tmp_path / "results.csv")
    assert [row["changes"] for row in back[::3]] == list(changes.values()) and "config.seed" not in back[0]


def test_jobs_to_redo_are_named_and_only_they_are_deleted(tmp_path):
    jobs = check_jobs(BASE, {name: {} for name in ("a", "b", "c")}, tmp_path)
    for job in jobs.values():
        job.folder.mkdir(parents=True)
    (jobs["b"].folder / FAILED).write_text("status 2")
    assert [job.name for job in to_redo(["c", "a", "c"], jobs)] == ["c", "a"]
    assert [job.name for job in to_redo(["failed"], jobs)] == ["b"]
    assert to_redo([], jobs) == [] and to_redo(["all"], jobs) == list(jobs.values())
    with pytest.raises(UserError, match="--redo: got 'd', may be all, failed, or one of a, b, c"):
        to_redo(["d"], jobs)
    with run_folder.locked(jobs["a"].folder / ".lock"), pytest.raises(UserError, match="another process is running"):
        jobs["a"].remove()
    jobs["b"].remove()
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["a", "c"]


def test_why_a_job_failed_is_its_last_error_line_and_stands_in_its_folder(tmp_path):
    assert last_error("step 1\rstep 2\nerror: x: got 1\nsaved\n") == "error: x: got 1"
    assert last_error("Traceback\n  File\njax.errors.JaxRuntimeError: out of memory\n") == (
        "jax.errors.JaxRuntimeError: out of memory"
    )
    assert last_error("50%\r60%\n") == "60%" and last_error("") == "no output"
    fails = [sys.executable, "-c", "import sys; print('error: today'); sys.exit(3)"]
    (tmp_path / "log.txt").write_text("error: yesterday\n")
    assert run_job(fails, tmp_path) == "status 3: error: today"
    assert (tmp_path / FAILED).read_text() == "status 3: error: today\n"
    silent = [sys.executable, "-c", "import sys; sys.exit(3)"]
    assert run_job(silent, tmp_path) == "status 3: no output"  # what stood in the log before is not its own
    stopped = [sys.executable, "-c", "import sys; sys.exit(75)"]
    assert run_job(stopped, tmp_path) and not (tmp_path / FAILED).exists()  # it saved and will resume
    assert run_job([sys.executable, "-c", ""], tmp_path) == ""


def test_a_full_disk_does_not_hide_why_a_job_failed(tmp_path):
    fails = [sys.executable, "-c", "import sys; print('error: full'); sys.exit(2)"]
    with no_file_above(15):
        assert run_job(fails, tmp_path) == (
            f"status 2: error: full; {tmp_path / FAILED}: cannot be written: File too large"
        )
    assert not (tmp_path / FAILED).exists()


def test_a_finished_job_is_a_line_and_all_of_them_a_table():
    sampled = {"kind": "sampling", "model": "convert", "temperature": 0.0, "accuracy": 0.5, "tokens_per_forward": 4.5}
    rows = [
        sampled | {"source": "addition", "sampler": "autoregressive", "tokens_per_forward": 1.0},
        sampled | {"source": "addition", "sampler": "mix_stale"},
        sampled | {"source": "addition", "sampler": "lossless"},
        sampled | {"source": "addition", "sampler": "lossless", "temperature": 1.0, "tokens_per_forward": 4.0},
        sampled | {"source": "countdown", "sampler": "mix_stale", "accuracy": 0.25},
        {"kind": "likelihood", "model": "convert", "source": "addition", "sampler": None, "ar_loss": 0.5},
    ]
    assert sweep_summary.line("a", rows, 61.4) == (
        "a: finished in 61 s; addition (lossless, temperature 0): T 4.50, accuracy 0.500; "
        "countdown (mix_stale, temperature 0): T 4.50, accuracy 0.250"
    )
    assert sweep_summary.line("b", rows[-1:], 1) == "b: finished in 1 s; addition: loss 0.5000"
    assert sweep_summary.table({"a": (rows, 61.4), "long": (rows[-1:], 5)}).splitlines() == [
        "job   source     sampler    temperature     T  accuracy    loss  seconds",
        "----  ---------  ---------  -----------  ----  --------  ------  -------",
        "a     addition   lossless             0  4.50     0.500               61",
        "a     countdown  mix_stale            0  4.50     0.250               61",
        "long  addition   convert                                 0.5000        5",
    ]


def run(workdir: Path, *args: str, config: str = "", cwd: Path = ROOT) -> tuple[int, str]:
    arguments = [f"--config={config or ROOT / SWEEP}", f"--workdir={workdir}", *args]
    done = commands.run("experiments.sweep", *arguments, folder=cwd, timeout=900, PYTHONPATH=str(ROOT))
    return done.returncode, done.stdout + done.stderr


SWEEP = "tests/experiments/tiny_sweep.py"


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> tuple[Path, int, str]:
    """(folder, status, output) of the sweep, run once."""
    workdir = tmp_path_factory.mktemp("swept") / "sweep"
    return workdir, *run(workdir, "--workers=1")


def written(workdir: Path) -> dict[str, int]:
    return {name: (workdir / "runs" / name / "results.csv").stat().st_mtime_ns for name in GOOD}


GOOD = ("warmup_steps=2", "warmup_steps=3")
OTHER = f"{SWEEP}:seed=8"


@pytest.mark.slow
def test_a_sweep_trains_shared_stages_once_and_survives_a_failure(swept):
    workdir, status, output = swept
    assert status == 1
    (failure,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert "mixture=text" in failure and "it holds no text" in failure
    (told,) = [line for line in output.splitlines() if line.startswith("mixture=text") and ": failed: " in line]
    assert "status 2: error: " in told and "failed=1" in output
    assert "2 of 3 jobs finished" in output and f"{'job':16}source    sampler" in output
    assert len([line for line in output.splitlines() if line.startswith("warmup_steps=3: finished in")]) == 1
    rows = read_sweep(workdir / "results.csv")
    names = tuple(dict.fromkeys(row["run"] for row in rows))
    assert names == GOOD
    assert {row["changes"]["control.optimizer.warmup_steps"] for row in rows} == {2, 3}
    for name in names:
        own = read_results(workdir / "runs" / name / "results.csv")
        assert [r["accuracy"] for r in own] == [r["accuracy"] for r in rows if r["run"] == name]
        assert {r["seed"] for r in own if r["kind"] == "sampling"} == {7}
    # both start from one pretraining, which the first of them trained
    stages = [path.name.partition("-")[0] for path in (workdir / "stages").iterdir() if path.is_dir()]
    assert sorted(stages) == ["control", "control", "pretrain"]
    trained = [{m["stage"] for m in read_metrics(workdir / "runs" / name / "metrics.jsonl")} for name in names]
    assert "pretrain" in trained[0] and "pretrain" not in trained[1]


@pytest.mark.slow
def test_a_sweep_resumes_and_tells_what_was_run_with_another_config(swept):
    workdir, before = swept[0], written(swept[0])
    status, output = run(workdir, "--only=warmup")
    assert status == 0 and "finished before: 2 of 2 jobs" in output and "2 of 3 jobs finished" in output
    assert before == written(workdir)
    # an override that all share stands in no name: what was run with another is told, and deleted on demand alone
    status, output = run(workdir, "--only=warmup", config=OTHER)
    assert status == 2 and before == written(workdir)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 2 and all("evaluate.seed (7 there, 8 now); --redo=warmup_steps=" in line for line in errors)


@pytest.mark.slow
def test_a_job_is_run_again_on_demand_with_the_stages_that_are_there(swept):
    workdir, before = swept[0], written(swept[0])
    status, output = run(workdir, "--only=warmup_steps=3", "--redo=warmup_steps=3", config=OTHER)
    assert status == 0 and "left out: warmup_steps=2: its run has another config" in output
    rows = read_sweep(workdir / "results.csv")
    assert {(r["run"], r["seed"]) for r in rows if r["kind"] == "sampling"} == {("warmup_steps=3", 8)}
    now = written(workdir)
    assert now["warmup_steps=2"] == before["warmup_steps=2"] and now["warmup_steps=3"] != before["warmup_steps=3"]
    metrics = workdir / "runs" / "warmup_steps=3" / "metrics.jsonl"
    assert not metrics.exists() or not {m["stage"] for m in read_metrics(metrics)} & {"pretrain", "control"}


def test_no_job_starts_where_one_has_a_bad_config(tmp_path):
    for args in ((), ("--list",)):
        status, output = run(tmp_path / "w", *args, config=f"{SWEEP}:prompts=0")
        assert status == 2 and not (tmp_path / "w").exists()
        lines = output.strip().splitlines()
        assert len(lines) == 3 and all(line.startswith("error: job ") for line in lines)
        assert all("evaluate.prompts: got 0" in line for line in lines)


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
    status, output = run(tmp_path / "nowhere", "--executor=slurm", "--only=mixture")
    assert status == 2 and "error: --executor=slurm: Could not detect" in output
    for name, text in COMMANDS_OF_SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{path}")
    status, output = run(tmp_path / "w", "--executor=slurm", "--slurm=timeout_min=5", "--only=mixture")
    assert status == 1
    (failure,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert "status 2" in failure and "it holds no text" in failure
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2\nexit 1\n")
    status, output = run(tmp_path / "w", "--executor=slurm", "--only=mixture")
    assert status == 1 and "Slurm: " in output and "invalid partition" in output


def test_what_a_sweeps_file_registers_reaches_its_jobs(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from configs.common import axis, sweep\n"
        "from zaya_jax.sampling import Target, register_target\n"
        "register_target(Target('of_a_sweep', 'AR logits.', lambda plain, draft, beta: plain, beta=True))\n"
        "COMPARED = ('autoregressive', 'of_a_sweep')\n"
        f"def get_config():\n    return sweep('mine', {BASE!r}, axis('evaluate.samplers', COMPARED))\n"
    )
    status, output = run(tmp_path / "w", "--list", config=str(file))
    assert status == 0, output
    (line,) = output.strip().splitlines()
    assert line.count(f"--extension={file}") == 1
    args = [word for word in shlex.split(line)[3:] if not word.startswith("--workdir")]
    done = commands.run("experiments.run", *args, "--print_config", f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 0 and "evaluate.samplers = ('autoregressive', 'of_a_sweep')" in done.stdout, done.stderr
    assert "--extension" not in run(tmp_path / "w", "--list")[1]  # this one registers nothing


def test_a_folder_with_another_sweep_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "other", "config": "tests/experiments/tiny.py:lean"}))
    status, output = run(tmp_path)
    assert status == 2
    assert output.strip().endswith("holds another sweep: name ('other' there, 'tiny' now); choose another")


def test_a_second_sweep_in_a_folder_is_refused_in_one_line(tmp_path):
    with run_folder.locked(tmp_path / ".lock"):
        status, output = run(tmp_path, "--only=warmup_steps=3")
    assert status == 2 and [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert output.strip() == f"error: {tmp_path}: another process is running there; choose another folder"


def test_a_list_is_commands_that_can_be_typed(tmp_path):
    status, output = run(tmp_path / "w", "--list", "--only=warmup_steps=3")
    assert status == 0 and not (tmp_path / "w").exists()
    (line,) = output.strip().splitlines()
    assert "'--config.evaluate.temperatures=(1.0,)'" in line and "--config.control.optimizer.warmup_steps=3" in line
    assert "--compilation_cache=" not in line  # these tests chose a folder for all: JAX_COMPILATION_CACHE_DIR
