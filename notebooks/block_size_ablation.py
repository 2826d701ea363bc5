# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What block size?
#
# A larger block can yield more tokens a forward (T), and every forward then computes more query tokens. Whether that
# pays is the machine's business; whether it costs quality is the model's. This notebook reads the committed study
# (`configs/sweeps/study.py`: a model for every block size and seed, pass@16) and, where it was run, the wider sweep
# (`configs/sweeps/block_size.py`: one seed, all branch points), and lets the rows say what was found. All of it is a
# toy.
#
# `LIVE = True` below (or `ZAYA_LIVE=1` outside) also samples the committed quickstart model at three block sizes, in
# under two minutes on two CPU cores. `FOLDER` below (or `ZAYA_RESULTS` outside) names your own sweep's or run's folder,
# whose rows then stand for the study's. Run it from `notebooks/` or from the repository's root.

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

from zaya_jax import SamplerConfig, Zaya, load_pretrained, preset
from zaya_jax.costs.roofline import HARDWARE, drafting_seconds, forward_seconds
from zaya_jax.evaluation.task_accuracy import EvaluationProtocol, NamedSampler, run_task, task_rows
from zaya_jax.reporting.paper import published
from zaya_jax.reporting.paper.benchmarks import FLAT
from zaya_jax.reporting.paper.figures import FIGURES, show
from zaya_jax.reporting.paper.sweep_rows import anchors_in_words, shared, with_block_size, with_same_anchors
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import is_own, results_folder
from zaya_jax.sampling import expected_tokens
from zaya_jax.sampling.planning.auto import MARGIN, candidates
from zaya_jax.sampling.planning.cost import cost_at
from zaya_jax.tasks import make_task
from zaya_jax.text.tokenizers import ByteTokenizer

FOLDER = ""  # of your own sweep or run (its --workdir), or ZAYA_RESULTS outside; empty: this project's results
LIVE = bool(os.environ.get("ZAYA_LIVE"))
root = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "results").is_dir())
RESULTS = results_folder(FOLDER or os.environ.get("ZAYA_RESULTS"), root / "results")
# %matplotlib inline

# %% [markdown]
# ## The figure after TiDAR's ablation
# T and pass@1 of lossless sampling by block size, seeds as dots, TiDAR's published values as diamonds.

# %%
show("block_size", RESULTS)

# %% [markdown]
# ## The numbers of that figure
# Lossless sampling beside autoregression of the same converted models: means over training seeds and, in brackets, the
# seeds' range (in the study every seed also meets other test problems). Query tokens are what a forward computes for
# each sequence. The speed-up is tokens a second over autoregression's on the machine that ran the sweep, beside the
# sweep's other jobs, so it is rough; `results/bench` has the careful one. Lossless and AR sample one distribution, so a
# gap between their columns is sampling noise; from block size to block size the *models* differ.

# %%
sweeps = {}
for source in FIGURES["block_size"].inputs:
    try:
        if rows := source.read(RESULTS):
            name = RESULTS.name if is_own(RESULTS) else Path(source.path).parent.name
            sweeps[name] = with_same_anchors(with_block_size(rows))
    except FileNotFoundError as missing:
        print(missing)


def by_block(rows, sampler="lossless"):
    """(task, temperature) -> block size -> the sampler's rows, one a seed."""
    out = {}
    for row in sorted(rows, key=lambda r: (r["source"], r["temperature"], r["block_size"])):
        if row["sampler"] == sampler:
            out.setdefault((row["source"], row["temperature"]), {}).setdefault(row["block_size"], []).append(row)
    return out


def told(rows, column, text="{:.2f}"):
    """Mean over seeds, and the seeds' range where there are several; a dash where nothing was measured."""
    values = [row[column] for row in rows if row.get(column) is not None]
    span = f" ({text.format(min(values))} to {text.format(max(values))})" if len(values) > 1 else ""
    return text.format(np.mean(values)) + span if values else "–"


def table(rows):
    """The four figures that belong together, a line for each task, temperature and block size."""
    heads = ("task", "temperature", "block", "T", "query tokens per forward", "wall-clock vs AR", "pass@1",
             "AR's pass@1", "pass@16",
             "AR's pass@16")  # fmt: skip
    lines, plain = ["|" + "|".join(heads) + "|", "|---" * len(heads) + "|"], by_block(rows, "autoregressive")
    for (task, temperature), blocks in by_block(rows).items():
        for block, ours in blocks.items():
            beside = plain.get((task, temperature), {})
            same = beside.get(block, beside.get(1, []))  # under the block size its model was trained for, or once
            cells = [task.replace("_", " "), f"{temperature:g}", f"{block:g}", told(ours, "tokens_per_forward")]
            cells += [told(ours[:1], "rows_per_forward", "{:g}"), told(ours, "speedup", "{:.2f}x")]
            cells += [told(r, c, "{:.1%}") for c in ("accuracy", "pass_at_16") for r in (ours, same)]
            lines.append("|" + "|".join(cells) + "|")
    display(Markdown("\n".join(lines)))


for name, rows in sweeps.items():
    print(f"sweep {name}: {len({row['run'] for row in rows})} models, {anchors_in_words(rows)}")
    table(rows)

# %% [markdown]
# ## T against query tokens, speed-up and quality
# The same means as points; the number beside a point is its block size. Left: what a block buys (T) and what it is
# charged (query tokens). Middle: the wall-clock speed-up; right of the dashed line drafting won. Right: whether a
# larger block cost quality.


# %%
def panels(rows, title):
    """T against query tokens per forward, speed-up and pass@1: a line a task and temperature, a point a block size."""
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.7), sharey=True, layout="constrained")
    colours = dict(zip(shared(rows, "source"), (style.BLUE, style.ORANGE, style.GREEN), strict=False))
    named = {"rows_per_forward": "query tokens per forward", "speedup": "wall-clock vs AR", "accuracy": "pass@1"}
    for axis, (column, words) in zip(axes, named.items(), strict=True):
        style.tidy(axis, "", words, "tokens per forward" if axis is axes[0] else "", grid="both")
        for (task, temperature), blocks in by_block(rows).items():
            look, label = ("s--" if temperature else "o-"), f"{task.replace('_', ' ')}, temperature {temperature:g}"
            points = [[np.mean([r[c] for r in b]) for c in (column, "tokens_per_forward")] for b in blocks.values()]
            axis.plot(*zip(*points, strict=True), look, color=colours[task], label=label)
            for point, block in zip(points, blocks, strict=True):
                axis.annotate(f"{block:g}", point, (5, 4), textcoords="offset points", fontsize=8)
        axis.margins(0.12)
    axes[0].set_xscale("log", base=2)
    style.plain_numbers(axes[0].xaxis)
    axes[1].axvline(1, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
    style.in_percent(axes[2].xaxis)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False, fontsize=8.5)
    plt.show()


for name, rows in sweeps.items():
    panels(rows, f"sweep {name}, lossless (toy)")

# %% [markdown]
# ## What was found
# Computed from the rows. A difference in quality counts only where it is larger than the seeds' range at every block
# size.

# %%
for name, rows in sweeps.items():
    print(f"sweep {name}, lossless:")
    for (task, temperature), blocks in by_block(rows).items():
        t, cost, faster, quality = (
            {block: np.mean([row[column] for row in here]) for block, here in blocks.items()}
            for column in ("tokens_per_forward", "rows_per_forward", "speedup", "accuracy")
        )
        small, large, most, fastest = min(t), max(t), max(t, key=t.get), max(faster, key=faster.get)
        print(f"  {task}, temperature {temperature:g}: most tokens a forward at block {most:g}, T {t[most]:.2f};")
        print(f"    block {large:g} has {t[large] / t[small]:.2f} times the T of block {small:g}", end=" ")
        print(f"for {cost[large] / cost[small]:.1f} times the query tokens;")
        print(f"    fastest was block {fastest:g}: {faster[fastest]:.2f}x of AR's tokens a second;")
        span = max(np.ptp([row["accuracy"] for row in here]) for here in blocks.values())
        change, several = quality[large] - quality[small], max(map(len, blocks.values())) > 1
        verdict = "within" if abs(change) <= span else "beyond"
        said = f"{verdict} the seeds' range, {100 * span:.1f}" if several else "one seed, so no range to judge it by"
        print(f"    pass@1 from block {small:g} to {large:g}: {100 * change:+.1f} points ({said}).")
if not sweeps:
    print("nothing yet: no sweep is there")

# %% [markdown]
# ## What would pay elsewhere
# A model that drafts well at 16 can be sampled at any smaller block, so its acceptance foretells their T
# (`expected_tokens`, an anchor everywhere). Left: with the flat acceptances that give Zyphra's two numbers at block 16;
# diamonds: TiDAR's models, one for each block size. Right: expected tokens a second over autoregression's with each
# block's best anchors, at the lower acceptance, from a forward's cost against its query tokens: measured on a CPU
# (`results/bench/few_experts.json`), or by roofline on GPUs (ZAYA1-8B, 32,768 tokens after each sequence): a bound,
# nothing was run there. Printed: the best block, or autoregression where none is expected to be 5% faster.

# %%
SIZES, CONTEXT = (2, 4, 8, 16), 32_768
costs = {}  # name -> a forward's cost over that of one query token, of (query tokens, block size)
for row in json.loads((root / "results" / "bench" / "few_experts.json").read_text())["rows"]:
    ratio = {int(rows): over for rows, over in row["ratio"].items()}
    name = f"measured CPU: {row['parameters'] / 1e6:.1f}M, {row['experts']} expert(s), batch {row['batch']}"
    costs[name] = lambda n, _, ratio=ratio: cost_at(ratio, n)
for device, batch in (("mi300x", 1), ("mi300x", 64), ("mi355x", 64)):
    where = (preset("zaya1_8b"), HARDWARE[device])
    costs[f"roofline {device.upper()}: 8B, batch {batch}"] = lambda n, block, where=where, batch=batch: (
        drafting_seconds(*where, n, batch, CONTEXT, block) / forward_seconds(*where, 1, batch, CONTEXT)
    )

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.4), layout="constrained")
style.tidy(left, "Expected tokens per forward, every anchor", "block size", grid="both")
for (rate, name), colour in zip(FLAT.items(), (style.BLUE, style.ORANGE), strict=True):
    tokens = [expected_tokens([rate] * 15, block, range(1, block + 1)) for block in SIZES]
    left.plot(
        SIZES, tokens, "o-", color=colour, label=f"flat {rate:g}: {published.SPEEDUP[name]:g} at 16, Zyphra's {name}"
    )
theirs = {size: line.tokens_per_forward for size, line in published.BLOCK_SIZES.items()}
left.plot(list(theirs), list(theirs.values()), "D", color=style.PURPLE, label="published: TiDAR 1.5B")
style.tidy(right, "Expected tokens a second over AR, best anchors", "block size", grid="both")
ways = candidates([min(FLAT)] * 15, {1: 1.0}, 16)  # every block size and budget with its best anchors; not yet priced
for (name, cost), colour in zip(costs.items(), (style.GREY, style.INK, *style.OTHERS), strict=False):
    best = {block: max(w.tokens / cost(w.rows, block) for w in ways if w.block_size == block) for block in SIZES}
    right.plot(*zip(*best.items(), strict=True), "o-" if "CPU" in name else "o--", color=colour, label=name)
    top = max(best, key=best.get)
    print(f"{name}: " + (f"block {top}, {best[top]:.2f}x" if best[top] > MARGIN else "autoregression"))
right.axhline(1, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
for axis in (left, right):
    axis.set_xscale("log", base=2)
    axis.set_xticks(SIZES)
    style.plain_numbers(axis.xaxis)
    axis.set_ylim(0, 1.4 * axis.get_ylim()[1])
    style.legend(axis, loc="upper left")
plt.show()

# %% [markdown]
# ## Live: one model, three block sizes
# The quickstart's committed model was trained with block 8 on additions. Here it is sampled with blocks of 2, 4 and 8
# and all branch points on the same 32 prompts, greedily and at temperature 1, by the function that evaluates every run
# (`zaya_jax.evaluation.task_accuracy.run_task`). The distribution stays AR's at any block size; T, query tokens and the
# speed-up change.

# %%
if LIVE:
    config, variables = load_pretrained(root / "results" / "quickstart" / "model")
    tokenizer, addition, live = ByteTokenizer(), make_task("addition"), []
    protocol = EvaluationProtocol(prompts=32, samples=1, batch=32, max_new_tokens=64, seed=1_000)
    ways = [("autoregressive", "autoregressive", 1), *(("lossless", "single_pass", block) for block in (2, 4, 8))]
    for temperature in (0.0, 1.0):
        rest = dict(temperature=temperature, stop_tokens=(tokenizer.eos_id,))
        samplers = [NamedSampler(name, SamplerConfig(mode, block, **rest)) for name, mode, block in ways]
        live += task_rows(run_task(Zaya(config), variables, tokenizer, addition, samplers, protocol), protocol)
    live = [{"source": addition.name, **row} for row in live]
    table(live)
    panels(live, "live: the quickstart model, 32 additions, lossless, all branch points (toy)")
    for row in live:
        where = f"{row['sampler']}, block {row['block_size']}, temperature {row['temperature']:g}: pass@1"
        if row["sampler"] == "autoregressive":
            print(f"{where} {row['accuracy']:.1%}, T {row['tokens_per_forward']:.2f}")
        else:
            same = row.get("identical_to_autoregressive")
            judged = (
                f"{same:.0%} of the texts are greedy AR's"
                if same is not None
                else f"against AR's p {row['p_value']:.2g}"
            )
            print(f"{where} {row['accuracy']:.1%}, {judged}")
else:
    print("LIVE is False: nothing is sampled here")
