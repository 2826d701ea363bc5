"""Which folder a user's `--checkpoint` means: a checkpoint's own, or a run's, whose sampled stage is meant."""

import re
from pathlib import Path
from typing import Any

from zaya_jax.checks import natural
from zaya_jax.errors import UserError
from zaya_jax.files import read_object
from zaya_jax.interop.formats.folder import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, refuse_adapters
from zaya_jax.interop.formats.native import MODEL_FILE
from zaya_jax.paths import absolute
from zaya_jax.registry import kind_drafts

STAGES = "checkpoints"  # of a run's workdir: a folder for each stage
HUB_ID = re.compile(r"(?:https?://)?(?:(?:www\.)?(?:huggingface\.co|hf\.co)/)?([\w-][\w.-]*/[\w.-]+)/?")


def find_checkpoint(path: Path | str) -> Path:
    """The folder, absolute, that holds what `path` means: a Hugging Face folder or one of our stages' checkpoints.

    A run's workdir, or its `checkpoints`, means the stage that the run samples (evaluate.phase).

    Raises:
      FileNotFoundError, UserError: one line: no such folder, or none that can be read; says which may be meant.
    """
    folder = absolute(path)
    if not folder.is_dir():
        raise _no_folder(str(path), folder)
    if (folder / MODEL_FILE).exists():
        return folder
    refuse_adapters(folder)
    if (folder / WEIGHTS_FILE).exists() or (folder / INDEX_FILE).exists():
        return folder
    if stages := stages_in(folder / STAGES):
        return _sampled(folder, stages, run_config_of(folder))
    if stages := stages_in(folder):
        return _sampled(folder, stages, run_config_of(folder.parent) if folder.name == STAGES else {})
    if (folder.parent / MODEL_FILE).exists():
        raise UserError(f"checkpoint {folder}: a single step; may be {folder.parent}, whose newest step is read")
    if (folder / CONFIG_FILE).exists() and "phases" not in _object(folder / CONFIG_FILE):
        return folder
    raise _nothing_in(folder)


def stages_in(folder: Path) -> dict[str, Path]:
    """The stages' checkpoints right under a folder, by name."""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if (path / MODEL_FILE).is_file()}


def run_config_of(workdir: Path) -> dict[str, Any]:
    """A workdir's config.json; {} where there is none. UserError, one line, for one that is no JSON object."""
    path = workdir / CONFIG_FILE
    return read_object(path) if path.exists() else {}


def run_config(checkpoint: Path) -> dict[str, Any]:
    """The config of the run that made a checkpoint of ours (WORKDIR/checkpoints/STAGE); {} where there is none.

    Raises:
      UserError: one line: a config.json that is no JSON object.
    """
    checkpoint = absolute(checkpoint)
    return run_config_of(checkpoint.parent.parent) if (checkpoint / MODEL_FILE).exists() else {}


def _sampled(folder: Path, stages: dict[str, Path], run: dict[str, Any]) -> Path:
    """The stage that a run samples; the only one that has a step, where the run's config does not say."""
    whole = [name for name, path in stages.items() if any(natural(step.name) is not None for step in path.iterdir())]
    chosen = sampled_phase(run) or (whole[0] if len(whole) == 1 else None)
    if chosen in whole:
        return stages[chosen]
    may_be = " or ".join(str(stages[name]) for name in whole[:20]) or "one that has trained: no stage has saved a step"
    what = f"its sampled stage {chosen} has saved no step" if chosen in stages else "holds several stages"
    raise UserError(f"checkpoint {folder}: {what if whole else 'a run'}, may be {may_be}")


def sampled_phase(run: dict[str, Any]) -> str | None:
    """The phase that a run's config evaluates, as `runs.configuration.settings` chooses it; None where it says none."""
    phases, evaluate = run.get("phases"), run.get("evaluate")
    if isinstance(evaluate, dict) and isinstance(evaluate.get("phase"), str):
        return evaluate["phase"]
    names = [phases] if isinstance(phases, str) else phases if isinstance(phases, list) else []
    trained = [name for name in names if isinstance(name, str) and _phase(run, name).get("steps") != 0]
    drafting = [name for name in trained if kind_drafts(_objective(run, name).get("kind"))]
    return "convert" if "convert" in drafting else next(reversed(drafting or trained), None)


def _phase(run: dict[str, Any], name: str) -> dict[str, Any]:
    return found if isinstance(found := run.get(name), dict) else {}


def _objective(run: dict[str, Any], name: str) -> dict[str, Any]:
    return found if isinstance(found := _phase(run, name).get("objective"), dict) else {}


def _object(path: Path) -> dict[str, Any]:
    """A JSON object, or {} for anything else: what is wrong with a model's config.json is said where it is read."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}


def _no_folder(given: str, folder: Path) -> Exception:
    if folder.exists():
        return FileNotFoundError(f"checkpoint {given}: not a folder, may be {folder.parent}")
    hub = HUB_ID.fullmatch(given)
    if hub is None or given.startswith((".", "/", "~")):
        return FileNotFoundError(f"checkpoint {given}: not a folder")
    name = hub[1].rpartition("/")[2]
    return FileNotFoundError(
        f"checkpoint {given}: not a folder; a model of the Hugging Face hub is to be downloaded first: "
        f"hf download {hub[1]} --local-dir={name}, then --checkpoint={name}"
    )


def _nothing_in(folder: Path) -> Exception:
    if snapshots := sorted((folder / "snapshots").glob("*/config.json")):  # the hub's own cache
        may_be = " or ".join(str(path.parent) for path in snapshots)
        return FileNotFoundError(f"checkpoint {folder}: a cache of downloads, may be {may_be}")
    if (folder / CONFIG_FILE).exists():  # a run's
        if elsewhere := stages_in(folder.parent.parent / "stages"):  # a sweep's
            may_be = " or ".join(map(str, elsewhere.values()))
            return FileNotFoundError(f"checkpoint {folder}: a sweep's run, may be one of its stages: {may_be}")
        return FileNotFoundError(f"checkpoint {folder}: a run that has no checkpoint here (yet, or it has --stages)")
    if stages := stages_in(folder / "stages"):
        return FileNotFoundError(f"checkpoint {folder}: a sweep, may be {' or '.join(map(str, stages.values()))}")
    found = [path for path in sorted(folder.iterdir()) if (path / CONFIG_FILE).exists() or stages_in(path / STAGES)]
    hint = f"; may be {' or '.join(map(str, found[:10]))}" if found else ""
    return FileNotFoundError(
        f"checkpoint {folder}: holds neither config.json (a Hugging Face folder) nor {MODEL_FILE} (one of ours){hint}"
    )
