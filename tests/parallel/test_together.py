"""Processes of a run end together, with a reason (real ones: tests/parallel/ends.py)."""

import json
import time

import pytest

from tests.commands import Command
from tests.parallel.test_runs import free_address
from zaya_jax.errors import UserError
from zaya_jax.parallel import devices


def ends(who: int, how: str, processes: int = 2) -> list[tuple[int | None, str]]:
    """(status, output) of each process. All are at their end seconds after the first is."""
    asked = {"coordinator": free_address(), "processes": processes, "who": who, "how": how}
    started = [
        Command("tests.parallel.ends", json.dumps(asked | {"process": i}), together=True) for i in range(processes)
    ]
    outputs = [started[who].communicate(timeout=120)[0]]
    began = time.monotonic()
    outputs = [each.communicate(timeout=60)[0] for each in started]
    assert time.monotonic() - began < 20
    return [(each.returncode, output) for each, output in zip(started, outputs, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("who", "processes"), [(0, 3), (1, 3)])
def test_a_refused_process_ends_all_with_its_reason(who, processes):
    for process, (status, output) in enumerate(ends(who, "refused", processes)):
        assert status == 2, output
        assert ("--workdir: taken" if process == who else f"error: process {who}: --workdir: taken") in output


@pytest.mark.slow
def test_a_process_that_fails_keeps_its_traceback_and_ends_all():
    (status, output), (other, traceback) = ends(1, "fails")
    assert (status, other) == (2, 1), output + traceback
    assert "error: process 1: a fault" in output and "Traceback" in traceback


@pytest.mark.slow
@pytest.mark.parametrize(("who", "processes"), [(0, 2), (1, 3)])
def test_a_killed_process_ends_the_others_with_a_line_and_the_status_that_is_requeued(who, processes):
    for process, (status, output) in enumerate(ends(who, "killed", processes)):
        assert status == (-9 if process == who else 75), output
        assert process == who or f"lost: process {who} has ended" in output


@pytest.mark.slow
@pytest.mark.parametrize(("how", "expected"), [("never", 0), ("calm", 75)])
def test_processes_that_end_alike_end_quietly(how, expected):
    for status, output in ends(0, how):
        assert status == expected and "lost" not in output and "error" not in output, output


@pytest.mark.parametrize("coordinator", ["a:99999", "a:0", "a:-1", "a:", ":1", "a", "localhost:1", "nowhere.invalid:1"])
def test_a_coordinator_that_is_none_is_one_line(coordinator, monkeypatch):
    monkeypatch.setattr(devices, "PATIENCE", 0.0)
    monkeypatch.setattr(devices.jax.distributed, "initialize", lambda *_: pytest.fail("JAX was asked"))
    monkeypatch.setattr(devices.jax.config, "update", lambda *_: None)
    with pytest.raises(UserError, match=f"^--coordinator: got '{coordinator}'.*, may be HOST:PORT of process 0"):
        devices.start_processes(coordinator, 2, 1)
