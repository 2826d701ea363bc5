"""The weights that a stage starts from, where they are a checkpoint's."""

from pathlib import Path
from typing import cast

from flax import traverse_util

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.config import NO_MASK
from zaya_jax.architecture.draft_vocabulary import COLLECTION
from zaya_jax.errors import UserError
from zaya_jax.interop.editing.adapters import fresh_adapters, fresh_drafter
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.formats.adapter_folder import load_adapters
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.interop.pretrained import load_pretrained
from zaya_jax.parallel import Placement
from zaya_jax.paths import absolute


def load_start(
    model: ZayaConfig, folder: Path, field: str, placement: Placement | None = None, seed: int = 0,
    adapters: Path | None = None,
) -> dict:  # fmt: skip
    """A checkpoint's variables, in the model's dtypes. UserError unless they are its own, by name and shape.

    A checkpoint without a mask token gets the model's: a new row where the model has just one more for it. One without
    adapters gets the model's, which add nothing yet, or those of the folder `adapters`; one without a drafter the
    model's, fresh.
    """
    theirs, variables = load_pretrained(folder, placement)
    if adapters is not None:
        theirs, variables, _ = load_adapters(absolute(adapters), theirs, variables)
        variables.pop(COLLECTION, None)  # all tokens are learned
    if theirs.mask_token_id == NO_MASK and model.mask_token_id != NO_MASK:
        row = model.vocab_size == theirs.vocab_size + 1 and model.mask_token_id == theirs.vocab_size
        theirs, variables = add_mask_token(theirs, variables, None if row else model.mask_token_id)
    mine, flat = abstract_variables(model), cast(dict, traverse_util.flatten_dict(variables))
    if not theirs.lora_rank:
        flat |= fresh_adapters(model, seed)
    if theirs.drafter is None:
        flat |= fresh_drafter(model, seed)
    for path in sorted(mine | flat):
        got, may_be = (found[path].shape if path in found else "nothing" for found in (flat, mine))
        if got != may_be:
            raise UserError(f"{field}: {folder} has {got} for {'/'.join(path)}, may be the model's {may_be}")
    return traverse_util.unflatten_dict({path: leaf.astype(mine[path].dtype) for path, leaf in flat.items()})
