"""The tables of README.md and docs/, each between two markers, made anew from committed result files."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zaya_jax.aot.lowering import lowered_table
from zaya_jax.errors import UserError
from zaya_jax.files import read_object, read_text, write_text
from zaya_jax.reporting import tables
from zaya_jax.reporting.api_page import api_tables
from zaya_jax.reporting.results import read_results, read_sweep

TRAINING = ("training_1_core", "training", "training_25m")  # files of results/bench

Maker = Callable[[Path], str]  # the results folder -> Markdown


def _csv(name: str, table: Callable[[list], str]) -> Maker:
    return lambda results: table(read_results(results / name / "results.csv"))


def _sweep(name: str, table: Callable[[list], str]) -> Maker:
    return lambda results: table(read_sweep(results / "sweeps" / name / "results.csv"))


def _bench(name: str, section: str, table: Callable[[Any], str]) -> Maker:
    return lambda results: table(read_object(results / "bench" / f"{name}.json")[section])


def _transformers(results: Path) -> str:
    runs = [read_object(results / "bench" / f"transformers_{n}.json") for n in ("1_thread", "2_threads")]
    return tables.transformers_table(*(run["transformers"] for run in runs))


def _training(results: Path) -> str:
    runs = [read_object(results / "bench" / f"{name}.json") for name in TRAINING]
    return tables.training_table(runs)


def _trained_rows(results: Path) -> str:
    numbers = read_object(results / "bench" / "long_rows.json")
    return tables.trained_rows_table([numbers["longest"], numbers["packed"]])


def _lower(results: Path) -> str:
    return lowered_table(read_object(path) for path in sorted((results / "lower").glob("*.json")))


TABLES: dict[str, Maker] = {
    "quickstart": _csv("quickstart", tables.sampling_table),
    "likelihood": _csv("quickstart", tables.likelihood_table),
    "anchors": _bench("samplers", "anchors", tables.anchors_table),
    "strategies": _bench("samplers", "strategies", tables.strategies_table),
    "auto": _bench("samplers", "auto", tables.auto_table),
    "rows": _bench("forward", "rows", tables.rows_table),
    "few_experts": _bench("few_experts", "rows", tables.few_experts_table),
    "transformers": _transformers,
    "list_programs": _csv("list_programs", tables.study_table),
    "list_programs_3": _csv("list_programs_3", tables.study_table),
    "ceiling": _bench("ceiling", "rows", tables.ceiling_table),
    "large": lambda results: tables.evaluated_table(
        [row for name in ("large", "large_2") for row in read_results(results / "list_programs" / name / "results.csv")]
    ),
    "draft_temperature": _csv("list_programs/draft_temperature", tables.sampling_table),
    "gsm_symbolic": _sweep("gsm_symbolic", tables.study_table),
    "study": _sweep("study", tables.study_table),
    "block_size": _sweep("block_size", tables.ablation_table),
    "architecture": _sweep("architecture", tables.ablation_table),
    "recipe": _sweep("recipe", tables.ablation_table),
    "samplers": _sweep("samplers", tables.dial_table),
    "training": _training,
    "conversions": _bench("convert_8b", "conversions", tables.conversions_table),
    "loading": _bench("loading", "loads", tables.loading_table),
    "bfloat16_logits": _bench("bfloat16", "logits", tables.bfloat16_logits_table),
    "bfloat16_greedy": _bench("bfloat16", "greedy", tables.bfloat16_greedy_table),
    "compilation_cache": _bench("compilation_cache", "commands", tables.cache_table),
    "long_rows": _bench("long_rows", "train_step", tables.long_rows_table),
    "trained_rows": _trained_rows,
    "pairs": _bench("long_rows", "pairs", tables.pairs_table),
    "lower": _lower,
    "api": lambda _: api_tables(),
}


def pages(root: Path) -> list[Path]:
    """README.md and every page below docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def regenerate(texts: dict[str, str], results: Path) -> dict[str, str]:
    """Pages by name, with every table between `<!-- table NAME -->` and `<!-- end -->` made from `results`.

    Raises:
      UserError: a marker that names no table, a table that stands in two places, or nowhere.
      OSError: a result file that is not there.
    """
    found: dict[str, str] = {}
    made = {}
    for page, text in texts.items():

        def make(match: re.Match, page: str = page) -> str:
            name = match[1]
            if name not in TABLES:
                raise UserError(f"{page}: table {name!r} is unknown, may be one of {', '.join(TABLES)}")
            if name in found:
                raise UserError(f"{page}: table {name!r} stands in {found[name]} too, may stand in one place")
            found[name] = page
            return f"<!-- table {name} -->\n{TABLES[name](results)}\n<!-- end -->"

        made[page] = re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", make, text, flags=re.DOTALL)
    lacking = [name for name in TABLES if name not in found]
    if lacking:
        where = "README.md or docs/"
        raise UserError(f"table {lacking[0]!r}: has no place in {where}: <!-- table {lacking[0]} -->, <!-- end -->")
    return made


def rewrite(root: Path, results: Path) -> list[Path]:
    """Makes the tables of all pages of `root` anew; returns the pages that changed. Raises as `regenerate`."""
    texts = {str(path.relative_to(root)): read_text(path) for path in pages(root)}
    changed = {root / name: text for name, text in regenerate(texts, results).items() if text != texts[name]}
    for path, text in changed.items():
        write_text(path, text)
    return list(changed)
