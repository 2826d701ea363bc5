"""A loaded checkpoint as a command decodes from it."""

import sys
from typing import Any

from zaya_jax.architecture import Zaya, ZayaConfig, for_decoding


def decoding_form(config: ZayaConfig, variables: Any) -> tuple[Zaya, Any]:
    """`for_decoding` of a model that was just loaded and is not used otherwise; `variables` are given up.

    On a CPU bfloat16 weights are computed in float32, which one line on standard error says.
    """
    model, variables = for_decoding(Zaya(config), variables, release=True, widen=True)
    if model.config.dtype != config.dtype:
        print(f"{config.dtype} weights are computed in {model.config.dtype}: faster on a CPU", file=sys.stderr)
    return model, variables
