"""The model card of an exported checkpoint: how it was made, what its mask token is, how to sample from it."""

from pathlib import Path
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.files import read_object, write_text
from zaya_jax.registry import kind_drafts

CARD_FILE = "README.md"


def write_card(
    folder: Path, config: ZayaConfig, source: str, format: str, made: dict[str, Any], workdir: Path | None,
    notes: list[str],
) -> None:  # fmt: skip
    """Writes `folder`/README.md.

    Args:
      source: what was converted.
      format: "huggingface", or the name of a model family.
      made: of the program: version, commit, command, whichever are known.
      workdir: of the run that trained the model, if it was one of ours.
      notes: lines the conversion had to say.
    """
    stages, block_size = _stages(workdir)
    parts = [_front(config, format), _made(config, source, format, made, stages, notes), _mask(config),
             _sample(config, format, block_size), _licence()]  # fmt: skip
    write_text(folder / CARD_FILE, "\n".join(parts))


def _front(config: ZayaConfig, format: str) -> str:
    tags = ["zaya_jax"] + ["tidar", "block-diffusion"] * _drafts(config) + ["zaya"] * (config.attention == "cca")
    library = "zaya_jax" if format == "legacy" else "transformers"
    lines = ["---", f"library_name: {library}", "pipeline_tag: text-generation", "tags:", *(f"- {t}" for t in tags)]
    return "\n".join([*lines, "# license: to be filled in; see the end of this file", "---", ""])


def _made(
    config: ZayaConfig, source: str, format: str, made: dict[str, Any], stages: list[str], notes: list[str]
) -> str:
    layout = "Zyphra's legacy layout" if format == "legacy" else "transformers' own layout"
    lines = [
        "# Model card", "",
        f"Weights in {layout}, {config.param_dtype}, written by zaya_jax "
        f"{made.get('version', '')}" + (f" at commit {made['commit']}" if made.get("commit") else "") + ".", "",
        f"- Source: `{source}`",
        *([f"- Command: `{made['command']}`"] if made.get("command") else []),
        *([f"- Date: {made['date']}"] if made.get("date") else []),
        f"- Layers {config.num_hidden_layers}, width {config.hidden_size}, vocabulary rows {config.vocab_size}",
        *(f"- {note}" for note in notes), "",
    ]  # fmt: skip
    if stages:
        lines += ["## Training", "", *stages, ""]
    return "\n".join(lines)


def _stages(workdir: Path | None) -> tuple[list[str], int | None]:
    """(a line for each stage of a run, the block size of its drafts) as its config.json has them."""
    if workdir is None:
        return [], None
    try:
        values = read_object(workdir / "config.json")
    except (OSError, ValueError):
        return [], None
    phases = values.get("phases")
    found = {p: values.get(p) for p in phases if isinstance(p, str)} if isinstance(phases, list) else values
    lines, block_size = [f"Run `{values.get('name', workdir.name)}`, seed {values.get('seed')}:", ""], None
    for name, stage in found.items():
        if not isinstance(stage, dict) or not isinstance(stage.get("objective"), dict):
            continue
        objective = stage["objective"]
        kind, size = objective.get("kind"), objective.get("block_size")
        drafting = kind_drafts(kind)
        block_size = size if drafting and isinstance(size, int) else block_size
        about = f"{kind}, blocks of {size}" if drafting else f"{kind}"
        lines.append(f"- {name}: {about}; {stage.get('steps')} steps of {stage.get('batch_size')} rows")
    return (lines if len(lines) > 2 else []), block_size


def _drafts(config: ZayaConfig) -> bool:
    """Whether the model has a mask token to draft with."""
    return isinstance(config.mask_token_id, int) and config.mask_token_id >= 0


def _mask(config: ZayaConfig) -> str:
    token = config.mask_token_id
    if not _drafts(config):
        return "\n".join(["## Mask token", "", "None: the model was not made to draft.", ""])
    zaya = config.vocab_size == ZayaConfig.vocab_size
    return "\n".join([
        "## Mask token", "",
        f"Drafts are drawn at slots that hold token {token}, stored as `zaya_jax.mask_token_id` in `config.json`; "
        f"transformers keeps that key and makes nothing of it. The vocabulary has {config.vocab_size} rows"
        + (", of which this is the last" if token == config.vocab_size - 1 else "") + ". It must be an id that no text "
        "holds"
        + (": ZAYA's tokenizer gives ids below 262,145, so the rows after them are free" if zaya else "")
        + ". Samplers treat it like any other token: training never asks for it, so it is improbable, but above "
        "temperature 0 it can be drawn. Our decoding writes nothing for it.", "",
    ])  # fmt: skip


def _sample(config: ZayaConfig, format: str, block_size: int | None) -> str:
    size = block_size or 16
    mode = f"--mode=single_pass --block-size={size}" if _drafts(config) else "--mode=autoregressive"
    lines = [
        "## Sampling", "", "Drafting and verifying in one forward pass, losslessly:" if _drafts(config) else
        "One token a forward pass:", "", "```bash",
        f"python -m experiments.generate --checkpoint=THIS_FOLDER {mode} --prompt=...", "```", "",
    ]  # fmt: skip
    if _drafts(config):
        unknown = (
            "The block size of the drafts is not recorded in the source; 16 is ZAYA's. If the model was not converted"
        )
        unknown += " to draft, use `--mode=autoregressive`."
        lines += [f"The drafts were trained in blocks of {block_size}." if block_size else unknown, ""]
    if format != "legacy":
        lines += ["As an autoregressive model, in transformers:", "", "```python",
                  "from transformers import AutoModelForCausalLM",
                  'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER", dtype="auto")', "```", ""]  # fmt: skip
    return "\n".join(lines)


def _licence() -> str:
    return "\n".join([
        "## Licence", "", "Not filled in. Whoever publishes these weights must name it (`license:` at the top); a "
        "converted or trained copy is bound by the licence of the model and the data it came from.", "",
    ])  # fmt: skip
