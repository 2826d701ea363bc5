"""zaya_jax: ZAYA1 in JAX, turned into a block-diffusion model that drafts and verifies in one forward pass.

The rooms, from the top: evaluation, analysis, sampling, training, data, interop, parallel, architecture. A room imports
only from rooms below it.

What a user needs stands here by name (docs/api.md), and each name's room is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as below, for type checkers and editors
    from zaya_jax.architecture import Layout, Zaya, ZayaConfig, preset
    from zaya_jax.architecture.training_layouts import TrainingLayout, register_layout
    from zaya_jax.errors import UserError
    from zaya_jax.evaluation.likelihood import likelihood
    from zaya_jax.evaluation.pass_at_k import pass_at_k
    from zaya_jax.evaluation.task_accuracy import Arm, Outcome, Trial, run_task, task_rows
    from zaya_jax.interop.formats.huggingface import save_huggingface
    from zaya_jax.interop.pretrained import load_pretrained
    from zaya_jax.sampling import (
        Generation,
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
    "architecture": ("Layout", "Zaya", "ZayaConfig", "preset"),
    "architecture.training_layouts": ("TrainingLayout", "register_layout"),
    "data.tasks": ("Problem", "Task", "make_task", "register_task"),
    "data.templates": ("ChatTemplate", "load_template"),
    "data.tokenizers": ("BPETokenizer", "ByteTokenizer", "Tokenizer", "load_tokenizer"),
    "errors": ("UserError",),
    "evaluation.likelihood": ("likelihood",),
    "evaluation.pass_at_k": ("pass_at_k",),
    "evaluation.task_accuracy": ("Arm", "Outcome", "Trial", "run_task", "task_rows"),
    "interop.huggingface": ("save_huggingface",),
    "interop.pretrained": ("load_pretrained",),
    "sampling": (
        "Generation", "SamplerConfig", "Session", "Streamer", "Target", "choose_sampler", "generate",
        "register_target",
    ),
    "training.objective": ("Objective", "register_objective"),
    "training.optimizer": ("OptimizerConfig",),
}  # fmt: skip
_HOME = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "Arm", "BPETokenizer", "ByteTokenizer", "ChatTemplate", "Generation", "Layout", "Objective", "OptimizerConfig",
    "Outcome", "Problem", "SamplerConfig", "Session", "Streamer", "Target", "Task", "Tokenizer", "TrainingLayout",
    "Trial", "UserError", "Zaya", "ZayaConfig", "choose_sampler", "generate", "likelihood", "load_pretrained",
    "load_template", "load_tokenizer", "make_task", "pass_at_k", "preset", "register_layout", "register_objective",
    "register_target", "register_task", "run_task", "save_huggingface", "task_rows",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
