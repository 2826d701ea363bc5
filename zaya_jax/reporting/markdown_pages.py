"""The tables of README.md and docs/, each between two markers, made anew from committed result files."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zaya_jax.aot.lowering import lowered_table, traffic_table
from zaya_jax.errors import UserError
from zaya_jax.files import read_text, write_text
from zaya_jax.reporting.api_page import api_tables
from zaya_jax.reporting.result_files import made_of, read_record
from zaya_jax.reporting.results import read_results, read_sweep
from zaya_jax.reporting.tables import benchmarks, drafting, rollouts, runs, stability
from zaya_jax.reporting.tables.decode import decode_table
from zaya_jax.reporting.tables.rivals import rivals_table
from zaya_jax.reporting.tables.rollouts import Run, run_of
from zaya_jax.reporting.tables.wall_clock import learned_table, wall_clock_table
from zaya_jax.training.logging.metrics import read_metrics

TRAINING = ("training_1_core", "training", "training_25m")  # files of results/bench

Maker = Callable[[Path], str]  # the results folder -> Markdown


def _csv(*names: str, table: Callable[[list], str]) -> Maker:
    return _maker([f"{name}/results.csv" for name in names], read_results, lambda *rows: table(sum(rows, [])))


def _sweep(name: str, table: Callable[[list], str]) -> Maker:
    return _maker([f"sweeps/{name}/results.csv"], read_sweep, table)


def _bench(*names: str, table: Callable[..., str]) -> Maker:
    return _maker([f"bench/{name}.json" for name in names], read_record, table)


def _section(name: str, section: str, table: Callable[[Any], str]) -> Maker:
    return _bench(name, table=lambda numbers: table(numbers[section]))


def _maker(names: Sequence[str], read: Callable[[Path], Any], table: Callable[..., str]) -> Maker:
    """A table of what `read` makes of these files of the results folder."""

    def make(results: Path) -> str:
        paths = [results / name for name in names]
        with made_of(" and ".join(map(str, paths))):
            return table(*map(read, paths))

    return make


def _lower(pattern: str, table: Callable[..., str]) -> Maker:
    def make(results: Path) -> str:
        folder = results / "lower"
        with made_of(str(folder)):
            return table(read_record(path) for path in sorted(folder.glob(pattern)))

    return make


def _learned(*names: str) -> Maker:
    """What drafts had learnt, of the configs and metrics of runs that trained on one from another."""

    def make(results: Path) -> str:
        folders = [results / name for name in names]
        with made_of(" and ".join(map(str, folders))):
            return learned_table((read_record(f / "config.json"), read_metrics(f / "metrics.jsonl")) for f in folders)

    return make


def _quality(**folders: str) -> Maker:
    """Accuracy and bits per byte of models, each evaluated into a folder."""
    names = [name.replace("_", " ") for name in folders]
    files = [f"{folder}/results.csv" for folder in folders.values()]
    return _maker(files, read_results, lambda *rows: runs.quality_table(dict(zip(names, rows, strict=True))))


def _policies(task: str, table: Callable[[list[Run]], str]) -> Maker:
    """Of every run of reinforcement learning on a task: the folders of results/rollouts/TASK."""

    def make(results: Path) -> str:
        folder = results / "rollouts" / task
        with made_of(str(folder)):
            found = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
            return table([run_of(read_record(f / "config.json"), read_metrics(f / "metrics.jsonl")) for f in found])

    return make


def _clock(name: str) -> Maker:
    """Wall-clock with drafts and without, of a file of `experiments.bench.drafting`."""
    return _maker([f"{name}.json"], read_record, wall_clock_table)


def _stability(table: Callable[[dict[str, Any]], str], name: str = "tiny") -> Maker:
    return _maker([f"stability/{name}.json"], read_record, table)


TABLES: dict[str, Maker] = {
    "quickstart": _csv("quickstart", table=runs.sampling_table),
    "quickstart_one_text": _clock("quickstart/wall_clock"),
    "likelihood": _csv("quickstart", table=runs.likelihood_table),
    "anchors": _section("samplers", "anchors", drafting.anchors_table),
    "strategies": _section("samplers", "strategies", drafting.strategies_table),
    "auto": _section("samplers", "auto", drafting.auto_table),
    "rows": _section("forward", "rows", drafting.rows_table),
    "decode": _bench("decode", table=decode_table),
    "few_experts": _section("few_experts", "rows", drafting.few_experts_table),
    "transformers": _bench(
        "transformers_1_thread", "transformers_2_threads",
        table=lambda *found: benchmarks.transformers_table(*(each["transformers"] for each in found)),
    ),
    "list_programs": _csv("list_programs", table=runs.study_table),
    "list_programs_3": _csv("list_programs_3", table=runs.study_table),
    "ceiling": _section("ceiling", "rows", drafting.ceiling_table),
    "large": _csv("list_programs/large", "list_programs/large_2", table=runs.evaluated_table),
    "draft_temperature": _csv("list_programs/draft_temperature", table=runs.sampling_table),
    "gsm_symbolic": _sweep("gsm_symbolic", runs.study_table),
    "study": _sweep("study", runs.study_table),
    "block_size": _sweep("block_size", runs.ablation_table),
    "architecture": _sweep("architecture", runs.ablation_table),
    "recipe": _sweep("recipe", runs.ablation_table),
    "samplers": _sweep("samplers", runs.sampling_options_table),
    "training": _bench(*TRAINING, table=lambda *found: benchmarks.training_table(list(found))),
    "conversions": _section("convert_8b", "conversions", benchmarks.conversions_table),
    "loading": _section("loading", "loads", benchmarks.loading_table),
    "bfloat16_logits": _section("bfloat16", "logits", benchmarks.bfloat16_logits_table),
    "bfloat16_greedy": _section("bfloat16", "greedy", benchmarks.bfloat16_greedy_table),
    "bfloat16_cost": _section("bfloat16", "cost", benchmarks.bfloat16_cost_table),
    "compilation_cache": _section("compilation_cache", "commands", benchmarks.cache_table),
    "long_rows": _section("long_rows", "train_step", benchmarks.long_rows_table),
    "trained_rows": _bench(
        "long_rows", table=lambda numbers: benchmarks.trained_rows_table([numbers["longest"], numbers["packed"]])
    ),
    "pairs": _section("long_rows", "pairs", benchmarks.pairs_table),
    "lower": _lower("*.json", lowered_table),
    "traffic": _lower("*_decode_*.json", traffic_table),
    "word_problems": _clock("smollm2/word_problems/wall_clock"),
    "word_problems_batch_4": _clock("smollm2/word_problems/wall_clock_batch_4"),
    "word_problems_free_chat": _clock("smollm2/word_problems/wall_clock_free_chat"),
    "word_problems_quality": _quality(
        published="smollm2/quality/published", joint="smollm2/quality/joint", AR_only="smollm2/quality/control"
    ),
    "sums_quality": _quality(published="smollm2/quality/sums_published", joint="smollm2/quality/sums_joint"),
    "drafts": _clock("smollm2/drafts/wall_clock"),
    "drafts_second": _clock("smollm2/drafts/second/wall_clock"),
    "drafts_older_processor": _clock("smollm2/drafts/wall_clock_older_processor"),
    "rivals_list_programs": _maker(["rivals/list_programs/results.csv"], read_sweep, rivals_table),
    "ngram_smollm2": _clock("rivals/smollm2/ngram"),
    "dflash_smollm2": _csv("rivals/smollm2/dflash/evaluation", table=runs.sampling_table),
    "dflash_smollm2_learned": _learned("rivals/smollm2/dflash"),
    "word_problems_learned": _learned(*(f"smollm2/word_problems{run}" for run in ("/first", "/second", ""))),
    "drafts_learned": _learned(*(f"smollm2/drafts{run}" for run in ("/first", "/second", ""))),
    "stability_weights": _stability(stability.weights_table),
    "stability_noise": _stability(stability.noise_table),
    "stability_runs": _stability(stability.runs_table),
    "stability_decoders": _stability(stability.decode_table, "decoders"),
    "queue": _section("queue", "rows", benchmarks.queue_table),
    "policies_list_programs": _policies("list_programs", rollouts.rewards_table),
    "policies_list_programs_cost": _policies("list_programs", rollouts.costs_table),
    "policies_countdown": _policies("countdown", rollouts.rewards_table),
    "policies_countdown_cost": _policies("countdown", rollouts.costs_table),
    "api": lambda _: api_tables(),
}  # fmt: skip


def pages(root: Path) -> list[Path]:
    """README.md and every page below docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def regenerate(texts: dict[str, str], results: Path) -> dict[str, str]:
    """Pages by name, with every table between `<!-- table NAME -->` and `<!-- end -->` made from `results`.

    Raises:
      UserError: a marker that names no table, a table that stands in two places, or nowhere; a result file that lacks
        what its table shows.
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
