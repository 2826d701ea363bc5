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
# # Reproduce the figures
#
# Ten figures in the layout of TiDAR's and Zyphra's, drawn from committed result files by the code after
# `python -m experiments.figures`. Published numbers are hollow, hatched or purple; ours are toys. A figure whose inputs
# are not there says which command makes them.
#
# `LIVE = True` below (or `ZAYA_LIVE=1` outside) also samples the committed quickstart model on a few prompts, writes
# the rows as a sweep would, and draws one of the figures from them, in under two minutes on two CPU cores.
# `FOLDER` below (or `ZAYA_RESULTS` outside) names your own sweep's or run's folder, or a whole folder of results; a
# figure that takes other rows says so. Run it from `notebooks/` or from the repository's root.

# %%
import os
import shutil
import tempfile
from pathlib import Path

from zaya_jax import SamplerConfig, Zaya, load_pretrained
from zaya_jax.evaluation.task_accuracy import EvaluationProtocol, NamedSampler, run_task, task_rows
from zaya_jax.reporting.paper.figures import FIGURES, show
from zaya_jax.reporting.results import results_folder, write_sweep
from zaya_jax.runs.provenance import hardware
from zaya_jax.tasks import make_task
from zaya_jax.text.tokenizers import ByteTokenizer

FOLDER = ""  # of your own sweep or run (its --workdir), or ZAYA_RESULTS outside; empty: this project's results
LIVE = bool(os.environ.get("ZAYA_LIVE"))
root = next(p for p in (Path.cwd(), Path.cwd().parent) if (p / "results").is_dir())
RESULTS = results_folder(FOLDER or os.environ.get("ZAYA_RESULTS"), root / "results")
# %matplotlib inline

for number, (name, figure) in enumerate(FIGURES.items(), start=1):
    lacking = [each.path for each in figure.inputs if not each.optional and not each.file(RESULTS).exists()]
    print(f"{number:2} {name:17} {figure.shows}{'' if not lacking else '; not there: ' + ', '.join(lacking)}")

# %% [markdown]
# ## pass@16 by task
# After the bar chart in Zyphra's post: what mixing costs in quality. The lower row is also a check of correctness: a
# lossless sampler's difference from AR, paired on the same prompts, should be no more than chance.

# %%
show("pass_at_16", RESULTS)

# %% [markdown]
# ## Tokens per forward
# AR, lossless, mixing beside the published 1, 4.6 and 7.7, and, below, the wall-clock speed-up on this machine.

# %%
show("speedup", RESULTS)

# %% [markdown]
# ## Decoding strategies
# TiDAR's table with one model of ours. The tasks differ, so compare the order of the lines, not their places.

# %%
show("strategies", RESULTS)

# %% [markdown]
# ## Full against random masking
# TiDAR trains with every slot masked; the alternative reveals a random share of them.

# %%
show("masking", RESULTS)

# %% [markdown]
# ## Block size
# T and quality of models trained with different blocks; more in `notebooks/block_size_ablation`.

# %%
show("block_size", RESULTS)

# %% [markdown]
# ## Mixing by beta
# Tokens per forward against quality as beta, the draft's weight, grows; more in `notebooks/samplers_and_their_options`.

# %%
show("beta", RESULTS)

# %% [markdown]
# ## Free token slots
# A forward's time against its query tokens on the CPU that ran the benchmarks, beside plain matrix products.

# %%
show("free_slots", RESULTS)

# %% [markdown]
# ## Proposals a forward, by hardware
# A roofline from published peaks: a bound, nothing was run; more in `notebooks/roofline_and_cost_model`.

# %%
show("roofline", RESULTS)

# %% [markdown]
# ## T against anchors
# After how many accepted lengths the next block must be drafted.

# %%
show("anchors", RESULTS)

# %% [markdown]
# ## The negative control
# A model whose convolutions look back along the row in memory instead of the text: does the AR loss show it, does T?

# %%
show("negative_control", RESULTS)

# %% [markdown]
# ## Live: one figure from new rows
# The figure of tokens per forward, from the quickstart model (block 8, additions): three samplers, two temperatures, 32
# prompts, through the function that evaluates every run. The rows go through the file that a sweep would leave.

# %%
if LIVE:
    quickstart = root / "results" / "quickstart"
    config, variables = load_pretrained(quickstart / "model")
    tokenizer, addition = ByteTokenizer(), make_task("addition")
    rest = dict(block_size=8, stop_tokens=(tokenizer.eos_id,))
    samplers = [
        NamedSampler(name, SamplerConfig(mode, target=target, temperature=temperature, **rest))
        for temperature in (0.0, 1.0)
        for name, mode, target in (
            ("autoregressive", "autoregressive", None),
            ("lossless", "single_pass", None),
            ("mix_stale", "single_pass", "mix_stale"),
        )
    ]
    protocol = EvaluationProtocol(prompts=32, samples=1, batch=32, max_new_tokens=64, seed=1_000)
    results = run_task(Zaya(config), variables, tokenizer, addition, samplers, protocol)
    common = {"kind": "sampling", "model": "quickstart", "source": addition.name, "hardware": hardware()}
    rows = [common | row for row in task_rows(results, protocol)]
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweeps" / "study"
        (sweep / "runs" / "live").mkdir(parents=True)
        shutil.copy(quickstart / "config.json", sweep / "runs" / "live")  # says how large the model is
        write_sweep(sweep / "results.csv", {"live": ({}, rows)})
        show("speedup", Path(folder))
else:
    print("LIVE is False: nothing is sampled here")
