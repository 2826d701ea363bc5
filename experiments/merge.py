"""Adds adapters (model.lora_rank) to the weights for good: a checkpoint of ours -> a plain Hugging Face folder.

    python -m experiments.merge --checkpoint=runs/smollm2/checkpoints/convert --output=smollm2-tidar
    python -m experiments.merge --checkpoint=runs/smollm2 --output=smollm2-tidar

The result is the same model up to rounding, and needs no adapters: transformers reads it, phases start from it. The
tokenizer, the chat template and generation settings go along, and a model card (README.md) says how it was made.
Adapters on drafts alone (lora_rows "drafts") cannot be merged: no plain weights act on some rows only. Such a model
stays in our own format.
"""

from pathlib import Path

from absl import flags

from zaya_jax.command_line import cli
from zaya_jax.command_line.closing import closing, drafts, generate_with
from zaya_jax.command_line.models import load_adapted, output_folder
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.conversion.card import write_card
from zaya_jax.interop.conversion.companions import copy_companions, ids_of, with_ids
from zaya_jax.interop.conversion.conversion import workdir_of
from zaya_jax.interop.editing.adapters import merge_adapters
from zaya_jax.runs.provenance import made_by
from zaya_jax.runs.tokens import checkpoint_of, companions_of

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder to read: WORKDIR/checkpoints/STAGE.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must be new or empty.")


def main() -> None:
    checkpoint, output = checkpoint_of(_CHECKPOINT.value), output_folder(_OUTPUT.value)
    config, variables = load_adapted(checkpoint)
    config, variables = merge_adapters(config, variables)
    with companions_of(checkpoint) as (companions, notes):
        source = companions or checkpoint
        config = with_ids(config, ids_of(source))

        def beside(folder: Path) -> None:
            made = ["adapters were merged into the weights", *copy_companions(source, folder), *notes]
            workdir = workdir_of(checkpoint)
            write_card(folder, config, str(checkpoint), "huggingface", made_by("merge"), workdir, made)

        save_huggingface(output, config, variables, beside=beside)
    for line in notes:
        print(line)
    print(f"done: {output}")
    print(closing({}, [generate_with(output, drafts(config))]))


if __name__ == "__main__":
    cli.run(main)
