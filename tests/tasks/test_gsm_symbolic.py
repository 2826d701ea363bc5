"""GSM-Symbolic: worked answers are right, the checker reads one number and nothing else, held-out numbers stay out."""

import random
import re
from fractions import Fraction

import pytest

from zaya_jax.data.splits import SPLITS
from zaya_jax.tasks import Problem, gsm_symbolic, make_task
from zaya_jax.tasks.gsm_symbolic import TEMPLATES

EVERY = make_task("gsm_symbolic", templates=len(TEMPLATES))
POSED = Problem("", "", "", "1234")
NUMBER = r"\d+(?:\.\d+)?"


def exactly(expression):
    return eval(re.sub(NUMBER, r"Fraction('\g<0>')", expression), {"Fraction": Fraction})


@pytest.fixture
def package():
    return pytest.importorskip("reasoning_gym", reason='needs pip install -e ".[eval]"')


def test_a_problem_is_a_pure_function_of_its_arguments(package):
    """Neither the global generator nor what was drawn before has a say."""
    task = make_task("gsm_symbolic")
    first = [task.problem("train", i, 3) for i in range(50)]
    random.seed(1)
    _ = [EVERY.problem("test", i, 9) for i in range(20)]
    assert [task.problem("train", i, 3) for i in reversed(range(50))] == first[::-1]
    assert [task.problem("train", i, 4) for i in range(50)] != first


def test_splits_share_no_numbers(package):
    seen = {split: [EVERY.problem(split, i, seed) for i in range(1500) for seed in (0, 1)] for split in SPLITS}
    sets = [{p.identity for p in seen[split]} for split in SPLITS]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert min(map(len, sets)) > 2000
    # all text but the names: the identity leaves out nothing that sets two instances apart in their arithmetic
    for problem in seen["train"][:300]:
        template, numbers = problem.identity.split(":")
        assert int(template) in TEMPLATES and numbers == ",".join(re.findall(r"\d+", problem.prompt))
    # a small split has every template
    assert {p.identity.split(":")[0] for p in seen["test"]} == {str(t) for t in TEMPLATES}


def test_the_numbers_settle_the_answer(package):
    """So a held-out set of numbers is an unseen answer too."""
    answers = {}
    for i in range(4000):
        problem = make_task("gsm_symbolic", templates=3).problem("train", i, 0)
        assert answers.setdefault(problem.identity, problem.answer) == problem.answer
    assert len(answers) < 4000  # some came twice, under other names


def test_worked_answers_pass_and_other_numbers_do_not(package):
    for i in range(600):
        problem = EVERY.problem("train", i, 0)
        assert problem.prompt.isascii() and problem.solution.isascii()
        assert "\n" not in problem.prompt and problem.solution.index("\n") == len(problem.solution) - 1
        steps, _, number = problem.solution.rstrip("\n").rpartition("; #### ")
        assert number == problem.answer and len(steps) > 20
        assert EVERY.check(problem, problem.solution)
        for wrong in (int(number) + 1, int(number) * 10, -int(number) - 1, f"{number}.5", ""):
            assert not EVERY.check(problem, f"{steps}; #### {wrong}\n")


def test_worked_answers_are_right(package):
    """Every equation between numbers holds exactly; units are left out, percents are hundredths."""
    found = 0
    for i in range(2000):
        text = re.sub(r"(?<=\w) x (?=\d)", " * ", EVERY.problem("train", i, 1).solution.replace("$", ""))
        text = re.sub(r"[A-Za-z][A-Za-z/'-]*", " ", re.sub(rf"({NUMBER})%", r"\1/100", text))
        text = re.sub(r"\s+", " ", text)
        for left, right in re.findall(rf"({NUMBER}(?:\s*[-+*/]\s*{NUMBER})*)\s*=\s*(?=({NUMBER}(?:/100)?))", text):
            assert exactly(left) == exactly(right), text
            found += 1
    assert found > 4000


@pytest.mark.parametrize(
    "completion",
    [
        "#### 1234",
        "a; b #### 1,234",
        "####1234.",
        "#### 1234.0",
        "####   1234  ",
        "#### 1,234.00.",
        "#### 1234\n#### 7",
    ],
)
def test_ways_to_write_the_answer(completion):
    assert EVERY.check(POSED, completion)


@pytest.mark.parametrize(
    "completion",
    [
        "1234",  # no mark
        "### 1234",
        "#### 1234 #### 1234",  # which one?
        "#### 7 #### 1234",
        "#### ",
        "\n#### 1234",  # the answer is one line
        "#### 1234 apples",
        "#### $1234",
        "#### 1234..",
        "#### 12,34",
        "#### 1 234",
        "#### 1234e0",
        "#### 0x4d2",
        "#### 1_234",
        "#### 1233+1",
        "#### (1234)",
        "#### -1234",
        "#### +1234",
        "#### ١٢٣٤",
        "#### １２３４",
        "#### 1234\u00a0",
        "#### nan",
        "#### 1234.0000000000000000000001",
        "#### " + "9" * 100_000,
        "#### " + "0" * 100_000 + "1234",
        "#### " + " " * 100_000 + "x",
        "####" * 50_000 + " 1234",
    ],
)
def test_anything_else_is_refused(completion):
    assert EVERY.check(POSED, completion) is False


@pytest.mark.parametrize("got", [0, len(TEMPLATES) + 1, "8", True])
def test_bad_options_are_one_clear_line(got):
    with pytest.raises(
        ValueError, match=rf"^templates: got {got!r}, may be an integer of at least 1 and at most {len(TEMPLATES)}$"
    ):
        make_task("gsm_symbolic", templates=got)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gsm_symbolic.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    gsm_symbolic._generators.cache_clear()
    message = r'^task gsm_symbolic: needs the reasoning-gym package: pip install -e "\.\[eval\]"$'
    with pytest.raises(ValueError, match=message):
        make_task("gsm_symbolic").problem("train", 0, 0)
