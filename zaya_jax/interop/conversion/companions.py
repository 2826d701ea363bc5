"""What goes along with weights: a tokenizer, chat templates, generation settings, a licence. Never code."""

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from zaya_jax.architecture import ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.files import copy_file, read_json, write_text
from zaya_jax.interop.conversion.card import CARD_FILE
from zaya_jax.interop.formats.folder import CONFIG_FILE
from zaya_jax.interop.formats.native import MODEL_FILE
from zaya_jax.interop.formats.tensorfile import within

GENERATION_FILE, SETTINGS_FILE = "generation_config.json", "tokenizer_config.json"
COMPANIONS = (
    "tokenizer.json", SETTINGS_FILE, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", GENERATION_FILE, "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model*", "spiece.model",
    "sentencepiece*.model", "tekken.json", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
TEMPLATES = "additional_chat_templates"  # a folder of .jinja files
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
MAX_COMPANION = 256 << 20  # bytes
NAMED = 20  # files that a note names one by one
ROLES = ("bos", "eos", "pad")


def copy_companions(source: Path, folder: Path, taken: Path | None = None) -> list[str]:
    """Copies them from one folder to another; returns notes on what is left behind.

    Args:
      taken: the checkpoint whose other files the notes are about; None: no notes.

    Raises:
      UserError, FileNotFoundError: a link out of the folder, a folder or a pipe in a file's place, too large a file,
        settings that are no JSON; one line, and nothing was copied.
    """
    notes, found = [], check_companions(source)
    for name, path in found.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if name == SETTINGS_FILE:
            notes += _copy_tokenizer_config(path, folder / name)
        else:
            copy_file(path, folder / name)
    return notes + (_left_after(taken, list(found)) if taken is not None else [])


def check_companions(source: Path) -> dict[str, Path]:
    """The files of `source` that go along, by their names in it.

    Raises:
      UserError, FileNotFoundError: as `copy_companions`; and for one that is read and is no JSON.
    """
    found = {name: within(source, name) for name in _companions(source)}
    for name, path in found.items():
        if path.stat().st_size > MAX_COMPANION:
            raise UserError(f"{path}: got {path.stat().st_size} bytes, may be at most {MAX_COMPANION}")
        if name in (SETTINGS_FILE, GENERATION_FILE):
            read_json(path)
    return found


def _companions(source: Path) -> Iterator[str]:
    for path in sorted(source.iterdir()):
        if any(fnmatch(path.name, pattern) for pattern in COMPANIONS):
            if path.is_dir() and path.name in COMPANIONS:
                raise UserError(f"{path}: got a folder, may be a file")
            if not path.is_dir():  # LICENSES, say, is left behind
                yield path.name
    templates = source / TEMPLATES
    if templates.is_dir():
        yield from (f"{TEMPLATES}/{path.name}" for path in sorted(templates.glob("*.jinja")))


def _left_after(checkpoint: Path, copied: list[str]) -> list[str]:
    """Notes on what is not copied: code, and whatever else is neither weights nor written anew."""
    anew = (CONFIG_FILE, CARD_FILE, MODEL_FILE, TEMPLATES, ".*", *WEIGHTS)
    rest = [
        path.name + "/" * path.is_dir()
        for path in sorted(checkpoint.iterdir())
        if path.name not in copied and not any(fnmatch(path.name, pattern) for pattern in anew)
    ]
    code = [name for name in rest if name.endswith(".py")]
    other = [name for name in rest if name not in code and not name[:-1].isdigit()]  # steps of ours
    lines = (("left behind, and never run", code), ("left behind", other))
    return [f"{what}: {', '.join(names[:NAMED])}{' ...' * (len(names) > NAMED)}" for what, names in lines if names]


def _copy_tokenizer_config(path: Path, copy: Path) -> list[str]:
    values = read_json(path, strict=True)
    if isinstance(values, dict) and "auto_map" in values:
        del values["auto_map"]
        write_text(copy, json.dumps(values, indent=2) + "\n")
        return ["tokenizer_config.json: auto_map (code to run) was left out"]
    copy_file(path, copy)
    return []


# --- which tokens begin, end and fill a text --------------------------------------------------------------------------


def ids_of(folder: Path) -> dict[str, Any]:
    """What a folder's generation_config.json says: any of bos, eos (a list) and pad; {} where it is missing or odd."""
    if not (folder / GENERATION_FILE).is_file():
        return {}
    values = read_json(within(folder, GENERATION_FILE), strict=True)
    values = values if isinstance(values, dict) else {}
    found = {role: _naturals(values.get(f"{role}_token_id")) for role in ROLES}
    return {role: ids if role == "eos" else ids[0] for role, ids in found.items() if ids}


def with_ids(config: ZayaConfig, ids: dict[str, Any]) -> ZayaConfig:
    """A configuration that names these tokens, for a reader that looks in config.json: transformers."""
    eos = ids.get("eos")
    fields = {f"{role}_token_id": value for role, value in ids.items() if role != "eos"}
    if eos:
        fields["eos_token_id"] = eos[0] if len(eos) == 1 else tuple(eos)
    return config.replace(**fields)


def write_ids(folder: Path, ids: dict[str, Any]) -> None:
    """Puts ids (bos, eos, pad, any of them) into a folder's generation_config.json, which may hold more."""
    path = folder / GENERATION_FILE
    values = read_json(path, strict=True) if path.is_file() else {}
    values = values if isinstance(values, dict) else {}
    for role, given in ids.items():
        new = _naturals(given)
        if role == "eos":  # all that any file names end a text
            new += [id_ for id_ in _naturals(values.get("eos_token_id")) if id_ not in new]
        if new:
            values[f"{role}_token_id"] = new[0] if len(new) == 1 else new
    if values:
        write_text(path, json.dumps(values, indent=2) + "\n")


def _naturals(given: Any) -> list[int]:
    """The token ids of a field: one, a list of them, or none (null, or a negative number)."""
    items = given if isinstance(given, list | tuple) else [given]
    return [item for item in items if type(item) is int and 0 <= item < 1 << 31]
