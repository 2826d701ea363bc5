"""What the suite costs, in seconds of processors: a table at its end, and a limit to its growth (docs/testing.md).

Seconds of a clock depend on what else a machine does and on how files fell to workers; these depend on little but the
tests, their compiling and the machine.
"""

import os
from collections import Counter

import pytest

from tests import commands


def spent() -> float:
    """CPU seconds so far: of this process, of the processes it has waited for, and of commands that have ended."""
    return sum(os.times()[:4]) + commands.spent()


class Meter:
    """Where tests run: puts on each report what its phase took, fixtures included."""

    def __init__(self) -> None:
        self.before = spent()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self) -> None:
        self.before = spent()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self):
        report = yield
        now = spent()
        report.cpu_seconds, self.before = now - self.before, now
        return report


class Table:
    """Where reports arrive: adds them up, prints, and fails the session above `limit` (None: no limit)."""

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self.files: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report) -> None:
        self.files[report.nodeid.partition("::")[0]] += getattr(report, "cpu_seconds", 0.0)

    @property
    def exceeded(self) -> bool:
        return self.limit is not None and self.files.total() > self.limit

    def pytest_sessionfinish(self, session) -> None:
        if self.exceeded and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if not self.files:
            return
        folders: Counter[str] = Counter()
        for file, seconds in self.files.items():
            folders["/".join(file.split("/")[:2])] += seconds
        terminalreporter.section("CPU seconds")
        for what, found in (("folders", folders), ("files", self.files)):
            dearest = ", ".join(f"{name} {seconds:.0f}" for name, seconds in found.most_common(12))
            terminalreporter.write_line(f"{what}: {dearest}")
        terminalreporter.write_line(f"all: {self.files.total():.1f}")
        if self.exceeded:
            terminalreporter.write_line(
                f"more than --cpu-budget={self.limit:g}: docs/testing.md says how to save", red=True
            )


def register(config) -> None:
    """With workers (xdist), only they run tests and only their controller prints."""
    workers = config.pluginmanager.hasplugin("xdist") and config.getoption("numprocesses", None)
    if hasattr(config, "workerinput") or not workers:
        config.pluginmanager.register(Meter())
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(config.getoption("--cpu-budget")))
