"""A checkpoint as a command loads it and decodes from it."""

import sys
from pathlib import Path
from typing import Any

from zaya_jax.architecture import Zaya, ZayaConfig, for_decoding
from zaya_jax.errors import UserError
from zaya_jax.files import check_new
from zaya_jax.interop.editing.adapters import merge_adapters
from zaya_jax.interop.formats.adapter_folder import load_adapters
from zaya_jax.interop.pretrained import load_pretrained
from zaya_jax.paths import absolute


def output_folder(given: str | None, flag: str = "output") -> Path:
    """The folder that a command is to write. UserError: none was given, or something is there."""
    if not given:
        raise UserError(f"--{flag}: missing, may be a new or an empty folder")
    check_new(absolute(given))
    return absolute(given)


def scratch_folder(given: str | None, flag: str = "folder") -> Path:
    """A folder that a benchmark fills, and deletes in the end. UserError: none was given, or something is in it."""
    if given is None:
        raise UserError(f"--{flag}: missing, may be a folder that does not exist yet")
    check_new(absolute(given))
    return absolute(given)


def load_adapted(checkpoint: Path) -> tuple[ZayaConfig, Any]:
    """(config, variables) of a --checkpoint that must have adapters of its own.

    Raises:
      UserError, FileNotFoundError: one line that names the folder.
    """
    config, variables = load_pretrained(checkpoint)
    if not config.lora_rank:
        may_be = "a checkpoint of a run with model.lora_rank above 0; experiments.convert writes others as a folder"
        raise UserError(f"--checkpoint: {checkpoint} has no adapters, may be {may_be}")
    return config, variables


def load(checkpoint: Path, adapters: str | None) -> tuple[ZayaConfig, Any, dict[str, Any]]:
    """(config, variables, fields of a sampler that the adapters set) of --checkpoint, with --adapters if given.

    Raises:
      UserError, FileNotFoundError: one line that names the folder.
    """
    config, variables = load_pretrained(checkpoint)
    return (config, variables, {}) if adapters is None else load_adapters(absolute(adapters), config, variables)


def decoding_form(config: ZayaConfig, variables: Any) -> tuple[Zaya, Any]:
    """`for_decoding` of a model that was just loaded and is not used otherwise; `variables` are given up.

    Adapters on all rows are added to the weights. On a CPU bfloat16 weights are computed in float32, which one line on
    standard error says.
    """
    if config.lora_rank and config.lora_rows == "all":
        config, variables = merge_adapters(config, variables)
    model, variables = for_decoding(Zaya(config), variables, release=True, widen=True)
    if model.config.dtype != config.dtype:
        print(f"{config.dtype} weights are computed in {model.config.dtype}: faster on a CPU", file=sys.stderr)
    return model, variables
