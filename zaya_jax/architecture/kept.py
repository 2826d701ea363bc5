"""What draft blocks read of the context tokens, kept apart: for training drafts where the context tokens are constants.

Where nothing that is trained acts on context tokens (adapters on mask tokens alone, `ZayaConfig.lora_rows` "drafts"),
their forward pass has no gradient. It is run first, alone, and each attention layer keeps in the collection "context"
what any block may read of it. Then the mask tokens are run alone, as many blocks as one likes, and only they are
differentiated:

    (hidden, ...), kept = model.apply(variables, layout.clean_rows(), method="backbone", mutable=[COLLECTION])
    drafts, ... = model.apply({**variables, **kept}, layout, method="backbone", drafts_alone=True)

It is to training what the cache is to decoding, but blocks start anywhere in the row, and a row may hold several
documents.
"""

import jax
from flax import linen as nn
from flax import struct

Array = jax.Array
COLLECTION = "context"


class ContextTokens(struct.PyTreeNode):
    """A layer's context tokens, [batch, row, ...]; with a leading layer axis where layers are stacked."""

    key: Array  # [..., kv_head, head_dim]: after convolution, mean, norm, temperature and rotation
    value: Array  # like key
    raw: Array  # [..., conv_channels]: raw [queries | keys]; no channels where nothing is convolved
    delayed: Array  # [..., delayed_dim]: raw delayed values


def keep(module: nn.Module, tokens: ContextTokens) -> None:
    """Puts them into the collection, if the caller asked for it (`mutable`)."""
    if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
        module.put_variable(COLLECTION, "tokens", tokens)


def read_kept(module: nn.Module) -> ContextTokens:
    """What `keep` kept in an earlier forward pass."""
    return module.get_variable(COLLECTION, "tokens")
