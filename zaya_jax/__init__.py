"""zaya_jax: ZAYA1 in JAX, turned into a block-diffusion model that drafts and verifies in one forward pass.

The packages, from the top; each imports only from those below it, and from the files beside them:

* command_line: what commands share: flags, one-line errors, files of prompts
* runs: one run: its configuration, its folder, what it was made with, its stages
* evaluation: likelihood, tasks under each sampler, the lm-eval adapter, where a forward's time goes
* reporting: result files, tables, pages, plots, figures, report
* aot: compiling for GPUs that are not here
* costs: parameters, FLOPs, memory, roofline
* sampling: `generate`: one loop, five modes; distributions, random streams, drafters, branch points
* training: objectives, gradients, optimizers, loop, checkpoints
* tasks: problems whose answers a program can check
* data: text corpora and chats to packed batches
* sandbox: runs a program that nobody has read
* interop: checkpoints of every layout and family, in and out
* text: tokenizers, chat templates, text as its tokens come in
* parallel: devices, processes, the mesh and its rules
* architecture: config, layout, attention, experts, model, cache

What a user needs stands here by name (docs/api.md), and each name's package is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from zaya_jax.architecture import Execution, Layout, Zaya, ZayaConfig, for_decoding, preset
    from zaya_jax.architecture.training_layouts import TrainingLayout, register_layout
    from zaya_jax.errors import UserError
    from zaya_jax.evaluation.likelihood import likelihood
    from zaya_jax.evaluation.pass_at_k import pass_at_k
    from zaya_jax.evaluation.task_accuracy import EvaluationProtocol, NamedSampler, TaskResult, run_task, task_rows
    from zaya_jax.interop.families.table import Family, register_family
    from zaya_jax.interop.formats.huggingface import save_huggingface
    from zaya_jax.interop.pretrained import load_pretrained
    from zaya_jax.sampling import (
        Generation,
        Request,
        SamplerConfig,
        Session,
        Streamer,
        Target,
        choose_sampler,
        generate,
        register_target,
    )
    from zaya_jax.tasks import Problem, Task, make_task, register_task
    from zaya_jax.text.templates import ChatTemplate, load_template
    from zaya_jax.text.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer, load_tokenizer
    from zaya_jax.training.objective import Objective, register_objective
    from zaya_jax.training.optimizer import OptimizerConfig

_MODULES = {
    "architecture": ("Execution", "Layout", "Zaya", "ZayaConfig", "for_decoding", "preset"),
    "architecture.training_layouts": ("TrainingLayout", "register_layout"),
    "tasks": ("Problem", "Task", "make_task", "register_task"),
    "text.templates": ("ChatTemplate", "load_template"),
    "text.tokenizers": ("BPETokenizer", "ByteTokenizer", "Tokenizer", "load_tokenizer"),
    "errors": ("UserError",),
    "evaluation.likelihood": ("likelihood",),
    "evaluation.pass_at_k": ("pass_at_k",),
    "evaluation.task_accuracy": ("NamedSampler", "TaskResult", "EvaluationProtocol", "run_task", "task_rows"),
    "interop.families.table": ("Family", "register_family"),
    "interop.formats.huggingface": ("save_huggingface",),
    "interop.pretrained": ("load_pretrained",),
    "sampling": (
        "Generation", "Request", "SamplerConfig", "Session", "Streamer", "Target", "choose_sampler", "generate",
        "register_target",
    ),
    "training.objective": ("Objective", "register_objective"),
    "training.optimizer": ("OptimizerConfig",),
}  # fmt: skip
_HOME = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

_moved = importlib.import_module(f"{__name__}.moved")
_moved.install(__name__, _moved.MOVED)
__version__ = "0.1.0"
__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "ChatTemplate",
    "EvaluationProtocol",
    "Execution",
    "Family",
    "Generation",
    "Layout",
    "NamedSampler",
    "Objective",
    "OptimizerConfig",
    "Problem",
    "Request",
    "SamplerConfig",
    "Session",
    "Streamer",
    "Target",
    "Task",
    "TaskResult",
    "Tokenizer",
    "TrainingLayout",
    "UserError",
    "Zaya",
    "ZayaConfig",
    "choose_sampler",
    "for_decoding",
    "generate",
    "likelihood",
    "load_pretrained",
    "load_template",
    "load_tokenizer",
    "make_task",
    "pass_at_k",
    "preset",
    "register_family",
    "register_layout",
    "register_objective",
    "register_target",
    "register_task",
    "run_task",
    "save_huggingface",
    "task_rows",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        now = _moved.NAMES.get(name)
        hint = f": it is {now} now" if now else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
