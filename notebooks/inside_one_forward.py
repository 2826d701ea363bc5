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
# A TiDAR forward verifies a block of drafts and drafts the next block behind every possible outcome. This notebook
# loads the quickstart's committed model (a toy: 0.37M parameters, worked additions) and looks inside. Run it from
# `notebooks/` or the repository's root; it takes under a minute on two CPU cores.

# %%
from pathlib import Path

import matplotlib.pyplot as plt

from zaya_jax import Layout, SamplerConfig, Zaya, generate, load_pretrained
from zaya_jax.analysis.results import read_results

root = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "results").is_dir())
config, variables = load_pretrained(root / "results" / "quickstart" / "model")
model = Zaya(config)

# %% [markdown]
# ## Who sees whom
# `#` a clean key, `o` a slot of the same block, `.` hidden. Left of each row: the token and its position in the text.
# First a training row (every position drafted, grid offset 1), then an inference row: two tokens to verify, a block
# behind each.

# %%
print(Layout.tidar([list(b"1+2=")], block_size=3, offset=1).render())
print()
print(Layout.verify_and_draft([list(b"03")], start=4, anchors=(1, 2), block_size=2).render())

# %% [markdown]
# ## What one prompt yields, forward by forward
# The same greedy tokens, in fewer forwards. `|` marks where a forward ended; the first is the prompt's own.

# %%
prompt = list(b"478+964=")
samplers = {
    "autoregressive": SamplerConfig("autoregressive", temperature=0.0, stop_tokens=[257]),
    "lossless, all anchors": SamplerConfig("single_pass", 8, temperature=0.0, stop_tokens=[257]),
    "lossless, anchors 1 and 8": SamplerConfig("single_pass", 8, (1, 8), temperature=0.0, stop_tokens=[257]),
}
for name, sampler in samplers.items():
    out = generate(model, variables, [prompt], sampler, max_new_tokens=64)
    text, at, runs = out.tokens[0], 0, []
    for count in out.accepted[0]:
        runs.append("".join(chr(t) if t < 256 else "" for t in text[at : at + count]).replace("\n", "⏎"))
        at += count
    print(f"{name}: {out.tokens_per_forward:.2f} tokens a forward, {out.rows_per_forward} rows a forward")
    print("   " + "|".join(runs))

# %% [markdown]
# ## Tokens per forward against temperature
# Lossless at every temperature: drafts are accepted with probability min(1, p/q), and what is settled after a rejection
# comes from the residual. Temperature is a run-time value, so the whole sweep compiles once.

# %%
pairs = [(12, 7), (305, 98), (64, 640), (999, 1), (58, 471), (7, 7), (820, 93), (5, 555)]
prompts = [list(f"{a}+{b}=".encode()) for a, b in pairs]
temperatures = [0.0, 0.5, 1.0, 1.5]
rates = []
for temperature in temperatures:
    sampler = SamplerConfig("single_pass", 8, temperature=temperature, stop_tokens=[257])
    rates.append(generate(model, variables, prompts, sampler, max_new_tokens=64).tokens_per_forward)
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(temperatures, rates, marker="o")
axis.set(xlabel="temperature", ylabel="tokens per forward", ylim=(0, 8))
axis.set_title("8 prompts, block size 8, all anchors (toy model)", fontsize=9)
figure.tight_layout()

# %% [markdown]
# ## What it costs on the CPU that made the committed run
# One forward's time against its rows (batch 1). Drafting pays where the curve lies below the tokens a forward yields.

# %%
for row in read_results(root / "results" / "quickstart" / "results.csv"):
    if row["kind"] == "cost":
        ratio = f"{row['cost_ratio']:.2f}x one row"
        print(f"{row['rows']:>3g} rows: {row['milliseconds']:.3f} ms, {ratio} ({row['hardware']})")
