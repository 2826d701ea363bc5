"""zaya_jax: ZAYA1 in JAX, turned into a block-diffusion model that drafts and verifies in one forward pass.

The packages, from the top; each imports only from those below it, and from the files beside them:

* command_line: what commands share: flags, one-line errors, files of prompts
* runs: one run: its configuration, its folder, what it was made with, its stages
* evaluation: likelihood, tasks under each sampler, the lm-eval adapter, where a forward's time goes
* reporting: result files, tables, pages, plots, figures, report
* aot: compiling for GPUs that are not here
* costs: parameters, FLOPs, memory, roofline
* sampling: `generate`: one loop, four modes; distributions, random streams, branch points
* training: objectives, gradients, optimizers, loop, checkpoints
* tasks: problems whose answers a program can check
* data: text corpora and chats to packed batches
* sandbox: runs a program that nobody has read
* interop: checkpoints of every layout and family, in and out
* text: tokenizers, chat templates, text as its tokens come in
* parallel: devices, processes, the mesh and its rules
* architecture: config, layout, attention, experts, model, cache
"""

from zaya_jax.architecture import Layout, Zaya, ZayaConfig, preset
from zaya_jax.interop.pretrained import load_pretrained
from zaya_jax.sampling import Generation, SamplerConfig, generate

__version__ = "0.1.0"
__all__ = ["Generation", "Layout", "SamplerConfig", "Zaya", "ZayaConfig", "generate", "load_pretrained", "preset"]
