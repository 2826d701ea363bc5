"""Small checkpoints for the tests of this folder."""

import jax
import numpy as np
from flax import traverse_util

from zaya_jax.architecture import ZayaConfig, preset
from zaya_jax.interop.formats.names import abstract_variables

SMALL = dict(vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0)
CONFIGS = {
    "tied": preset("tiny", **SMALL),
    "everything": preset(
        "tiny", **SMALL, tie_word_embeddings=False, attention_bias=True, lm_head_bias=True, num_hidden_layers=3,
        layer_types=("hybrid", "hybrid_sliding", "hybrid"), sliding_window=5, cca_time0=3, cca_time1=4,
        mask_token_id=7, skip_expert="identity", num_key_value_heads=1,
    ),
    "one layer": preset("tiny", **SMALL, num_hidden_layers=1),
    "bfloat16": preset("tiny", **SMALL, param_dtype="bfloat16", dtype="bfloat16"),
    "bfloat16 stored": preset("tiny", **SMALL, param_dtype="bfloat16"),
}  # fmt: skip


def random_variables(config: ZayaConfig, seed: int = 0) -> dict:
    """Every array random, of the config's shapes and dtypes."""
    rng = np.random.default_rng(seed)
    flat = {
        path: jax.device_put(rng.standard_normal(leaf.shape).astype(leaf.dtype))
        for path, leaf in abstract_variables(config).items()
    }
    return traverse_util.unflatten_dict(flat)


def assert_identical(one: dict, other: dict) -> None:
    """Bit for bit."""
    one, other = traverse_util.flatten_dict(one), traverse_util.flatten_dict(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        assert value.dtype == other[path].dtype, path
        a, b = (np.asarray(jax.device_get(x)) for x in (value, other[path]))
        assert a.shape == b.shape and a.tobytes() == b.tobytes(), path
