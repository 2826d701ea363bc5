"""The tables of README.md and docs/ are made from committed results, and what pages and comments cite exists."""

import ast
import functools
import json
import operator
import re
from pathlib import Path

import pytest

import zaya_jax
from zaya_jax.errors import UserError
from zaya_jax.reporting.markdown_pages import TABLES, pages, regenerate
from zaya_jax.reporting.paper.figures import FIGURES, draw, index
from zaya_jax.reporting.results import read_results
from zaya_jax.reporting.tables.drafting import kept_by_anchors

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
ROWS = read_results(RESULTS / "quickstart" / "results.csv")
SAMPLERS = json.loads((RESULTS / "bench" / "samplers.json").read_text())
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in pages(ROOT)}
FIGURE_PAGE = RESULTS / "figures" / "README.md"
SOURCES = sorted(
    path
    for folder in ("zaya_jax", "experiments", "configs", "tests", "notebooks")
    for path in (ROOT / folder).rglob("*.py")
)


def test_the_page_of_figures_has_not_drifted():
    page = FIGURE_PAGE.read_text()
    assert page == index(FIGURE_PAGE.parent)
    shown = re.findall(r"^!\[.+\]\((\w+)\.png\)$", page, flags=re.MULTILINE)
    assert shown == list(FIGURES) and all(FIGURE_PAGE.with_name(f"{name}.png").exists() for name in shown)
    for name, figure in FIGURES.items():
        (part,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
        assert all(each.command in part and f"results/{each.path}" in part for each in figure.inputs)


def test_the_public_names_are_each_told_in_a_line():
    assert {name for names in zaya_jax._MODULES.values() for name in names} == set(zaya_jax.__all__)
    assert set(zaya_jax.__all__) <= set(dir(zaya_jax))
    for name, line in re.findall(r"^\| `(\w+)` \| (.*) \|$", TEXTS["docs/api.md"], flags=re.MULTILINE):
        assert line and not line.startswith(f"{name}("), name  # no docstring, or the one that dataclasses makes
    tree = ast.parse((ROOT / "zaya_jax" / "__init__.py").read_text())
    typed = {f"{node.module}.{alias.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
             for alias in node.names if (node.module or "").startswith("zaya_jax")}  # fmt: skip
    assert typed == {f"zaya_jax.{module}.{name}" for module, names in zaya_jax._MODULES.items() for name in names}
    assert all(getattr(zaya_jax, name) for name in zaya_jax.__all__)
    with pytest.raises(AttributeError, match="module 'zaya_jax' has no attribute 'generated'"):
        zaya_jax.generated  # noqa: B018


def test_tables_have_not_drifted():
    assert regenerate(TEXTS, RESULTS) == TEXTS


@pytest.mark.parametrize(
    ("page", "number", "wrong"),
    [("README.md", "| lossless | 4.57 |", "| lossless | 7.57 |"), ("docs/checkpoints.md", "0.60 GiB", "0.06 GiB")],
)
def test_a_number_that_drifts_is_found_and_put_right(page, number, wrong):
    drifted = TEXTS | {page: TEXTS[page].replace(number, wrong, 1)}
    assert drifted != TEXTS
    assert regenerate(drifted, RESULTS) == TEXTS


def test_markers_are_checked():
    def changed(page: str, old: str, new: str) -> dict[str, str]:
        return TEXTS | {page: TEXTS[page].replace(old, new)}

    with pytest.raises(ValueError, match=r"README\.md: table 'speed' is unknown, may be one of quickstart"):
        regenerate(changed("README.md", "<!-- table quickstart -->", "<!-- table speed -->"), RESULTS)
    with pytest.raises(ValueError, match=r"table 'quickstart': has no place in README\.md or docs/"):
        regenerate(changed("README.md", "<!-- table quickstart -->", ""), RESULTS)
    with pytest.raises(ValueError, match=r"table 'quickstart' stands in README\.md too, may stand in one place"):
        regenerate(changed("docs/checkpoints.md", "<!-- table loading -->", "<!-- table quickstart -->"), RESULTS)
    assert len(TABLES) == sum(text.count("<!-- table ") for text in TEXTS.values())


def headings(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def missing(target: Path, heading: str = "") -> bool:
    return not target.exists() or bool(heading and heading not in headings(str(target.relative_to(ROOT))))


def harmed(numbers: dict, place: str, value=None) -> dict:
    """A copy without the value at a place such as anchors[0].list, or with another one."""
    copied = json.loads(json.dumps(numbers))
    *path, last = [int(part[1:-1]) if part[0] == "[" else part for part in re.findall(r"\[\d+\]|\w+", place)]
    within = functools.reduce(operator.getitem, path, copied)
    if value is None:
        del within[last]
    else:
        within[last] = value
    return copied


@pytest.mark.parametrize("place", ["anchors", "anchors[0].list", "anchors[2].speedup.1"])
def test_a_key_that_a_result_file_lacks_is_named(place, tmp_path):
    (tmp_path / "bench").mkdir()
    path = tmp_path / "bench" / "samplers.json"
    path.write_text(json.dumps(harmed(SAMPLERS, place)))
    with pytest.raises(UserError) as error:
        TABLES["anchors"](tmp_path)
    assert str(error.value) == f"{path}: {place}: missing"
    path.write_text(json.dumps(harmed(SAMPLERS, "anchors[0].tokens_per_forward")))
    with pytest.raises(UserError, match=r"samplers\.json: anchors\[0\]\.tokens_per_forward: missing$"):
        draw("anchors", tmp_path)


def test_odd_values_of_result_files_are_one_line(tmp_path):
    (tmp_path / "bench").mkdir()
    path = tmp_path / "bench" / "samplers.json"
    for place, value in (("anchors", 3), ("anchors", []), ("anchors[0]", [1]), ("anchors[0].accuracy", "x")):
        path.write_text(json.dumps(harmed(SAMPLERS, place, value)))
        with pytest.raises(UserError, match=f"^{path}: holds other values than it should") as error:
            TABLES["anchors"](tmp_path)
        assert "\n" not in str(error.value)
    path.write_text(json.dumps(harmed(SAMPLERS, "anchors[0].tokens_per_forward", "x")))
    with pytest.raises(UserError, match=f"^anchors: {path}: holds other values"):
        draw("anchors", tmp_path)


def test_what_a_page_links_to_exists():
    wrong = []
    for page, text in TEXTS.items():
        for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", text):
            path = ((ROOT / page).parent / target).resolve() if target else ROOT / page
            wrong += [f"{page}: {target}#{heading}"] if missing(path, heading) else []
    assert not wrong


def test_pages_and_comments_cite_files_and_headings_that_exist():
    wrong = []
    for path in [*SOURCES, *pages(ROOT)]:
        for target, heading in re.findall(r"\b(docs/[\w/]+\.md)(?:#([\w-]+))?", path.read_text()):
            wrong += [f"{path}: {target}#{heading}"] if missing(ROOT / target, heading) else []
        if path.suffix == ".md":
            files = r"(?<![\w/.\[(])((?:zaya_jax|experiments|configs|tests)/[a-z0-9_/]+\.py)"
            wrong += [f"{path}: {target}" for target in re.findall(files, path.read_text()) if missing(ROOT / target)]
    assert not wrong


def test_the_readme_can_be_read_in_one_sitting():
    assert len(TEXTS["README.md"].splitlines()) <= 200


def test_the_committed_run_shows_what_the_readme_claims():
    sampling = {(r["sampler"], r["temperature"]): r for r in ROWS if r["kind"] == "sampling"}
    greedy = sampling["lossless", 0]
    assert greedy["identical_to_autoregressive"] == 1
    assert greedy["tokens_per_forward"] >= 3
    assert greedy["accuracy"] >= 0.8
    loss = {(r["source"], r["model"]): r["ar_loss"] for r in ROWS if r["kind"] == "likelihood"}
    for source in {source for source, _ in loss}:
        assert loss[source, "convert"] <= 1.03 * loss[source, "control"]


def test_three_anchors_keep_nine_tenths_of_the_tokens():
    rows = [row for row in SAMPLERS["anchors"] if row["anchors"] == 3]
    assert len(rows) == 2 and all(kept_by_anchors(SAMPLERS["anchors"], row) >= 0.9 for row in rows)


def test_auto_does_not_lose_to_autoregression():
    assert {(row["prompts"], row["batch"], row["temperature"]) for row in SAMPLERS["auto"]} == {
        (prompts, batch, temperature)
        for prompts in ("addition", "python") for batch in (1, 8) for temperature in (0.0, 1.0)
    }  # fmt: skip
    assert all(row["speedup"] >= 0.98 for row in SAMPLERS["auto"])


def test_verified_strategies_keep_the_autoregressive_accuracy():
    rows = {(row["strategy"], row["temperature"]): row for row in SAMPLERS["strategies"]}
    for temperature in (0.0, 1.0):
        plain = rows["autoregressive", temperature]
        for name in ("lossless", "lossless, two passes"):
            assert (
                rows[name, temperature]["accuracy_high"] >= plain["accuracy"] >= rows[name, temperature]["accuracy_low"]
            )
