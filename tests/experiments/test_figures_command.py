"""The figures command from the outside: what it draws, what it says of the rest, and a user's mistakes."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import commands
from zaya_jax.reporting.paper.figures import FIGURES

ROOT = Path(__file__).parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess:
    return commands.run("experiments.figures", *arguments)


@pytest.fixture
def bench_only(tmp_path) -> Path:
    """A results folder with benchmarks and no sweep."""
    shutil.copytree(ROOT / "results" / "bench", tmp_path / "results" / "bench")
    return tmp_path / "results"


@pytest.mark.slow
def test_everything_is_drawn_that_can_be(bench_only, tmp_path):
    done = command(f"--results={bench_only}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    needs = {name: [each.path for each in figure.inputs] for name, figure in FIGURES.items()}
    missing = ("sweeps/", "stability/", "rivals/")
    can = {name for name, paths in needs.items() if not any(path.startswith(missing) for path in paths)}
    assert can == {"strategies", "free_slots", "roofline", "anchors"}
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == can
    assert {path.stem for path in (tmp_path / "out").glob("*.txt")} == can
    drawn = [f"{name}.png" for name in FIGURES if name in can]
    *files, last = done.stdout.splitlines()
    assert files == [str(tmp_path / "out" / name) for name in drawn]
    assert last.startswith(f"{len(drawn)} of ") and last.endswith(str(tmp_path / "out" / "README.md"))
    assert re.findall(r"\((\w+\.png)\)", (tmp_path / "out" / "README.md").read_text()) == drawn
    lines = done.stderr.strip().splitlines()
    assert len(lines) == len(FIGURES) - len(can)
    made_by = ("python -m experiments.sweep --config=configs/sweeps/", "python -m experiments.bench.stability")
    assert all(any(command in line for command in made_by) for line in lines)


def test_the_tables_of_all_pages_are_written_anew(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    text = (ROOT / "README.md").read_text()
    path = tmp_path / "README.md"
    path.write_text(text.replace("| lossless | 4.57 |", "| lossless | 7.57 |", 1))
    done = command("pages", f"--pages={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(path)]
    assert path.read_text() == text


def test_a_named_figure_that_cannot_be_drawn_fails_and_the_others_are_drawn(bench_only, tmp_path):
    done = command("beta", "roofline", f"--results={bench_only}", f"--output={tmp_path}")  # flags after names
    assert done.returncode == 2
    assert (tmp_path / "roofline.png").exists() and not (tmp_path / "beta.png").exists()
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"{bench_only}/sweeps/samplers/results.csv: no such file" in done.stderr


def test_a_folder_that_cannot_be_written_is_one_line_for_all_figures(tmp_path):
    (tmp_path / "file").touch()
    done = command("roofline", "anchors", f"--output={tmp_path / 'file' / 'out'}")
    assert done.returncode == 2 and not done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: --output: got ") and "cannot be made as a folder" in line


def test_damaged_results_are_one_line(bench_only, tmp_path):
    (bench_only / "bench" / "samplers.json").write_text("{")
    done = command("anchors", f"--results={bench_only}", f"--output={tmp_path}")
    assert done.returncode == 2 and "samplers.json: not valid JSON" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rooflines",), "got 'rooflines', may be all, reports, pages, pass_at_16"),
        (("--reslts=x",), "Unknown command line flag"),
        (("pages", "--pages=nowhere"), "nowhere/README.md"),
    ],
)
def test_mistakes_are_one_line(arguments, says):
    done = command(*arguments)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_help_lists_every_figure_and_what_it_needs():
    text = command("--help").stdout
    for name, figure in FIGURES.items():
        assert f"  {name} " in text
        assert all(each.path in text for each in figure.inputs)


def test_other_commands_still_take_flags_only():
    done = commands.run("experiments.bench.step_cost", "roofline")
    assert done.returncode == 2 and "'roofline': unexpected, may be flags only" in done.stderr
