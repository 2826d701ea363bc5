"""Turns a checkpoint of ours, or a Hugging Face one, into a Hugging Face folder (config.json and safetensors).

    python -m experiments.convert --checkpoint=runs/quickstart/checkpoints/convert --output=my_model

The output is read by `zaya_jax.load_pretrained` and, but for the draft mask token, which it does not know, by
transformers.
"""

from pathlib import Path

from absl import flags

from experiments import cli
from zaya_jax import load_pretrained
from zaya_jax.interop import save_huggingface

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder to read: WORKDIR/checkpoints/STAGE or a Hugging Face one."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must be new or empty.")


def main() -> None:
    checkpoint, output = (_folder(flag) for flag in (_CHECKPOINT, _OUTPUT))
    config, variables = load_pretrained(checkpoint)
    save_huggingface(Path(output), config, variables)
    print(f"done: {output}")


def _folder(flag: flags.FlagHolder[str | None]) -> str:
    if flag.value is None:
        raise ValueError(f"--{flag.name}: missing, may be a folder")
    return flag.value


if __name__ == "__main__":
    cli.run(main)
