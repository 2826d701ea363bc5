"""report.html: one page a person can open and understand, every number read from the run's own files."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import PARTS
from zaya_jax.architecture.drafters.config import KINDS
from zaya_jax.files import write_text
from zaya_jax.registry import kind_drafts
from zaya_jax.reporting.html.page import facts, folded, page, table
from zaya_jax.reporting.html.verdict import relative_loss, verdict
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.plots.plots import DESCRIPTIONS, caption, draw_figures
from zaya_jax.reporting.results import ENVIRONMENT, METRICS, RESULTS, SAMPLES, Row
from zaya_jax.reporting.run_files import Run, load_run
from zaya_jax.reporting.tables.cells import percent_change
from zaya_jax.sampling import all_targets
from zaya_jax.tasks import TASKS

GLOSSARY = {
    "T (tokens per forward)": (
        "Tokens committed, the stop token included, over forward passes of unfinished sequences; the prefill counts as "
        "one forward. Autoregressive decoding has T = 1. T depends on temperature, block size and branch points."
    ),
    "block size": "Slots of a draft block (B). A forward verifies up to B tokens and yields between 1 and B.",
    "query tokens per forward": (
        "Context tokens and mask slots one forward computes for a sequence: 1 when autoregressive, B (B + 1) when a "
        "block is drafted after every possible outcome."
    ),
    "branch points (anchors)": (
        "After which numbers of accepted tokens a next block is drafted; all = after every one of 1 .. B. Fewer "
        "branch points mean fewer query tokens and somewhat fewer tokens per forward, never another distribution."
    ),
    "wall-clock ratio": (
        "The sampler's tokens per second over autoregressive's at the same temperature; below 1 is slower."
    ),
    "control": (
        "The pretrained model, trained on for the same clean tokens as convert with the autoregressive loss alone."
    ),
    "AR loss, bits per byte": (
        "How well held-out text is predicted: nats per token, and for natural text bits per byte."
    ),
}


def write_report(run: Run, figures: Sequence[Path | str], path: Path | str) -> Path:
    """Writes a self-contained page; parts whose data are missing are left out and named.

    Args:
      run: from `load_run`.
      figures: PNG files (`draw_figures`), embedded in this order.
      path: where the page goes; written at once or not at all.

    Raises:
      FileNotFoundError: a figure that is not there.
    """
    path = Path(path)
    sections = [
        f"<h1>{escape(run.name)}: {_what(run)}</h1>",
        f'<p class="quiet">{escape(_subtitle(run))}</p>',
        _box(run),
        _what_was_run(run),
        _sampling_table(run),
        _likelihood_table(run),
        _figures(run, figures),
        _samples(run),
        _files(run),
        f"<h2>Words</h2>{facts(_words(run).items(), kind='glossary')}",
        _raw(run),
    ]
    write_text(path, page(f"{run.name}: report", sections))
    return path


def redraw(results: Path) -> list[Path]:
    """Draws the figures, and the report, of every run below this folder that has some, anew; returns what it wrote."""
    written: list[Path] = []
    for folder in sorted(path.parent for path in results.rglob("figures") if (path.parent / "config.json").exists()):
        run = load_run(folder)
        written += (figures := draw_figures(run, folder / "figures"))
        if (folder / "report.html").exists():
            written.append(write_report(run, figures, folder / "report.html"))
    return written


def _words(run: Run) -> dict[str, str]:
    """The glossary, and what the samplers of this run's rows draw from."""
    samplers = {row["sampler"] for row in run.rows("sampling")}
    read = [target for target in all_targets() if target.lossless or target.name in samplers]
    return GLOSSARY | {"lossless" if target.lossless else target.name: target.words for target in read}


def _what(run: Run) -> str:
    return "an autoregressive model" if run.is_autoregressive else "drafting and verifying in one forward pass"


def _subtitle(run: Run) -> str:
    commit = str(run.environment.get("git_commit") or "")
    parts = (
        "toy run" if style.is_toy(run) else "",
        str(run.environment.get("date", ""))[:10],
        style.hardware(run),
        f"commit {commit[:10]}{'+changes' if commit.endswith('+changes') else ''}" if commit else "",
    )
    return " · ".join(part for part in parts if part)


def _box(run: Run) -> str:
    sentences = "".join(f"<p>{escape(text)}</p>" for text in verdict(run))
    missing = run.missing()
    note = f'<p class="quiet">Not in this run: {escape("; ".join(missing))}.</p>' if missing else ""
    return f'<div class="box">{sentences}{note}</div>'


def _architecture(model: ZayaConfig) -> str:
    """ZAYA1 and its experts, and where an ablation is not ZAYA1."""
    whole = ZayaConfig()
    changed = [f"{part} {getattr(model, part)}" for part in PARTS if getattr(model, part) != getattr(whole, part)]
    experts = f"{model.num_experts} experts (one a token)" if model.feed_forward == "moe" else "no experts"
    return ", ".join(["ZAYA1 architecture" + (" but" if changed else ""), *changed, experts])


def _what_was_run(run: Run) -> str:
    config, env, model = run.config, run.environment, run.model
    items = []
    if model:
        size = f"{style.size_in_words(run)}, {model.num_hidden_layers} layers, {model.hidden_size} wide"
        items.append(("Model", f"{_architecture(model)}, {size}"))
    if mixture := config.get("data", {}).get("mixture"):
        row_length = config["data"].get("row_length", "?")
        items.append(("Data", f"{', '.join(map(_ingredient, mixture))}; rows of {row_length} tokens"))
    for stage in run.phases:
        if mixture := config.get(stage, {}).get("mixture"):
            items.append((f"Data of {stage}", ", ".join(map(_ingredient, mixture))))
    items += [(stage.capitalize(), _stage(run, stage)) for stage in run.phases if stage in config]
    items.append(("Tokenizer, seed", f"{config.get('tokenizer', '?')}, {config.get('seed', '?')}"))
    items.append(("Hardware", f"{style.hardware(run)}; jax {env.get('jax', '?')} on {env.get('device', '?')}"))
    if seconds := env.get("seconds"):
        items.append(("Wall time", ", ".join(f"{stage} {_duration(s)}" for stage, s in seconds.items())))
    return f"<h2>What was run</h2>{facts(items)}"


def _ingredient(item: dict[str, Any]) -> str:
    name = f"task {item['task']}" if "task" in item else f"text {item.get('text', '?')}"
    name = f"chats {item['chat']}" if "chat" in item else name + " as chats" * bool(item.get("as_chat"))
    return f"{name} (weight {item.get('weight', 1):g})"


def _stage(run: Run, stage: str) -> str:
    section = run.config[stage]
    objective = section.get("objective", {})
    tidar = kind_drafts(objective.get("kind"))
    what = f"next tokens and draft blocks of {objective.get('block_size', '?')}" if tidar else "next tokens"
    if objective.get("kind") in KINDS:
        what = f"a drafter beside the model, {objective['kind']}, blocks of {objective.get('block_size', '?')}"
    alpha = f" (AR weight {objective['alpha']:g})" if tidar and "alpha" in objective else ""
    row_length, theta = section.get("row_length"), section.get("rope_theta")
    rows = f"rows of {row_length} tokens" if row_length else "rows"
    base = f", rotary base {theta:g}" if theta else ""
    return f"{section.get('steps', '?')} steps of {section.get('batch_size', '?')} {rows}{base}: {what}{alpha}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _sampling_table(run: Run) -> str:
    rows = run.rows("sampling")
    if not rows:
        return ""
    names = dict(zip(map(id, rows), style.series_labels(rows), strict=True))
    rows = sorted(rows, key=lambda r: r["temperature"] or 0)
    head = (
        "temperature", "sampler", "tokens per forward (T)", "query tokens per forward", "wall-clock ratio",
        "tokens / s", "accuracy", "95% interval", "same tokens as greedy AR", "log-probability under AR (nats / token)",
    )  # fmt: skip
    shown = len(head) if any(r["ar_log_probability"] is not None for r in rows) else -1
    body = [
        (
            style.number(r["temperature"]), names[id(r)], _fixed(r["tokens_per_forward"], 2),
            style.number(r["rows_per_forward"]), _clock(r),
            style.number(r["tokens_per_second"]), style.percent(r["accuracy"]), _interval(r),
            style.percent(r["identical_to_autoregressive"]), _fixed(r["ar_log_probability"], 3),
        )[:shown]
        for r in rows
    ]  # fmt: skip
    numbers = table(head[:shown], body, words=2, group=True)
    return f"<h2>Sampling</h2>{numbers}<p class='quiet'>{escape(_conditions(rows))}</p>"


def _clock(row: Row) -> str:
    low, high = row["speedup_low"], row["speedup_high"]
    return _fixed(row["speedup"], 2, "x") + ("" if low is None else f" ({low:.2f} – {high:.2f})")


def _fixed(value: float | None, digits: int, unit: str = "") -> str:
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _interval(row: Row) -> str:
    if row["accuracy_low"] is None or row["accuracy_high"] is None:
        return "–"
    return f"{100 * row['accuracy_low']:.1f} – {100 * row['accuracy_high']:.1f}%"


def _conditions(rows: list[Row]) -> str:
    """What the table must be read with: task, block size, branch points, batch, prompts, seed."""
    drafting = [r for r in rows if r["sampler"] != "autoregressive"] or rows
    parts = []
    for column in ("source", "model", "block_size", "anchors", "beta", "batch", "prompts", "seed"):
        values = sorted({r[column] for r in drafting if r[column] is not None}, key=str)
        texts = [f"{v:g}" if isinstance(v, float) else v for v in values]
        parts += [f"{column.replace('_', ' ')} {' / '.join(texts)}"] if texts else []
    timed = [r for r in drafting if r["speedup"] is not None]
    clocks = (
        " In brackets: its 95% interval, a bootstrap over batches of this one run."
        if any(r["speedup_low"] is not None for r in timed)
        else " Each is one measurement without an interval: differences between samplers are no finding." * bool(timed)
    )
    return (
        f"Measured with: {', '.join(parts)}. A wall-clock ratio below 1 is slower than autoregressive decoding.{clocks}"
    )


def _likelihood_table(run: Run) -> str:
    rows = run.rows("likelihood")
    if not rows:
        return ""
    rank = {stage: i for i, stage in enumerate(run.phases)}
    order = list(dict.fromkeys(r["source"] for r in rows))
    rows = sorted(rows, key=lambda r: (order.index(r["source"]), rank.get(r["model"], len(rank))))
    head = (
        "held-out source",
        "model",
        "AR loss (nats/token)",
        "bits per byte",
        "draft loss",
        "AR loss against control",
    )
    body = []
    for r in rows:
        change = relative_loss(run, r["source"]) if r["model"] == "convert" else None
        losses = (r["ar_loss"], r["bits_per_byte"], r["draft_loss"])
        cells = [_fixed(value, 4) for value in losses]
        body.append(
            (r["source"] or "–", r["model"] or "–", *cells, "" if change is None else percent_change(change, 2))
        )
    note = "One seed."
    if "control" in run.phases:
        note = (
            "Control is the fair comparison for convert: same start, same further tokens, next-token loss alone. "
            f"{note}"
        )
    return f"<h2>Likelihood</h2>{table(head, body, words=2, group=True)}<p class='quiet'>{note}</p>"


def _figures(run: Run, figures: Sequence[Path | str]) -> str:
    parts = []
    for figure in map(Path, figures):
        if not figure.exists():
            raise FileNotFoundError(f"{figure}: no such file, should be a PNG that draw_figures wrote")
        data = base64.b64encode(figure.read_bytes()).decode()
        image = f'<img src="data:image/png;base64,{data}" alt="{escape(DESCRIPTIONS.get(figure.stem, figure.stem))}">'
        parts.append(f"<figure>{image}<figcaption>{escape(caption(figure.stem, run))}</figcaption></figure>")
    return f"<h2>Figures</h2>{''.join(parts)}" if parts else ""


def _samples(run: Run) -> str:
    """Every kept completion by prompt, so that the samplers stand together; the first prompt is open."""
    if not run.samples:
        return ""
    prompts = list(dict.fromkeys(s["prompt"] for s in run.samples))
    block = f"; block size {run.block_size}" if run.block_size else ""
    legend = (
        '<div class="text"><span class="prompt">prompt</span><span class="run a">one forward</span>'
        '<span class="run b">the next</span><span class="run a">and the next</span></div>'
        '<p class="quiet">Each coloured run is what one forward pass yielded. '
        "· is a space, ↵ a line end, → a tab, ∅ a token without text (a stop token, say)"
        f"{escape(block)}.</p>"
    )
    sources = dict.fromkeys(row["source"] for row in run.rows("sampling"))
    told = [TASKS[name].answers for name in sources if name in TASKS]
    legend += "".join(f"<p>{escape(text)}</p>" for text in told if text)
    parts = []
    for i, prompt in enumerate(prompts):
        shown = "".join(_sample(s) for s in run.samples if s["prompt"] == prompt)
        parts.append(folded(f"prompt {i + 1}: {_short(prompt)}", f'<div class="grid">{shown}</div>', opened=i == 0))
    return f"<h2>Samples</h2>{legend}{''.join(parts)}"


def _short(prompt: str, size: int = 60) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= size else line[: size - 1] + "…"


def _sample(sample: dict[str, Any]) -> str:
    pieces, forwards = sample["pieces"], len(sample["accepted"])
    tokens = f"{len(pieces)} tokens in {forwards} forwards (T = {len(pieces) / max(1, forwards):.2f})"
    marks: dict[bool | None, str] = {
        True: ' · <span class="right">right</span>',
        False: ' · <span class="wrong">wrong</span>',
    }
    words = marks.get(sample.get("correct"), "")
    head = f"<b>{escape(sample['sampler'])}</b>, temperature {sample['temperature']:g} · {tokens}{words}"
    runs, at = [], 0
    for i, count in enumerate(sample["accepted"]):
        text = "".join(_piece(piece) for piece in pieces[at : at + count])
        runs.append(f'<span class="run {"ab"[i % 2]}">{text}</span>')
        at += count
    prompt = f'<span class="prompt">{_visible(sample["prompt"])}</span>'
    return f'<div class="sample"><div class="head">{head}</div><div class="text">{prompt}{"".join(runs)}</div></div>'


def _piece(piece: str) -> str:
    return _visible(piece) if piece else '<span class="blank">∅</span>'


def _visible(text: str) -> str:
    """Escaped, with whitespace one can see."""
    marks = {
        " ": '<span class="blank">·</span>',
        "\n": '<span class="blank">↵</span>\n',
        "\t": '<span class="blank">→</span>\t',
    }
    return "".join(marks.get(character) or escape(character) for character in text)


def _files(run: Run) -> str:
    """The files after the page, and what one may type next."""
    links = [
        f'<a href="{name}">{name}</a>'
        for name in (RESULTS, METRICS, SAMPLES, ENVIRONMENT, "config.json")
        if (run.directory / name).exists()
    ]
    folder = f"WORKDIR/checkpoints/{run.sampled}" if run.sampled else "CHECKPOINT"
    items = [
        ("other samplers", f"python -m experiments.evaluate --checkpoint={folder} --tasks=... --output=DIR"),
        ("its own text", f"python -m experiments.generate --checkpoint={folder} --prompt=..."),
        ("this page again", "the experiments.run command that made it: finished stages are not run again"),
    ]
    where = "In the commands below WORKDIR is the folder of this page."
    return f"<h2>Files, and what next</h2><p>Every number is from {', '.join(links)}. {where}</p>{facts(items)}"


def _raw(run: Run) -> str:
    parts = []
    for name, value in (("config.json", run.config), ("environment.json", run.environment)):
        if value:
            text = escape(json.dumps(value, indent=2, ensure_ascii=False))
            parts.append(folded(name, f'<div class="text">{text}</div>'))
    return f"<h2>Config and environment</h2>{''.join(parts)}"
