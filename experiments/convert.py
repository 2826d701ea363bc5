"""Turns a checkpoint of any kind into one of another layout, dtype or sharding.

    python -m experiments.convert --checkpoint=runs/quickstart/checkpoints/convert --output=my_model
    python -m experiments.convert --checkpoint=results/quickstart/model --output=start --format=native
    python -m experiments.convert --checkpoint=ZAYA1-8B-legacy --output=ZAYA1-8B --dtype=bfloat16

Read: Hugging Face folders of transformers' ZAYA and of the Llama family, Zyphra's legacy layout, and our own
checkpoints (WORKDIR/checkpoints/STAGE). Written: --format=huggingface (the model's own family; transformers loads it,
but for the draft mask token, which it does not know), legacy, or native (what a run's phase can start from). Adapters
stay in native alone: experiments.merge adds them to the weights, experiments.adapters writes them by themselves.

Tensors pass one at a time: the memory needed is the largest stored tensor and 1 GiB. Everything that is wrong with the
source is said before anything is written, tensor by tensor. Work goes to a partial folder beside --output
(.OUTPUT.partial), which takes its name when all is there; the same command resumes after a kill, keeps what is whole,
and refuses a partial folder of another conversion. The tokenizer, the chat template and generation settings go along,
those of a run's own checkpoint too, and a model card (README.md) says how the folder was made; code and pickles never
do. What else is left behind is listed.
"""

from absl import flags
from tqdm import tqdm

from zaya_jax.checks import Number, check
from zaya_jax.command_line import cli
from zaya_jax.command_line.closing import closing, drafts, generate_with
from zaya_jax.command_line.models import output_folder
from zaya_jax.interop.conversion.conversion import FORMATS, convert
from zaya_jax.runs.provenance import made_by
from zaya_jax.runs.tokens import checkpoint_of, companions_of

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder to read: a Hugging Face one, WORKDIR/checkpoints/STAGE, or WORKDIR (its sampled stage)."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must be new or empty.")
_FORMAT = flags.DEFINE_string(
    "format", "huggingface", f"Layout to write, of {', '.join(FORMATS)}, or the name of a model family."
)
_DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of the parameters. Default: as they are stored.")
_SHARD = flags.DEFINE_float(
    "max_shard_gb", 5.0, "A safetensors file holds at most so many GB.", lower_bound=1e-9, upper_bound=1e9
)
_EMA = flags.DEFINE_bool("ema", False, "Of one of our checkpoints, the average that training kept of the parameters.")


def main() -> None:
    checkpoint, output = checkpoint_of(_CHECKPOINT.value), output_folder(_OUTPUT.value)
    bars: list[tqdm] = []  # none before there is something to show: a mistake is one line

    def progress(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, unit="B", unit_scale=True, desc="converting", mininterval=1.0))
        bars[0].update(done - bars[0].n)

    size = round(check("--max_shard_gb", _SHARD.value, Number(0, 1e9, above=True)) * 1e9)  # NaN passes absl's bounds
    try:
        with companions_of(checkpoint) as (companions, notes):
            report = convert(
                checkpoint, output, _FORMAT.value, _DTYPE.value, size, _EMA.value, made_by("convert"), progress,
                companions,
            )  # fmt: skip
    finally:
        for bar in bars:
            bar.close()
    for line in [*report.lines(), *notes]:
        print(line)
    written = f"{report.bytes / 1e9:.2f} GB" if report.bytes >= 1e9 else f"{report.bytes / 1e6:.2f} MB"
    print(f"done: {output} ({report.tensors} tensors, {written}, {report.config.param_dtype})")
    print(
        closing(
            {},
            [
                f"python -m experiments.inspect_checkpoint --checkpoint={output}",
                generate_with(output, drafts(report.config)),
            ],
        )
    )


if __name__ == "__main__":
    cli.run(main)
