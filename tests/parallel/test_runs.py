"""Whole runs on many devices and in many processes, each in processes of its own (tests/parallel/worker.py)."""

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import xla
from tests.commands import Command
from zaya_jax.data.packing import Preparation, prepare_rows
from zaya_jax.training.logging.metrics import read_metrics

pytestmark = pytest.mark.early

ROOT = Path(__file__).parents[2]
CUBE = {"data": 1, "fsdp": 2, "expert": 2, "context": 2}


def start(**arguments) -> Command:
    # the device count is the worker's own
    return Command("tests.parallel.worker", json.dumps(arguments), together=True, XLA_FLAGS=xla.CHEAPLY)


def finish(*workers: Command, status: int = 0) -> None:
    outputs = [worker.communicate(timeout=600)[0] for worker in workers]
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == status, output


def losses(workdir: Path) -> np.ndarray:
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["stage"] == "convert"]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return np.array([[line["ar_loss"], line["draft_loss"], line["grad_norm"]] for line in lines])


@pytest.fixture(scope="module")
def one_device(tmp_path_factory) -> np.ndarray:
    workdir = tmp_path_factory.mktemp("one")
    finish(start(workdir=str(workdir)))
    return losses(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_eight_devices_give_one_devices_losses_and_four_resume(one_device, tmp_path, again):
    """FSDP x expert x context for 10 steps; a run killed after step 4 resumes from 3 on four devices.

    `again`: killed there after step 7, it resumes from 6 on eight. What is compared was computed by all.
    """
    killed: dict[str, Any] = dict(workdir=str(tmp_path / "killed"), save_every=3)
    finish(start(**killed, mesh=CUBE, devices=8, limit=4), status=9)
    four = killed | {"mesh": {"data": 1, "fsdp": 2, "context": 2}, "devices": 4}
    finish(start(**four, limit=4 if again else None), status=9 if again else 0)
    if again:
        finish(start(**killed, mesh=CUBE, devices=8))
    np.testing.assert_allclose(losses(tmp_path / "killed"), one_device, rtol=2e-4)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


@pytest.mark.parametrize(
    ("processes", "mesh"),
    [
        (2, {"data": 1, "expert": 2}),
        pytest.param(2, {"fsdp": 2}, marks=pytest.mark.slow),
        pytest.param(4, {"data": 1, "expert": 2, "context": 2}, marks=pytest.mark.slow),
    ],
)
def test_processes_give_one_process_losses(one_device, tmp_path, processes, mesh):
    together = {"workdir": str(tmp_path), "mesh": mesh, "coordinator": free_address(), "processes": processes}
    finish(*(start(**together, process=process) for process in range(processes)))
    np.testing.assert_allclose(losses(tmp_path), one_device, rtol=2e-4)


@pytest.mark.slow
def test_processes_that_read_their_own_packed_rows_give_one_process_losses_and_resume_as_more(tmp_path):
    """One process; two, killed after step 4, of which each reads its own rows; then four, two of which share rows."""
    texts = tmp_path / "sums.jsonl"
    lines = [{"text": f"{a}+{b}={a + b}\n"} for a in range(40) for b in range(40)]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    packed = str(tmp_path / "rows")
    prepare_rows(Preparation((str(texts),), "bytes", 32), Path(packed), quiet=True)
    finish(start(workdir=str(tmp_path / "one"), packed=packed))
    two = {"workdir": str(tmp_path / "two"), "packed": packed, "save_every": 3}
    address = free_address()
    together: dict[str, Any] = two | {"mesh": {"fsdp": 2}, "coordinator": address, "processes": 2, "limit": 4}
    finish(*(start(**together, process=process) for process in range(2)), status=9)
    together = two | {"mesh": {"data": 1, "fsdp": 2, "context": 2}, "coordinator": free_address(), "processes": 4}
    finish(*(start(**together, process=process) for process in range(4)))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["mpirun --allow-run-as-root --oversubscribe", "srun --overcommit"])
def test_launchers_name_the_coordinator(one_device, tmp_path, launcher):
    """--coordinator=auto under Open MPI and under Slurm (Debian: openmpi-bin, slurm-wlm; srun needs its daemons)."""
    if shutil.which(launcher.split()[0]) is None:
        pytest.skip(f"{launcher.split()[0]} is not installed")
    arguments = json.dumps({"workdir": str(tmp_path), "mesh": {"fsdp": 2}, "coordinator": "auto"})
    command = [*launcher.split(), "-n", "2", sys.executable, "-m", "tests.parallel.worker", arguments]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(losses(tmp_path), one_device, rtol=2e-4)


@pytest.mark.slow
def test_two_processes_train_by_the_command_and_one_resumes_to_evaluate(tmp_path):
    """Every phase starts from the checkpoint that both wrote; the numbers are those of one process."""
    short = ["--config.evaluate.temperatures=(0.0,)", "--config.evaluate.cost=False"]
    command = ["experiments.run", "--config=tests/experiments/tiny.py", *short]

    def run(workdir: Path, *args: str) -> Command:
        return Command(*command, f"--workdir={workdir}", *args, together=True, XLA_FLAGS=xla.CHEAPLY)

    address = free_address()
    two = [f"--coordinator={address}", "--processes=2", "--config.mesh.fsdp=2"]
    finish(*(run(tmp_path / "two", *two, f"--process={process}") for process in range(2)))
    assert not (tmp_path / "two" / "results.csv").exists()
    finish(run(tmp_path / "two"), run(tmp_path / "one"))
    assert (tmp_path / "two" / "report.html").exists()
    one, both = (
        [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" in line] for name in ("one", "two")
    )
    assert [(line["stage"], line["step"]) for line in one] == [(line["stage"], line["step"]) for line in both]
    np.testing.assert_allclose([x["loss"] for x in both], [x["loss"] for x in one], rtol=2e-4)
