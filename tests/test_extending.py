"""What docs/extending.md shows works as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zaya_jax.tasks import TASKS, make_task, register_task

ROOT = Path(__file__).parents[1]


def shown(file: str) -> str:
    """The block of docs/extending.md that begins with `file`'s docstring."""
    text = (ROOT / "docs" / "extending.md").read_text()
    (block,) = re.findall(rf'^```python\n("""{re.escape(file)}.*?)^```$', text, flags=re.DOTALL | re.MULTILINE)
    return block


@pytest.fixture
def reverse(tmp_path) -> dict:
    """The namespace of my_task.py; its task is forgotten afterwards."""
    namespace: dict = {"__name__": "my_task"}
    exec(compile(shown("my_task.py"), "my_task.py", "exec"), namespace)
    yield namespace
    del TASKS["reverse"]


def test_a_task_in_a_config_file_is_known_by_name(reverse):
    config = reverse["get_config"]("fast")
    assert config.data.mixture[0].task == config.evaluate.tasks[0] == "reverse"
    task = make_task("reverse", letters=6)
    problem = task.problem("test", 0, 0)
    assert problem.solution == problem.prompt[:6][::-1] + "\n"
    assert task.check(problem, problem.solution) and not task.check(problem, problem.prompt)


def test_a_registered_name_must_be_new_and_a_word(reverse):
    register_task(reverse["Reverse"])  # a config file that is read again
    for name in ("addition", "human_eval", "Two words", ""):
        with pytest.raises(ValueError, match=rf"^task: got name '{name}', may be "):
            register_task(type("Mine", (reverse["Reverse"],), {"name": name}))


@pytest.mark.slow
def test_a_task_of_ones_own_trains_and_is_evaluated(tmp_path):
    (tmp_path / "my_task.py").write_text(shown("my_task.py"))
    command = [sys.executable, "-m", "experiments.run", f"--config={tmp_path / 'my_task.py'}:fast"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, f"--workdir={tmp_path / 'run'}"], cwd=ROOT, env=environment, check=True)
    assert ",reverse," in (tmp_path / "run" / "results.csv").read_text()
    assert "reverse" in (tmp_path / "run" / "report.html").read_text()
