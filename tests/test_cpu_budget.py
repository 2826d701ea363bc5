"""What the suite says it costs: phases by file, commands and other processes included, and a limit."""

from types import SimpleNamespace

import pytest

from tests import commands
from tests.cpu_budget import Table, spent


def session_after(limit: float | None) -> pytest.ExitCode:
    table, session = Table(limit), SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    for name, seconds in (("tests/a/test_b.py::test_c", 1.5), ("tests/a/test_b.py::test_d", 2.0), ("tests/e.py::f", 1)):
        table.pytest_runtest_logreport(SimpleNamespace(nodeid=name, cpu_seconds=seconds))
    assert table.files == {"tests/a/test_b.py": 3.5, "tests/e.py": 1}
    table.pytest_sessionfinish(session)
    return session.exitstatus


def test_more_than_the_limit_fails_the_session():
    assert session_after(None) == session_after(4.5) == pytest.ExitCode.OK
    assert session_after(4.4) == pytest.ExitCode.TESTS_FAILED


def test_commands_are_counted(tmp_path):
    (tmp_path / "busy.py").write_text("sum(range(10**7))\n")
    before = spent()
    assert commands.run("busy", folder=tmp_path).returncode == 0
    assert spent() - before > 0.05
