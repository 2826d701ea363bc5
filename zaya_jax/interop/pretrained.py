"""`load_pretrained`: any checkpoint folder this project can read."""

from pathlib import Path

from zaya_jax.architecture import ZayaConfig
from zaya_jax.interop.conversion.locate import find_checkpoint
from zaya_jax.interop.formats.huggingface import load_huggingface
from zaya_jax.interop.formats.native import MODEL_FILE, load_native
from zaya_jax.parallel import Placement


def load_pretrained(directory: Path | str, placement: Placement | None = None) -> tuple[ZayaConfig, dict]:
    """Reads a Hugging Face folder of any family (config.json and safetensors, sharded or not) or one of ours.

    Args:
      directory: a Hugging Face folder; a stage's checkpoints (`WORKDIR/checkpoints/STAGE`), whose newest step is read;
        or a run's WORKDIR, whose sampled stage is (see `find_checkpoint`).
      placement: devices to read onto, each its own share; None for the first device.

    Returns:
      (config, variables) for `Zaya(config).apply(variables, layout)`.

    Raises:
      FileNotFoundError: no such folder, or neither kind of checkpoint in it.
      UserError: a file that is damaged or does not fit; one line that names it.
    """
    folder = find_checkpoint(directory)
    if (folder / MODEL_FILE).exists():
        return load_native(folder, placement=placement)
    return load_huggingface(folder, placement)
