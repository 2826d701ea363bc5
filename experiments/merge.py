"""Adds adapters (model.lora_rank) to the weights for good: a checkpoint of ours -> a plain Hugging Face folder.

    python -m experiments.merge --checkpoint=runs/smollm2/checkpoints/convert --output=smollm2-tidar

The result is the same model up to rounding, and needs no adapters: transformers reads it, phases start from it.
Adapters on drafts alone (lora_rows "drafts") cannot be merged: no plain weights act on some rows only. Such a model
stays in our own format.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from zaya_jax import load_pretrained
from zaya_jax.errors import UserError
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.adapters import merge_adapters

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder to read: WORKDIR/checkpoints/STAGE.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must be new or empty.")


def main() -> None:
    for flag in (_CHECKPOINT, _OUTPUT):
        if not flag.value:
            raise UserError(f"--{flag.name}: missing, may be a folder")
    config, variables = load_pretrained(str(_CHECKPOINT.value))
    if not config.lora_rank:
        raise UserError(f"--checkpoint: {_CHECKPOINT.value} has no adapters, may be read by experiments.convert")
    save_huggingface(Path(str(_OUTPUT.value)).expanduser(), *merge_adapters(config, variables))
    print(f"done: {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
