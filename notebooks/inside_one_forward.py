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
# # Inside one forward
#
# A TiDAR forward verifies a block of drafts and drafts the next block after every possible outcome. This notebook
# loads the quickstart's committed model (a toy: worked additions) and looks inside: who sees whom, which token comes
# before which, and what an answer yields forward by forward. It always runs the model, in under a minute on two CPU
# cores, so its live mode only samples more prompts: `LIVE = True` below, or `ZAYA_LIVE=1` outside. `FOLDER` below (or
# `ZAYA_RESULTS` outside) names the folder of your own run, of a model that drafts. Run it from `notebooks/` or the
# repository's root.

# %%
import html
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, display

from zaya_jax import Layout, SamplerConfig, Zaya, generate, load_pretrained
from zaya_jax.architecture.layout import CONTEXT, START
from zaya_jax.errors import UserError
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.plots.layout_plot import draw_visibility, layout_picture
from zaya_jax.reporting.results import results_folder
from zaya_jax.reporting.run_files import load_run
from zaya_jax.runs.tokens import checkpoint_of, choose_tokenizer
from zaya_jax.tasks import make_task

FOLDER = ""  # of your own run (its --workdir), or ZAYA_RESULTS outside; empty: the quickstart's
LIVE = bool(os.environ.get("ZAYA_LIVE"))
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles faster; nothing is timed here
root = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "results").is_dir())
folder = results_folder(FOLDER or os.environ.get("ZAYA_RESULTS"), root / "results" / "quickstart")
try:
    run = load_run(folder)
except FileNotFoundError as missing:
    raise UserError(f"{missing} (inside a sweep: one of its runs/)") from None
if run.is_autoregressive:
    raise UserError(f"results: {folder} holds a run that never drafts, may be one with a phase that does")
checkpoint = folder / "model" if (folder / "model").is_dir() else checkpoint_of(str(folder))
config, variables = load_pretrained(checkpoint)
model, tokenizer = Zaya(config), choose_tokenizer(None, checkpoint, config)[1]
BLOCK = run.block_size
asked = [item for item in run.config["data"]["mixture"] if "task" in item][:1]
if asked:  # new test problems of its first task
    task = make_task(asked[0]["task"], **(asked[0].get("options") or {}))
    texts = [problem.prompt for problem in task.problems("test", 32 if LIVE else 8, 1_000)]
else:
    texts = list(dict.fromkeys(sample["prompt"] for sample in run.samples))[: 32 if LIVE else 8]
texts.sort(key=len, reverse=True)  # the first is looked at closely
prompts = [tokenizer.encode(text) for text in texts]
# %matplotlib inline

# %% [markdown]
# ## Who sees whom
# The visibility rule as a picture. Training: a clean token sees the clean tokens up to itself; a mask token sees the
# clean tokens before its block, and its own block, never another one. Sampling: the same rule after a cache; every
# block starts after another number of the tokens that are being verified.

# %%
display(layout_picture(run))

# %% [markdown]
# The same rule as text: `#` a clean key, `o` a slot of the same block, `.` hidden. Left of each row: the token and its
# position in the text. First a training row (every position drafted, the blocks' grid shifted by 1), then an inference
# row: two tokens to verify after four cached ones, and a block after each.

# %%
training = Layout.tidar([list(b"1+2=")], block_size=3, offset=1)
sampling = Layout.verify_and_draft([list(b"03")], start=4, anchors=(1, 2), block_size=2)
print(training.render(), end="\n\n")
print(sampling.render())

# %% [markdown]
# ## Which token comes before which
# CCA looks back through two convolutions and a delayed value, and an attention mask does not stop it. So a `Layout`
# says which token comes before each one *in the text* (`predecessor`). A convolution that knows of no layout reads the
# row before it in memory instead (`Layout.layout_unaware()`, the negative control). Below, both for the two rows above:
# clean tokens lose nothing by it, the first slot of a block does.


# %%
def names(layout, cached):
    """Every row's name, and those of what may stand before it."""
    clean, block = layout.clean_size, np.asarray(layout.block[0])
    what = ["token" if i < clean else f"block {block[i]}, slot" for i in range(len(block))]
    rows = [f"{w} @{p}" for w, p in zip(what, np.asarray(layout.position[0]), strict=True)]
    return {**dict(enumerate(rows)), START: "nothing", CONTEXT: f"cache @{cached - 1}"}


for title, layout, cached in (("training", training, 0), ("sampling", sampling, 4)):
    name = names(layout, cached)
    print(f"{title:18}{'before it in the text':24}{'before it in memory'}")
    for row, (right, unaware) in enumerate(
        zip(layout.predecessor[0], layout.layout_unaware().predecessor[0], strict=True)
    ):
        print(f"{name[row]:18}{name[int(right)]:24}{name[int(unaware)]:29}{'' if right == unaware else '<- wrong'}")
    print()

# %% [markdown]
# Attention itself does not change: `layout_unaware()` leaves the picture above as it is. What it costs this trained
# model, with the same weights: logits of clean tokens, hence everything autoregressive, stay the same; drafts are made
# from the wrong neighbours. Lossless sampling still yields the greedy AR text, only in more forwards. (A model
# *trained* so is in `configs/sweeps/architecture.py` and the figure `negative_control`.)

# %%
greedy = dict(temperature=0.0, stop_tokens=tuple(tokenizer.eos_ids))
unaware = Zaya(config.replace(succession="row"))
clean = [jax.jit(m.apply)(variables, Layout.causal([prompts[0]])).logits for m in (model, unaware)]
print(f"largest difference of clean logits: {np.abs(clean[0] - clean[1]).max():g}")
drafting = SamplerConfig("single_pass", BLOCK, **greedy)
plain = generate(model, variables, prompts, SamplerConfig("autoregressive", **greedy), 64)
for words, each in (("along the text", model), ("along the row", unaware)):
    out = generate(each, variables, prompts, drafting, 64)
    same = sum(a == b for a, b in zip(plain.tokens, out.tokens, strict=True))
    print(f"{words}: {out.tokens_per_forward:.2f} tokens a forward; {same} of {len(prompts)} texts are greedy AR's")

# %% [markdown]
# ## What one answer yields, forward by forward
# The same greedy tokens, in fewer forwards. `|` marks where a forward ended; the first is the prompt's own. `■` is the
# stop token, `⏎` a line's end.


# %%
def text_of(tokens):
    """What tokens say, each on its own; what says nothing is a square."""
    return "".join(tokenizer.decode([int(t)]) or "■" for t in tokens).replace("\n", "⏎")


for name, sampler in {
    "autoregressive": SamplerConfig("autoregressive", **greedy),
    "lossless, all branch points": drafting,
    f"lossless, branch points 1 and {BLOCK}": SamplerConfig("single_pass", BLOCK, (1, BLOCK), **greedy),
}.items():
    out = generate(model, variables, prompts, sampler, max_new_tokens=64)
    ends = np.cumsum(out.accepted[0])
    runs = [text_of(out.tokens[0][end - n : end]) for end, n in zip(ends, out.accepted[0], strict=True)]
    print(f"{name}: {len(out.tokens[0]) / len(runs):.2f} tokens a forward", end=" ")
    print(f"of {out.rows_per_forward:g} query tokens")
    print("   " + "|".join(runs))

# %% [markdown]
# Each of those forwards but the first verified a block. A streamer sees what was proposed and what became final: green
# drafts were accepted, struck red ones refused, and the bold blue token is the pending token, drawn from the
# model's own distribution, after the last accepted draft. The next block starts after it.


# %%
class Watcher:
    """Keeps the first text's new tokens, and the drafts after them, of every forward."""

    def __init__(self):
        self.new, self.drafts = [], []

    def put(self, tokens):
        self.new.append(tokens[0])

    def put_draft(self, tokens):
        self.drafts.append(tokens[0])

    def end(self):
        """Nothing is left to do."""


def coloured(tokens, colour, more=""):
    return f"<span style='color:{colour};{more}'>{html.escape(text_of(tokens))}</span>"


for temperature in (0.0, 1.0):
    watcher, sampler = (
        Watcher(),
        SamplerConfig("single_pass", BLOCK, temperature=temperature, stop_tokens=greedy["stop_tokens"]),
    )
    generate(model, variables, prompts, sampler, 64, seed=1, streamer=watcher)
    lines = [f"temperature {temperature:g}"]
    for number, (new, draft) in enumerate(zip(watcher.new, [[], *watcher.drafts], strict=False), start=1):
        if new:  # this text may end before others of the batch
            kept = int(np.cumprod([a == b for a, b in zip(new, draft, strict=False)]).sum())
            marked = coloured(new[:kept], style.GREEN) + coloured(new[kept:], style.BLUE, "font-weight:bold")
            marked += coloured(draft[kept:], style.VERMILION, "text-decoration:line-through;opacity:0.6")
            lines.append(f"forward {number:2}: {len(new)} tokens, {kept} of {len(draft)} drafts accepted  {marked}")
    display(HTML("<pre>" + "\n".join(lines) + "</pre>"))

# %% [markdown]
# The second of those forwards as a picture: the prompt in the cache, a block of tokens to verify, and a block after
# each outcome. Only one of the blocks will be kept; the query tokens of all of them are what the step costs.

# %%
figure, axis = plt.subplots(figsize=(10, 8.5), layout="constrained")
step = Layout.verify_and_draft(np.zeros((1, BLOCK), int), len(prompts[0]), tuple(range(1, BLOCK + 1)), BLOCK)
title = f"{step.tokens.shape[1]} query tokens after {len(prompts[0])} cached tokens"
draw_visibility(axis, step, cached=len(prompts[0]), title=title)
axis.tick_params(axis="x", labelrotation=90)
plt.show()

# %% [markdown]
# ## Tokens per forward against temperature
# Lossless at every temperature: drafts are accepted with probability min(1, p/q), and the token after a rejection
# comes from the residual. Temperature is a run-time value, so the whole sweep compiles once.

# %%
temperatures = [0.0, 0.5, 1.0, 1.5]
rates = []
for temperature in temperatures:
    sampler = SamplerConfig("single_pass", BLOCK, temperature=temperature, stop_tokens=greedy["stop_tokens"])
    rates.append(generate(model, variables, prompts, sampler, max_new_tokens=64).tokens_per_forward)
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(temperatures, rates, marker="o", color=style.BLUE)
axis.set_ylim(0, BLOCK)
style.tidy(axis, f"{len(prompts)} prompts, block size {BLOCK}, all anchors", "temperature", "tokens per forward")
plt.show()

# %% [markdown]
# ## What it costs on the machine that made the run
# One forward's time against its query tokens (batch 1). Drafting pays where the curve lies below the tokens a forward
# yields.

# %%
for row in run.rows("cost"):
    ratio = f"{row['cost_ratio']:.2f}x one row"
    print(f"{row['rows']:>3g} query tokens: {row['milliseconds']:.3f} ms, {ratio} ({row['hardware']})")
