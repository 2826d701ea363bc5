"""Compiles a config's programs for a GPU that is not here, and says what memory they take and what they consist of.

    python -m experiments.lower --config=configs/quickstart.py --target=mi300x
    python -m experiments.lower --config=configs/quickstart.py:preset=zaya1_8b --target=mi355x --what=decode \\
        --context=32768 --output=decode.json

Programs: the train step of a phase, and for sampling on one device the prefill, the loop of one-token steps and the
loop of verify-and-draft steps (the phase's block size, evaluate.anchor_budget; --what=steps: the loops alone). Of the
loops it counts the bytes that the kernels of a step move (zaya_jax/aot/traffic.py). Nothing is executed and no weights
exist: this shows that a program compiles and fits, not how fast it is. Exit status 1 if one does not.

Needs the target's compiler from PyPI (extra `lower-amd` or `lower-nvidia`; a GPU or ROCm is not needed, gcc is).
Each program is compiled in a process of its own, since XLA may abort. A device's memory counts as published, in powers
of ten; what the runtime and the communication library take is not in the totals.
"""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
from absl import flags

from zaya_jax.aot import compiled, targets, traffic
from zaya_jax.aot.lowering import failure, reason, table
from zaya_jax.aot.programs import Program, decode_programs, train_program
from zaya_jax.architecture import PRESETS, ZayaConfig, preset
from zaya_jax.command_line import cli
from zaya_jax.costs.flops import parameter_count, si
from zaya_jax.errors import UserError
from zaya_jax.parallel.placement import AXES
from zaya_jax.paths import absolute
from zaya_jax.runs import provenance
from zaya_jax.runs.configuration import config_files, settings
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.runs.sizes import on_devices

_CONFIG = config_files.define_config("Config file, with an optional :argument.")
_TARGET = flags.DEFINE_string("target", None, f"The GPU: {', '.join(targets.TARGETS)}.")
_PHASE = flags.DEFINE_string("phase", None, "Training phase whose step is compiled; default: the one that is sampled.")
_WHAT = flags.DEFINE_enum(
    "what", "both", ["train", "decode", "steps", "both"], "Which programs; steps: decode without the prefill."
)
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices the train step is laid over.", lower_bound=1, upper_bound=65_536)
_CONTEXT = flags.DEFINE_integer(
    "context", 4096, "Decoding: tokens a sequence that the cache holds.", lower_bound=1, upper_bound=2**24
)
_BATCH = flags.DEFINE_integer("batch", 1, "Decoding: sequences.", lower_bound=1, upper_bound=1_000_000)
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the numbers as JSON; nowhere by default.")
_CACHE = flags.DEFINE_string("cache", "~/.cache/zaya_jax", "Where stand-ins for missing ROCm libraries are kept.")
_CHILD = flags.DEFINE_string("child", None, "Internal: PROGRAM,FILE of a process that compiles one of them.")

DECODING = ("prefill", "autoregressive", "single_pass")
NOTE = "compiled, not executed"


def main() -> None:
    """Compiles every program that was asked for, each in its own process."""
    target, setup = _target(), _setup()
    if _CHILD.value:
        name, path = _CHILD.value.split(",", 1)
        Path(path).write_text(json.dumps(compile_here(target, setup, name)))
        return
    cli.check_output(_OUTPUT.value)
    child_environment = targets.environment(target, absolute(_CACHE.value), os.environ)
    names = {"train": ("train",), "decode": DECODING, "steps": DECODING[1:], "both": ("train", *DECODING)}[_WHAT.value]
    numbers = _header(target, setup)
    print(f"{target.name} ({target.architecture}); {numbers['versions']}; {NOTE}", flush=True)
    for name in names:
        found = {"target": target.name, "program": describe(setup, name)} | compile_apart(name, child_environment)
        numbers["programs"][name] = found
        print(f"{found['program']}\n{table(found)}", flush=True)
    cli.write_numbers(_OUTPUT.value, numbers)
    bad = [failure(name, found) for name, found in numbers["programs"].items()]
    if any(bad):
        cli.complain([line for line in bad if line])
        raise SystemExit(1)


def compile_apart(name: str, child_environment: dict[str, str]) -> dict[str, Any]:
    """`compile_here` in a process of its own; an abort or a refusal of XLA's becomes a reason."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "numbers.json"
        kept = {"TMPDIR": folder, "TF_ROCM_KEEP_XLA_TEMPFILES": "1", "JAX_ENABLE_COMPILATION_CACHE": "false"}
        done = subprocess.run(
            [sys.executable, "-m", "experiments.lower", *sys.argv[1:], f"--child={name},{out}"],
            env={**child_environment, **kept}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode == 0:
            return json.loads(out.read_text())
    return {"compiles": False, "reason": reason(done.returncode, done.stderr)}


def compile_here(target: targets.Target, setup: settings.Settings, name: str) -> dict[str, Any]:
    """Compiles one program in this process and takes it apart."""
    devices = targets.devices(target, _DEVICES.value if name == "train" else 1)
    program = make_program(setup, name, devices)
    for left in Path(os.environ["TMPDIR"]).iterdir():  # kernels of the programs that chose the experts' form
        left.unlink()
    start = time.perf_counter()
    lowered = program.lower(target.platform)
    traced = time.perf_counter()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise UserError(str(error).splitlines()[0]) from None
    seconds = {"trace": traced - start, "compile": time.perf_counter() - traced}
    hlo = executable.as_text()
    memory, parts = compiled.Memory.of(executable), compiled.anatomy(hlo)
    moved = traffic.kernels(hlo, steps=name != "train")
    kernels = compiled.amd_kernels(Path(os.environ["TMPDIR"])) if target.platform == "rocm" else None
    return {
        "compiles": True,
        "devices": len(devices),
        "seconds": {key: round(value, 1) for key, value in seconds.items()},
        "memory": {**dataclasses.asdict(memory), "total": memory.total},
        "memory_limit": target.memory,
        "fits": memory.total <= target.memory,
        "flops": program.flops,
        "traffic": program.traffic,
        "moved": traffic.per_step(moved) or traffic.total(moved),
        "moved_once": traffic.total(moved) - traffic.per_step(moved) if traffic.per_step(moved) else 0,
        "largest_write": largest_write(moved, chosen_stage(setup).model.vocab_size),
        "wastes": [dataclasses.asdict(kernel) for kernel in traffic.wastes(moved)],
        **dataclasses.asdict(parts),
        "grouped_matmuls": parts.grouped_matmuls,
        "library_matmuls": parts.library_matmuls,
        "other_calls": sorted(parts.other_calls),
        "kernels": kernels and dataclasses.asdict(kernels),
        "expert_backend": program.execution.expert_backend,  # what "auto" became
    }


def largest_write(found: list[traffic.Kernel], vocab: int) -> int:
    """Bytes of the largest array that a kernel of a step writes once, logits and what is made of them apart."""
    return max((kernel.writes for kernel in found if kernel.in_step and str(vocab) not in kernel.shape), default=0)


def make_program(setup: settings.Settings, name: str, devices: list[jax.Device]) -> Program:
    """One of the programs, for these devices."""
    stage = chosen_stage(setup)
    objective, optimizer = stage.phase.objective, stage.phase.optimizer
    if name == "train":
        placement = stage.placement(devices)
        return train_program(
            stage.model, objective, optimizer, stage.batch_size, stage.row_length, devices[0], placement,
            on_devices(stage, placement, devices[0]).execution,
        )  # fmt: skip
    size = objective.block_size
    anchors = setup.anchor_budget or size
    return decode_programs(stage.model, size, anchors, _BATCH.value, _CONTEXT.value, devices[0], stage.execution)[name]


def describe(setup: settings.Settings, name: str) -> str:
    """What a program computes, in a line."""
    stage = chosen_stage(setup)
    objective = stage.phase.objective
    size = objective.block_size
    if name == "train":
        kind = f"{objective.kind}, block {size}" if objective.drafts else objective.kind
        pieces = stage.phase.optimizer.accumulate
        rows = f"{stage.batch_size} rows of {stage.row_length}" + (f" in {pieces} pieces" if pieces > 1 else "")
        return f"train: phase {stage.phase.name} ({kind}), {rows} on {_DEVICES.value} devices{mesh_words(stage)}"
    shape = f"{_BATCH.value} sequences, a cache for {_CONTEXT.value} tokens each"
    rows = f", {size * (1 + (setup.anchor_budget or size))} query tokens a forward" if name == "single_pass" else ""
    return f"{name}: {shape}{rows}"


def mesh_words(stage: Stage) -> str:
    """The mesh's axes that split anything."""
    sizes = {name: getattr(stage.mesh, name) for name in AXES}
    words = ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1)
    return f" ({words})" if words else ""


def model_name(model: ZayaConfig) -> str:
    """The preset that a model is, whatever computes it; else its number of parameters."""
    how = ("dtype", "param_dtype", "rope_theta")
    for name in PRESETS:
        if preset(name, **{field: getattr(model, field) for field in how}) == model:
            return name
    return f"{si(parameter_count(model).total)}parameters"


def _header(target: targets.Target, setup: settings.Settings) -> dict[str, Any]:
    plugin = target.packages[-1]
    return {
        "note": f"{NOTE}: shows what compiles and fits, not how fast it is",
        "command": " ".join(["python -m experiments.lower", *(arg for arg in sys.argv[1:] if "--output" not in arg)]),
        "config": setup.name,
        "name": model_name(chosen_stage(setup).model),
        "devices": _DEVICES.value,
        "phase": chosen_stage(setup).phase.name,
        "mesh": dataclasses.asdict(chosen_stage(setup).mesh),
        "model": dataclasses.asdict(chosen_stage(setup).model),
        "execution": dataclasses.asdict(chosen_stage(setup).execution),
        "target": target.name,
        "architecture": target.architecture,
        "versions": f"jax {jax.__version__}, {plugin} {importlib.metadata.version(plugin)}",
        "xla_flags": targets.XLA_FLAGS,
        "git_commit": provenance.git_commit(),
        "programs": {},
    }


def chosen_stage(setup: settings.Settings) -> Stage:
    """--phase, or the phase whose model is sampled. UserError for one that the config has not."""
    name = setup.sampled if _PHASE.value is None else _PHASE.value
    if name not in setup.stages:
        raise UserError(f"--phase: got {name!r}, may be one of {sorted(setup.stages)}")
    return setup.stages[name]


def _target() -> targets.Target:
    if _TARGET.value not in targets.TARGETS:
        raise UserError(f"--target: got {_TARGET.value!r}, may be one of {sorted(targets.TARGETS)}")
    return targets.TARGETS[_TARGET.value]


def _setup() -> settings.Settings:
    """The config, checked against the other flags."""
    if _CONFIG.value is None:
        raise UserError("--config: missing, may be a config file such as configs/quickstart.py")
    setup = settings.read(_CONFIG.value)
    stage = chosen_stage(setup)
    if _WHAT.value in ("train", "both") and stage.batch_size % _DEVICES.value and stage.mesh.context == 1:
        may_be = f"a divisor of {stage.phase.name}.batch_size ({stage.batch_size})"
        raise UserError(f"--devices: got {_DEVICES.value}, may be {may_be}")
    return setup


if __name__ == "__main__":
    cli.run(main, keep_programs=False)
