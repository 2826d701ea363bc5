"""Adapters by themselves: a small folder beside a published model, which stays where it is and as it is.

adapters.safetensors holds their arrays, in bfloat16, by name; adapters.json what they need to be loaded: their rank and
rows, the mask token, the block size that they were trained to draft, the branch points that were measured to be
fastest if any were, the tokens that are drafted if not all are (`architecture.draft_vocabulary`), and a checksum of the
model that they belong to.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.architecture.draft_vocabulary import with_draft_vocabulary
from zaya_jax.checks import Choice, Integer, Items, Number, Rule, check, check_object
from zaya_jax.errors import UserError
from zaya_jax.files import new_folder, read_object, write_text
from zaya_jax.interop.editing.adapters import is_adapter
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.interop.formats.tensorfile import STORED, count_not_finite, read_header, write_file

ARRAYS, ABOUT, CARD = "adapters.safetensors", "adapters.json", "README.md"
RULES = {
    "lora_rank": Integer(1, 65_536),
    "lora_alpha": Number(1e-6, 1e6),
    "lora_rows": Choice(("all", "drafts")),
    "block_size": Integer(1, 1024),  # as far as a sampler's goes
    "mask_token_id": Integer(0, 2**31 - 1),
}


def checksum(variables: Mapping[str, Any]) -> str:
    """A hash of every number of a model, whatever dtype it is read in: bfloat16 and float32 copies have the same."""
    flat = cast(dict, traverse_util.flatten_dict(variables))
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(flat):
        if flat[path].size:
            values = np.asarray(flat[path])
            digest.update(f"{'/'.join(path)}{list(values.shape)}".encode())
            wide = values if values.dtype == np.float64 else values.astype(np.float32)
            digest.update(np.ascontiguousarray(wide).data)
    return digest.hexdigest()


def save_adapters(
    directory: Path, config: ZayaConfig, variables: Mapping[str, Any], base: tuple[ZayaConfig, Mapping[str, Any]],
    block_size: int, about: Mapping[str, Any], card: str, draft_vocabulary: Sequence[int] = (),
    anchors: Sequence[int] = (),
) -> None:  # fmt: skip
    """Writes a new folder.

    Args:
      config, variables: the model with its adapters.
      base: the published model.
      about: whatever else is worth keeping, JSON-able.
      card: README.md's text.
      draft_vocabulary: tokens that are drafted; none: any.
      anchors: accepted lengths after which a block is drafted (`SamplerConfig.anchors`); none: all.

    Raises:
      UserError: a model without adapters, one whose other weights are not the base's, or a folder that is taken.
    """
    if not config.lora_rank:
        raise UserError("ZayaConfig.lora_rank: got 0, may be above 0 where adapters are written")
    flat = cast(dict, traverse_util.flatten_dict(variables))
    adapters = {"/".join(path): jnp.asarray(leaf, jnp.bfloat16) for path, leaf in flat.items() if is_adapter(path)}
    plain = traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if not is_adapter(path)})
    mask_row = base[0].mask_token_id == NO_MASK and config.vocab_size == base[0].vocab_size + 1
    _, expected = _with_mask(*base, None if mask_row else config.mask_token_id)
    if checksum(plain) != checksum(expected):
        raise UserError("base: got another model than the adapters were trained on, whose weights were frozen")
    needed = {name: getattr(config, name) for name in RULES if name != "block_size"}
    model = {"checksum": checksum(base[1]), "vocab_size": base[0].vocab_size}
    values = {**about, **needed, "block_size": block_size, "mask_row": mask_row, "base": model}
    if draft_vocabulary:
        with_draft_vocabulary(config, {}, draft_vocabulary)
        values["draft_vocabulary"] = sorted(map(int, draft_vocabulary))
    if anchors:
        values["anchors"] = check("anchors", list(anchors), _anchors(block_size))
    with new_folder(directory) as partial:
        specs = {name: (array.shape, array.dtype) for name, array in adapters.items()}
        write_file(partial / ARRAYS, specs, lambda name: np.asarray(adapters[name]))
        write_text(partial / ABOUT, json.dumps(values, indent=2) + "\n")
        write_text(partial / CARD, card)


def read_about(directory: Path) -> dict[str, Any]:
    """adapters.json, every field that loading needs checked. UserError, FileNotFoundError: naming the file."""
    if not os.path.lexists(directory / ABOUT):
        raise FileNotFoundError(f"adapters {directory}: holds no {ABOUT}, may be a folder of `experiments.adapters`")
    about = read_object(directory / ABOUT)
    where, base = f"{directory / ABOUT}", about.get("base")
    check_object(f"{where}: ", about, RULES)
    if not isinstance(base, dict) or not isinstance(base.get("checksum"), str):
        raise UserError(f"{where}: base: got {base!r:.60}, may be an object with the checksum of a model")
    if not isinstance(about.get("mask_row"), bool):
        raise UserError(f"{where}: mask_row: got {about.get('mask_row')!r:.60}, may be true or false")
    drafted = about.get("draft_vocabulary", [])
    if not isinstance(drafted, list) or any(type(token) is not int or abs(token) >= 2**31 for token in drafted):
        raise UserError(f"{where}: draft_vocabulary: got {drafted!r:.60}, may be a list of token ids")
    if "anchors" in about:
        anchors = check(f"{where}: anchors", about["anchors"], _anchors(about["block_size"]))
        if anchors != sorted(set(anchors)):
            raise UserError(f"{where}: anchors: got {anchors!r:.60}, may be increasing integers")
    return about


def _anchors(block_size: int) -> Rule:
    return Items(Integer(1, block_size), least=1)


def load_adapters(
    directory: Path, config: ZayaConfig, variables: Mapping[str, Any]
) -> tuple[ZayaConfig, dict[str, Any], dict[str, Any]]:
    """(config, variables, sampler) of a model with the adapters of a folder.

    `sampler` holds the fields of a `SamplerConfig` that the folder sets: block_size, and anchors if it names any.

    Raises:
      UserError, FileNotFoundError: no such folder, a damaged file, or adapters of another model; naming the file.
    """
    about = read_about(directory)
    if config.lora_rank:
        raise UserError(f"adapters {directory}: the model has adapters already, may be a model without")
    if (found := checksum(variables)) != about["base"]["checksum"]:
        may_be = f"{about.get('name') or 'the model they were trained on'} ({about['base']['checksum']})"
        raise UserError(
            f"adapters {directory}: belong to another model than this one ({found}), may be loaded onto {may_be}"
        )
    config, variables = _with_mask(config, variables, None if about["mask_row"] else about["mask_token_id"])
    config = config.replace(**{name: about[name] for name in ("lora_rank", "lora_alpha", "lora_rows")})
    file = read_header(directory / ARRAYS)
    wanted = {path: leaf for path, leaf in abstract_variables(config).items() if is_adapter(path)}
    flat = cast(dict, traverse_util.flatten_dict(dict(variables)))
    for name in sorted({"/".join(path) for path in wanted} | set(file.tensors)):
        path = tuple(name.split("/"))
        got, may_be = (
            found.shape if found is not None else "nothing" for found in (file.tensors.get(name), wanted.get(path))
        )
        if got != may_be:
            raise UserError(f"{file.path}: {name}: got {got}, may be {may_be}")
        if (dtype := file.tensors[name].dtype) not in STORED:
            raise UserError(f"{file.path}: {name}: dtype: got {dtype}, may be one of {', '.join(STORED)}")
        values = np.asarray(file.read(name), np.float32)
        if bad := count_not_finite(values):
            raise UserError(f"{file.path}: {name}: {bad} of {values.size} values are NaN or infinite")
        flat[path] = jnp.asarray(values, wanted[path].dtype)
    out = traverse_util.unflatten_dict(flat)
    if about.get("draft_vocabulary"):
        try:
            out = with_draft_vocabulary(config, out, about["draft_vocabulary"])
        except UserError as error:
            raise UserError(f"{directory / ABOUT}: {error}") from None
    return config, out, {name: about[name] for name in ("block_size", "anchors") if name in about}


def _with_mask(
    config: ZayaConfig, variables: Mapping[str, Any], token: int | None
) -> tuple[ZayaConfig, Mapping[str, Any]]:
    """The model with the adapters' mask token; None: a row after its vocabulary."""
    if config.mask_token_id == NO_MASK:
        return add_mask_token(config, variables, token)
    return config, variables
