"""`load_pretrained`: any checkpoint folder this project can read."""

from pathlib import Path

from zaya_jax.architecture import ZayaConfig
from zaya_jax.interop.huggingface import load_huggingface
from zaya_jax.interop.native import MODEL_FILE, load_native
from zaya_jax.parallel import Placement


def load_pretrained(directory: Path | str, placement: Placement | None = None) -> tuple[ZayaConfig, dict]:
    """Reads a Hugging Face folder of any family (config.json and safetensors, sharded or not) or one of ours.

    Args:
      directory: a Hugging Face folder, or a stage's checkpoints (`WORKDIR/checkpoints/STAGE`), whose newest step is
        read.
      placement: devices to read onto, each its own share; None for the first device.

    Returns:
      (config, variables) for `Zaya(config).apply(variables, layout)`.

    Raises:
      FileNotFoundError: no such folder, or neither kind of checkpoint in it.
      UserError: a file that is damaged or does not fit; one line that names it.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(f"checkpoint {directory}: not a folder")
    if (directory / MODEL_FILE).exists():
        return load_native(directory, placement=placement)
    if (directory / "config.json").exists():
        return load_huggingface(directory, placement)
    raise FileNotFoundError(
        f"checkpoint {directory}: holds neither config.json (a Hugging Face folder) nor {MODEL_FILE} (one of ours)"
    )
