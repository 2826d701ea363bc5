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
# # Roofline and cost model
#
# Drafting pays where a forward over many query tokens costs little more than one over one. This notebook shows what a
# roofline says of that for GPUs that were not at hand, what was measured on a CPU, and how the cost model turns a cost
# curve and an acceptance into a choice of mode, block size and anchors.
#
# `LIVE = True` below (or `ZAYA_LIVE=1` outside) also measures the committed quickstart model's forwards on this machine
# and lets the planner choose, in under two minutes on two CPU cores. `FOLDER` below (or `ZAYA_RESULTS` outside) names
# your own sweep's or run's folder, whose cost rows and tokens per forward then stand for the benchmarks'. Run it from
# `notebooks/` or from the repository's root.

# %%
import dataclasses
import itertools
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

from zaya_jax import SamplerConfig, Zaya, generate, load_pretrained, preset
from zaya_jax.costs.roofline import HARDWARE, drafting_seconds, forward_seconds, resident_bytes
from zaya_jax.reporting.paper import published
from zaya_jax.reporting.paper.figures import show
from zaya_jax.reporting.paper.roofline import BATCHES, CONTEXT, NAMES, attention_blocks, model_blocks
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import is_own, read_rows, results_folder
from zaya_jax.reporting.tables import drafting
from zaya_jax.sampling import evidence, expected_tokens
from zaya_jax.sampling.planning.auto import MARGIN, Candidate, candidates
from zaya_jax.sampling.planning.cost import AUTOREGRESSIVE, forward_cost, rows_of
from zaya_jax.sampling.strategies.base import Plan
from zaya_jax.tasks import make_task
from zaya_jax.text.tokenizers import ByteTokenizer

FOLDER = ""  # of your own sweep or run (its --workdir), or ZAYA_RESULTS outside; empty: this project's results
LIVE = bool(os.environ.get("ZAYA_LIVE"))
root = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "results").is_dir())
RESULTS = results_folder(FOLDER or os.environ.get("ZAYA_RESULTS"), root / "results")
# %matplotlib inline


def table(heads, lines):
    display(Markdown("\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *lines))))


# %% [markdown]
# ## How many proposals could a forward carry?
# A forward's time is the larger of its arithmetic and its memory traffic. While traffic sets it, more query tokens are
# free: up to the ridge. Where only a cache is read, that depends on the attention's arithmetic for each byte of cache;
# in a whole model, more query tokens also touch more experts, whose weights must be read.

# %%
show("roofline", RESULTS)

# %%
attention, model = attention_blocks(), model_blocks()
kinds = list(next(iter(attention.values())))
table(
    ["16-token blocks, only the cache is read", *kinds, "published (Zyphra)"],
    [
        [NAMES[d], *(f"{by[kind]:.2f}" for kind in kinds), str(published.BLOCKS.get(d, "–"))]
        for d, by in attention.items()
    ],
)
table(
    ["ZAYA1-8B whole: blocks at up to 1.1x; at the ridge, and its cost", *(f"batch {batch}" for batch in BATCHES)],
    [
        [NAMES[device], *(f"{free:.2f}; {ridge:.2f}, {over:.2f}x" for free, ridge, over in by.values())]
        for device, by in model.items()
    ],
)

# %% [markdown]
# ## Free slots, measured
# The same question to the CPU that ran the benchmarks: a forward's time against its query tokens.

# %%
show("free_slots", RESULTS)

# %%
bench, curves, measured, BLOCK = {}, {}, {}, 16  # curves: milliseconds by query tokens; measured: tokens per forward
if is_own(RESULTS):  # of a sweep, the run with the largest block
    rows = read_rows(RESULTS)
    full = [row for row in rows if row["sampler"] == "lossless" and row["anchors"] == "all"]
    largest = max(full, key=lambda row: row["block_size"], default=rows[0])
    mine, BLOCK = largest["run"], int(largest["block_size"] or BLOCK)
    for row in rows:
        if row["run"] == mine and row["kind"] == "cost":
            curves.setdefault(f"{mine}, batch 1, {row['hardware']}", {})[int(row["rows"])] = row["milliseconds"]
    for row in full:
        if row["run"] == mine:
            measured[f"{row['source']} at temperature {row['temperature']:g}"] = row["tokens_per_forward"]
    print(f"{RESULTS.name}, run {mine}: block {BLOCK}, all anchors; lossless T of {', '.join(measured) or 'nothing'}")
    for name, cost in curves.items():
        table(["query tokens", name], [[str(rows), f"{milliseconds:.3f} ms"] for rows, milliseconds in cost.items()])
else:
    bench = {name: json.loads((RESULTS / "bench" / f"{name}.json").read_text()) for name in ("few_experts", "samplers")}
    display(Markdown(drafting.few_experts_table(bench["few_experts"]["rows"])))
    for row in bench["few_experts"]["rows"]:
        name = f"{row['parameters'] / 1e6:.1f}M, {row['experts']} expert(s), batch {row['batch']}"
        curves[name] = {int(rows): milliseconds for rows, milliseconds in row["milliseconds"].items()}
    for row in bench["samplers"]["anchors"]:
        if row["anchors"] == row["block_size"]:
            measured[f"the toy's at temperature {row['temperature']:g}"] = row["tokens_per_forward"]

# %% [markdown]
# ## The cost model
# Tokens a second over autoregression's = T x (cost of one query token / cost of those that the sampler computes). T
# follows from an acceptance (how drafts survive, slot by slot) and the anchors; the cost is a curve over query tokens,
# measured or analytic. `candidates` tries every block size and budget of anchors and sorts them; a sampler must promise
# 5% more than autoregression to be chosen.
#
# The result files were made with the toy's own runs on all test prompts. Here flat acceptances stand for them: the
# rates whose T with all anchors meets the T that was measured (the toy's at temperatures 0 and 1, block 16; or your
# own), and Zyphra's lossless T. Real acceptance is not flat, so the choices differ somewhat.

# %%
rates = np.linspace(0.5, 0.99, 50)
tokens = [expected_tokens([rate] * (BLOCK - 1), BLOCK, range(1, BLOCK + 1)) for rate in rates]
targets = measured | {"Zyphra's lossless": published.SPEEDUP["lossless"]}
acceptances = {}
for name, t in targets.items():
    rate = float(np.interp(t, tokens, rates))
    print(f"{name}: T {t:.2f} is a flat acceptance of {rate:.3f}")
    acceptances[f"T {t:.2f} ({name})"] = [rate] * (BLOCK - 1)


def chosen(way):
    """Cells of a table: a candidate as one would ask for it, or autoregression where it promises too little."""
    if way.speedup < MARGIN:
        return "autoregressive", "1", "1.00", "1.00x"
    anchors = "all" if len(way.anchors) == way.block_size else ", ".join(map(str, way.anchors))
    name = f"single_pass, block {way.block_size}, anchors {anchors}"
    return name, str(way.rows), f"{way.tokens:.2f}", f"{way.speedup:.2f}x"


# %% [markdown]
# ### From measured curves

# %%
lines = []
for model_name, cost in curves.items():
    for name, acceptance in acceptances.items():
        lines.append([model_name, name, *chosen(candidates(acceptance, cost, BLOCK)[0])])
heads = [f"T, block {BLOCK}, all branch points", "chosen", "query tokens", "T", "tokens a second vs AR"]
table(["measured on the CPU", *heads], lines)

# %% [markdown]
# What mode `auto` did with the trained toy on that CPU: it measures acceptance and cost for the prompts at hand, takes
# the best candidate, lets it race autoregression and says why.

# %%
if bench:
    display(Markdown(drafting.auto_table(bench["samplers"]["auto"])))
for row in bench["samplers"]["auto"][:2] if bench else ():
    print(f"{row['prompts']}, batch {row['batch']}, temperature {row['temperature']:g}: {row['reason']}")

# %% [markdown]
# ### From the analytic curve
# ZAYA1-8B in bf16 on GPUs that were not here, 32,768 cached tokens a sequence: a bound from published peaks, nothing
# was run. Where weights and caches exceed a device's memory, the line says so.

# %%
config, lines, priced = preset("zaya1_8b"), [], {}
ways = {
    name: candidates(acceptances[name], {1: 1.0}, BLOCK) for name in list(acceptances)[1:] or acceptances
}  # not priced yet
for device, batch in itertools.product(NAMES, BATCHES):
    one = forward_seconds(config, HARDWARE[device], 1, batch, CONTEXT)
    for name in ways:
        priced[device, batch, name] = []
        for way in ways[name]:
            cost = drafting_seconds(config, HARDWARE[device], way.rows, batch, CONTEXT, way.block_size) / one
            way = dataclasses.replace(way, cost=cost, speedup=way.tokens / cost)
            priced[device, batch, name].append(way)
        best = max(priced[device, batch, name], key=lambda way: way.speedup)
        fits = resident_bytes(config, batch, CONTEXT) <= HARDWARE[device].memory
        lines.append([f"{NAMES[device]}, batch {batch}{'' if fits else ' (exceeds its memory)'}", name, *chosen(best)])
table(["roofline, ZAYA1-8B", *heads], lines)

# %% [markdown]
# The same from the toy's own runs at temperature 1 instead of a flat acceptance, after 4,096 tokens
# (`results/bench/samplers.json`, section `predicted`).

# %%
lines = []
for row in bench["samplers"]["predicted"] if bench else ():
    fields = {field.name: row[field.name] for field in dataclasses.fields(Candidate)}
    lines.append([f"{row['hardware'].upper()}, batch {row['batch']}", *chosen(Candidate(**fields))])
table(["roofline, ZAYA1-8B", "chosen", "query tokens", "T", "tokens a second vs AR"], lines)

# %% [markdown]
# Every candidate as a point, at Zyphra's T. With few sequences a second row meets experts that would not have been read
# without it; with many, nearly all experts are read anyway and query tokens cost little until arithmetic sets the time.

# %%
figure, axes = plt.subplots(1, len(BATCHES), figsize=(11.5, 3.8), sharey=True, layout="constrained")
name = list(acceptances)[-1]
for axis, batch in zip(axes, BATCHES, strict=True):
    style.tidy(axis, f"batch {batch}", "query tokens of a sequence in a forward", "", grid="both")
    looks = ((style.BLUE, "o", 4), (style.VERMILION, "s", 6), (style.GREEN, "D", 8))  # hollow: points coincide
    for device, (colour, mark, size) in zip(NAMES, looks, strict=True):
        points = [(way.rows, way.speedup) for way in priced[device, batch, name]]
        axis.plot(*zip(*points, strict=True), mark, color=colour, fillstyle="none", ms=size, label=NAMES[device])
    axis.axhline(1, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_xscale("log", base=2)
    style.plain_numbers(axis.xaxis)
style.legend(axes[0], loc="upper left")
title = "Expected tokens a second over AR of every block size and budget of anchors (roofline: a bound)"
figure.suptitle(title, x=0.01, ha="left", fontsize=11)
plt.show()

# %% [markdown]
# ## Live: this machine
# Forwards of the quickstart model over a few numbers of query tokens, batch 1 (`forward_cost`); its acceptance on 32
# additions; what the cost model chooses from both, and whether the tokens per forward that it foretells come out on 32
# other additions. (Mode `auto`, `zaya_jax.sampling.choose_sampler`, does all this by itself and then has a race.)

# %%
if LIVE:
    small, variables = load_pretrained(root / "results" / "quickstart" / "model")
    shapes = [(4, 1), (8, 1), (8, 8)]
    plans = [AUTOREGRESSIVE, *(Plan("single_pass", b, tuple(range(1, k + 1)), "autoregressive") for b, k in shapes)]
    times = forward_cost(Zaya(small), variables, plans, steps=16, repeats=5)
    cost = {rows_of(plan): milliseconds for plan, milliseconds in times.items()}
    for rows, milliseconds in cost.items():
        print(f"{rows:3} query tokens: {milliseconds:.3f} ms, {milliseconds / cost[1]:.2f}x one token")
    tokenizer = ByteTokenizer()
    prompts = [tokenizer.encode(problem.prompt) for problem in make_task("addition").problems("test", 64, 1_000)]
    sampler = SamplerConfig("single_pass", 8, temperature=0.0, stop_tokens=(tokenizer.eos_id,))
    out = generate(Zaya(small), variables, prompts[:32], sampler, 64)
    print(f"all branch points, temperature 0: T {out.tokens_per_forward:.2f}", end=" ")
    print(f"at {out.rows_per_forward:g} query tokens; expected:")
    best, *others = candidates(evidence(out.accepted, 8), cost, 8)
    print("  " + "\n  ".join(map(str, (best, *others[:4]))))
    if best.speedup < MARGIN:
        print("chosen: autoregressive, nothing promises 5% more")
    else:
        sampler = dataclasses.replace(sampler, block_size=best.block_size, anchors=best.anchors)
        chosen_out = generate(Zaya(small), variables, prompts[32:], sampler, 64)
        print(f"chosen: {best}; T on other problems: {chosen_out.tokens_per_forward:.2f}")
    axis = plt.figure(figsize=(6, 3.6), layout="constrained").subplots()
    title = "live: the quickstart model, batch 1"
    style.tidy(axis, title, "query tokens in a forward", "cost over one token", grid="both")
    axis.plot(list(cost), [cost[rows] / cost[1] for rows in cost], "o-", color=style.INK, label="measured here")
    axis.plot(list(cost), list(cost), ":", color=style.QUIET, label="proportional to query tokens")
    axis.axhline(1, color=style.GREEN, label="free")
    axis.axhline(out.tokens_per_forward, color=style.BLUE, linestyle="--", label="T with all anchors: pays below")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    style.plain_numbers(axis.xaxis)
    style.plain_numbers(axis.yaxis)
    style.legend(axis, loc="upper left")
    plt.show()
else:
    print("LIVE is False: nothing is measured here")
