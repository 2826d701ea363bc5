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
# # The samplers and their options
#
# One trained model can be sampled in many ways. `SamplerConfig` says how a forward is spent (`mode`), whose
# distribution comes out (`target`), and has options that are run-time values. This notebook reads what the committed
# benchmarks and sweeps measured: strategies, branch points against T, the mixing weight beta, the draft temperature.
# The models are toys.
#
# `LIVE = True` below (or `ZAYA_LIVE=1` outside) also changes the options on the committed quickstart model, counts what
# compiles and compares greedy texts, in under two minutes on two CPU cores. `FOLDER` below (or `ZAYA_RESULTS` outside)
# names your own sweep's or run's folder; what was not measured there is said in a line. Run it from `notebooks/` or
# from the repository's root.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

from zaya_jax import SamplerConfig, Zaya, generate, load_pretrained
from zaya_jax.reporting.paper.figures import FIGURES, show
from zaya_jax.reporting.paper.sweep_rows import anchors_in_words
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.results import results_folder
from zaya_jax.reporting.tables import drafting
from zaya_jax.sampling.core.targets import MODES, targets_of
from zaya_jax.sampling.loop import run, start
from zaya_jax.tasks import make_task
from zaya_jax.text.tokenizers import ByteTokenizer

FOLDER = ""  # of your own sweep or run (its --workdir), or ZAYA_RESULTS outside; empty: this project's results
LIVE = bool(os.environ.get("ZAYA_LIVE"))
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles faster; nothing is timed here
root = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "results").is_dir())
RESULTS = results_folder(FOLDER or os.environ.get("ZAYA_RESULTS"), root / "results")
# %matplotlib inline

# %% [markdown]
# ## Modes and targets
# `autoregressive` is one token a forward. `single_pass` verifies a block and drafts the next in the same forward.
# `two_pass` drafts in one forward and verifies in another, which needs far fewer query tokens. `block_diffusion`
# verifies nothing. The target says whose distribution is sampled: `autoregressive` (lossless) is exactly the AR
# distribution; `mix_stale` averages in the logits that drew the draft, `mix_fresh` those of a block that starts at that
# very position. Rows are what a forward computes for each sequence, here at block 16 with every anchor.

# %%
lines = ["| mode | target | query tokens per forward, block 16 |", "|---|---|---|"]
for mode in MODES:
    for target in targets_of(mode) if mode not in ("auto", "drafter") else ():
        lines.append(f"| {mode} | {target} | {SamplerConfig(mode, 16, target=target).rows_per_forward:g} |")
display(Markdown("\n".join([*lines, "| auto | any of the first two modes' | measured, then raced |"])))

# %% [markdown]
# ## Strategies on one model
# TiDAR's table of decoding strategies with our block-16 model, on the same prompts and seeds.

# %%
show("strategies", RESULTS)

# %%
measured = FIGURES["strategies"].inputs[0]
bench = measured.read(RESULTS) if measured.file(RESULTS).exists() else {}
if bench:
    display(Markdown(drafting.strategies_table(bench["strategies"])))
for temperature in (0.0, 1.0) if bench else ():
    rows = {row["strategy"]: row for row in bench["strategies"] if row["temperature"] == temperature}
    kept = [name for name in rows if rows[name]["accuracy_high"] >= rows["autoregressive"]["accuracy_low"]]
    best = max(kept, key=lambda name: rows[name]["tokens_per_forward"])
    print(f"temperature {temperature:g}: accuracy within reach of AR's (the intervals meet): {' | '.join(kept)};")
    print(f"  most tokens a forward among them: {best} with T {rows[best]['tokens_per_forward']:.2f}")

# %% [markdown]
# ## How many anchors
# With a branch point after every accepted length a forward computes block_size^2 + block_size tokens. A budget of K
# keeps the best K of them (`SamplerConfig(anchors=K, acceptance=...)`); the others' drafts come late, which costs T and
# never exactness.

# %%
show("anchors", RESULTS)

# %%
if bench:
    display(Markdown(drafting.anchors_table(bench["anchors"])))
for temperature in (0.0, 1.0) if bench else ():
    rows = [row for row in bench["anchors"] if row["temperature"] == temperature]
    for share in (0.8, 0.95, 0.99):
        least = min((r for r in rows if drafting.kept_by_anchors(rows, r) >= share), key=lambda r: r["anchors"])
        part = least["rows_per_forward"] / max(row["rows_per_forward"] for row in rows)
        print(f"temperature {temperature:g}: {share:.0%} of all branch points' T", end=" ")
        print(f"needs {least['anchors']} of them and {part:.0%} of the query tokens", end=" ")
        print("(among the budgets that were measured)")

# %% [markdown]
# ## Beta, the weight of the draft
# `mix_stale` tests a draft against the softmax of (1 - beta) AR logits + beta logits that drew it: beta 0 is lossless,
# beta 1 believes the draft. It buys tokens per forward with quality.

# %%
show("beta", RESULTS)

# %% [markdown]
# ## Every option that was swept
# Rows of `configs/sweeps/samplers.py`, one trained model, or your own. The p-value is of a permutation test of task
# outcomes against AR at the same temperature: for a lossless sampler (mixing with beta 0 is one) it falls below 0.05 by
# chance alone, one time in twenty. The temperature of the drafts may change T alone. Wall-clock times were
# measured beside other jobs: rough.

# %%
try:
    swept = [r for r in FIGURES["beta"].inputs[0].read(RESULTS) if r["sampler"] not in (None, "autoregressive")]
    swept = [r for r in swept if r["accuracy"] is not None]  # continued texts have none
except FileNotFoundError as missing:
    print(missing)
    swept = []
heads = ("task", "sampler", "temperature", "of drafts", "beta", "branch points", "T", "query tokens per forward")
heads += ("wall-clock vs AR", "pass@1", "p")
lines = ["|" + "|".join(heads) + "|", "|---" * len(heads) + "|"]
for row in sorted(swept, key=lambda r: (r["source"], r["sampler"], r["temperature"])):
    draft, beta, p = row["changes"].get("evaluate.draft_temperature"), row["beta"], row["p_value"]
    cells = [row["source"].replace("_", " "), row["sampler"], f"{row['temperature']:g}"]
    cells += ["same" if draft is None else draft]
    cells += ["" if beta is None else beta, anchors_in_words([row]).split()[0], f"{row['tokens_per_forward']:.2f}"]
    cells += [f"{row['rows_per_forward']:g}"]
    cells += ["" if row["speedup"] is None else f"{row['speedup']:.2f}x"]
    cells += [f"{row['accuracy']:.1%}"]
    lines.append("|" + "|".join(map(str, [*cells, "" if p is None else f"{p:.2g}"])) + "|")
if swept:
    display(Markdown("\n".join(lines)))
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    style.tidy(axis, "every row of the table", "tokens per forward", "pass@1", grid="both")
    for sampler, greedy in dict.fromkeys((row["sampler"], row["temperature"] == 0) for row in swept):
        chosen = [r for r in swept if (r["sampler"], r["temperature"] == 0) == (sampler, greedy)]
        points = ([row[column] for row in chosen] for column in ("tokens_per_forward", "accuracy"))
        colour = style.SAMPLER_COLOURS.get(sampler, style.VERMILION)
        axis.plot(
            *points, "s" if greedy else "o", color=colour, alpha=0.7, label=f"{sampler}, {'greedy' * greedy or 'drawn'}"
        )
    axis.legend(frameon=False, fontsize=8)
    plt.show()
for sampler in dict.fromkeys(row["sampler"] for row in swept):
    tested = [row["p_value"] for row in swept if row["sampler"] == sampler and row["p_value"] is not None]
    low = sum(p < 0.05 for p in tested)
    print(f"{sampler}: p < 0.05 in {low} of {len(tested)} comparisons with AR; by chance {0.05 * len(tested):.1f}")

# %% [markdown]
# ## Live: change the options
# The quickstart model (block 8) on 32 additions. First greedy lossless drafting beside greedy autoregression, token by
# token. Then temperature, draft temperature and beta: all are run-time values, so after a mode's first call the number
# of compiled programs must not move.

# %%
if LIVE:
    config, variables = load_pretrained(root / "results" / "quickstart" / "model")
    model, tokenizer, addition = Zaya(config), ByteTokenizer(), make_task("addition")
    problems = addition.problems("test", 32, 1_000)
    prompts = [tokenizer.encode(problem.prompt) for problem in problems]


def sample(mode, **options):
    """One batch; also its share of right answers and the programs that are compiled by now."""
    out = generate(
        model, variables, prompts, SamplerConfig(mode, 8, stop_tokens=(tokenizer.eos_id,), **options), 64, 1_000
    )
    right = np.mean([addition.check(p, tokenizer.decode(t)) for p, t in zip(problems, out.tokens, strict=True)])
    return out, right, start._cache_size() + run._cache_size()


# %%
if LIVE:
    plain, _, _ = sample("autoregressive", temperature=0.0)
    drafted, _, compiled = sample("single_pass", temperature=0.0)
    same = sum(a == b for a, b in zip(plain.tokens, drafted.tokens, strict=True))
    print(f"greedy, lossless: {same} of {len(prompts)} texts are AR's token by token, T", end=" ")
    print(f"{drafted.tokens_per_forward:.2f} against {plain.tokens_per_forward:.2f}")
    assert plain.tokens == drafted.tokens
    options = {
        "temperature": [dict(temperature=t) for t in (0.0, 0.5, 1.0, 1.5)],
        "draft_temperature": [dict(temperature=1.0, draft_temperature=t) for t in (0.0, 0.3, 0.7, 1.0, 1.5)],
        "beta": [dict(target="mix_stale", beta=beta) for beta in (0.0, 0.25, 0.5, 0.75, 1.0)],
    }
    figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.4), sharey=True, layout="constrained")
    for axis, (name, settings) in zip(axes, options.items(), strict=True):
        if name == "beta":  # another target is another program: compiled here, once
            compiled = sample("single_pass", **settings[0])[2]
        turned = [sample("single_pass", **setting) for setting in settings]
        values, speed = [s[name] for s in settings], [out.tokens_per_forward for out, _, _ in turned]
        print(f"{name} at {', '.join(map(str, values))}: {turned[-1][2] - compiled} new programs")
        assert turned[-1][2] == compiled
        style.tidy(axis, "", name.replace("_", " "), "tokens per forward" if name == "temperature" else "", grid="both")
        axis.plot(values, speed, "o-", color=style.ORANGE if name == "beta" else style.BLUE)
        for x, y, (_, right, _) in zip(values, speed, turned, strict=True):
            axis.annotate(f"{right:.0%}", (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
        axis.margins(0.15)
    title = "live: the quickstart model, 32 additions, block 8, all branch points; beside a point its accuracy (toy)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    plt.show()
else:
    print("LIVE is False: nothing is sampled here")
