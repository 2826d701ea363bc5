"""Writes a run's adapters by themselves: a small folder for the published model that they were trained on.

    python -m experiments.adapters --checkpoint=runs/drafts --output=smollm2-drafts
    python -m experiments.generate --checkpoint=smollm2 --adapters=smollm2-drafts --chat

With --draft_vocabulary=N, the N tokens that the run trained on most often are the only ones that are drafted: the head
is then read once a step and not twice. The text's distribution stays as it is. With --anchors=1,5, say what
`experiments.bench.drafting` measured to be fastest, `generate` drafts after those accepted lengths by default.

The folder (bfloat16) says which model it belongs to by a checksum of all its weights, and is refused on another. Its
card, README.md, says how it was trained.
"""

from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from zaya_jax import load_pretrained
from zaya_jax.checks import COUNT, Unset, check_object
from zaya_jax.command_line import cli, sampling_flags
from zaya_jax.command_line.closing import closing
from zaya_jax.command_line.models import load_adapted, output_folder
from zaya_jax.errors import UserError
from zaya_jax.interop.conversion.locate import CONFIG_FILE, find_checkpoint, run_config
from zaya_jax.interop.formats.adapter_folder import ARRAYS, RULES, save_adapters
from zaya_jax.runs.configuration import settings
from zaya_jax.runs.provenance import made_by
from zaya_jax.runs.tokens import checkpoint_of
from zaya_jax.runs.trained_tokens import count_trained, most_frequent

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A run's folder, or WORKDIR/checkpoints/STAGE.")
_BASE = flags.DEFINE_string("base", None, "The published model. Default: what the run's stage started from.")
_LICENCE = flags.DEFINE_string("licence", "that of the base model", "For the card.")
_VOCABULARY = flags.DEFINE_integer(
    "draft_vocabulary", 0, "Tokens that are drafted; 0: any.", lower_bound=0, upper_bound=2**24
)
_ANCHORS = flags.DEFINE_list("anchors", [], "Accepted lengths after which a block is drafted, such as 1,5; none: all.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; must be new or empty.")


def main() -> None:
    checkpoint, output = checkpoint_of(_CHECKPOINT.value), output_folder(_OUTPUT.value)
    run, stage = run_config(checkpoint), checkpoint.name
    phase = checked(checkpoint, run, stage)
    block_size = (phase.get("objective") or {}).get("block_size") or 1
    base = _BASE.value or phase.get("start")
    if not isinstance(base, str):
        raise UserError("--base: missing, and the checkpoint's run names none; may be a folder of a model")
    config, variables = load_adapted(checkpoint)
    about = {
        "name": Path(base).name,
        "licence": _LICENCE.value,
        "run": training(run, phase),
        "made": made_by("adapters"),
    }
    anchors = sampling_flags.branch_points(_ANCHORS.value, block_size)
    vocabulary = draft_vocabulary(checkpoint, run, _VOCABULARY.value)
    save_adapters(
        output, config, variables, load_pretrained(find_checkpoint(base)), block_size, about,
        card(about, config.lora_rows, block_size), vocabulary, anchors,
    )  # fmt: skip
    size = (output / ARRAYS).stat().st_size / 1e6
    drafted = f", {len(vocabulary):,} tokens are drafted" if vocabulary else ""
    print(f"done: {output}, {size:.1f} MB, blocks of {block_size}{drafted}")
    print(closing({}, [f"python -m experiments.generate --checkpoint={base} --adapters={output} --chat"]))


def checked(checkpoint: Path, run: dict[str, Any], stage: str) -> dict[str, Any]:
    """The section of a stage in its run's config, whose numbers the card and the folder repeat; {} where it has none.

    Raises:
      UserError: a section or a number that is none, naming the file and the field.
    """
    where = f"{checkpoint.parent.parent / CONFIG_FILE}: "
    phase = run.get(stage) or {}
    check_object(f"{where}data.", run.get("data") or {}, {"row_length": Unset(COUNT)})
    check_object(f"{where}{stage}.", phase, dict.fromkeys(("steps", "batch_size", "row_length"), Unset(COUNT)))
    block_size = {"block_size": Unset(RULES["block_size"])}
    check_object(f"{where}{stage}.objective.", phase.get("objective") or {}, block_size)
    return phase


def draft_vocabulary(checkpoint: Path, run: dict[str, Any], size: int) -> list[int]:
    """Ids of the tokens that the run trained on most often; none for a size of 0."""
    if not size:
        return []
    sections = {
        name: {**part, "adapters": None} for name, part in run.items() if isinstance(part, dict) and "steps" in part
    }
    setup = settings.read(ConfigDict({**run, **sections}))  # the adapters that it started from may be gone
    return most_frequent(count_trained(setup, checkpoint.parent.parent, checkpoint.name), size)


def training(run: dict[str, Any], phase: dict[str, Any]) -> dict[str, Any]:
    """What the adapters were trained on and how, of a run's config."""
    data: dict[str, Any] = run.get("data") or {}
    kept = {name: phase.get(name) for name in ("steps", "batch_size", "objective", "optimizer")}
    rows = {"row_length": phase.get("row_length") or data.get("row_length"), "mixture": data.get("mixture")}
    return {"name": run.get("name"), "seed": run.get("seed"), **kept, **rows}


def card(about: dict[str, Any], rows: str, block_size: int) -> str:
    """README.md of the folder."""
    run, base = about["run"], about["name"]
    acts = (
        "mask tokens alone, so that the model's own text is as it was, to the bit" if rows == "drafts" else "all tokens"
    )
    tokens = (run["steps"] or 0) * (run["batch_size"] or 0) * (run["row_length"] or 0)
    return "\n".join([
        f"# Adapters that let {base} draft for itself", "",
        f"They act on {acts}. Blocks of {block_size} tokens; checksum of the base model in adapters.json.", "",
        f"- Base model: {base}", f"- Run: {run['name']}, seed {run['seed']}",
        f"- Training: {run['steps']} steps of {run['batch_size']} rows of {run['row_length']} tokens "
        f"({tokens:,} clean tokens)",
        f"- Data: {run['mixture']}", f"- Made by zaya_jax {about['made']['version']}, commit {about['made']['commit']}",
        f"- Licence: {about['licence']}", "", "```bash",
        f"python -m experiments.generate --checkpoint={base} --adapters=THIS_FOLDER --chat", "```", "",
    ])  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
