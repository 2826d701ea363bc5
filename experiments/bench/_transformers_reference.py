"""transformers' ZAYA in torch as a reference on the same machine: loading it, and finding its fastest settings.

Needs the `parity` extra. Nothing else imports torch.
"""

import functools
import importlib
import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zaya_jax import ZayaConfig, preset
from zaya_jax.errors import UserError
from zaya_jax.interop import save_huggingface
from zaya_jax.runs import provenance
from zaya_jax.timing import medians

EXPERTS = 16
TRIAL_REPEATS = 3  # timed calls of a setting
NEAR = 1.5  # times the fastest setting's time, up to which one is timed again
EXPERT_KERNELS = ("eager", "batched_mm", "grouped_mm")  # transformers' ways to compute experts
PAUSE = 0.3  # seconds before each timed call: torch's and XLA's threads spin on after a call


class Setting(NamedTuple):
    """How transformers computes; none of these changes what."""

    attention: str
    experts: str
    threads: int


def require_parity_extra(command: str) -> None:
    """Raises UserError, with the command that installs them, unless torch and a transformers with ZAYA are here."""
    install = 'they come with the parity extra: pip install -e ".[parity]"'
    try:
        importlib.import_module("torch")
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UserError(f"{command} needs torch and transformers ({error}); {install}") from None
    if not hasattr(transformers, "ZayaForCausalLM"):
        version = transformers.__version__
        raise UserError(f"{command} needs a transformers with ZAYA, {version} has none; {install}")


def benchmark_config(name: str) -> ZayaConfig:
    """A preset with 16 experts whose random model has well separated logits and spreads tokens over its experts.

    Variance is kept through every matrix (a spread of 1 / sqrt(width)); smaller and the tied embedding makes the model
    repeat its last token. Without an end token neither side stops early, and transformers has nothing to look for.
    """
    config = preset(name, num_experts=EXPERTS)
    return config.replace(initializer_range=config.hidden_size**-0.5, eos_token_id=None)


def their_model(config: ZayaConfig, variables) -> Any:
    """transformers' ZayaForCausalLM in float32 with our weights.

    5.23.0 resets every router's skip bias to -1 on loading, which is what it is in fresh variables.
    """
    torch, transformers = importlib.import_module("torch"), importlib.import_module("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        save_huggingface(Path(folder) / "model", config, variables)
        model = transformers.ZayaForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32).eval()
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            tensor.data = tensor.data.clone()  # aligned memory of its own, not the mapped file about to be removed
    return model


def fastest_setting(
    theirs: Any, call: Callable[[], object], experts: Sequence[str] = EXPERT_KERNELS
) -> tuple[Setting, dict[Setting, float]]:
    """Which setting makes `call` fastest, and every setting's milliseconds.

    Once for each; medians for those that took at most `NEAR` times as long as the fastest.

    One thread is among them: torch's threads wait for each other at every operation, which small matrices do not repay
    and which another program on the same cores makes a hundred times slower.
    """
    threads = sorted({1, provenance.cores()})
    settings = itertools.product(("eager", "sdpa"), experts, threads)

    def timed(setting: Setting) -> None:
        use(theirs, setting)
        call()

    by_name = {" ".join(map(str, values)): Setting(*values) for values in settings}
    sides: dict[str, Callable[[], object]] = {
        name: functools.partial(timed, setting) for name, setting in by_name.items()
    }
    times = medians(sides, 1, "transformers' settings", PAUSE)
    near = [name for name in sides if times[name] <= NEAR * min(times.values())]
    times |= medians({name: sides[name] for name in near}, TRIAL_REPEATS, "its fastest settings", PAUSE)
    while (first := min(times, key=times.__getitem__)) not in near:  # by one measurement: noise slowed the others since
        near.append(first)
        times |= medians({first: sides[first]}, TRIAL_REPEATS, "its fastest settings", PAUSE)
    return by_name[first], {by_name[name]: time for name, time in times.items()}


def use(theirs: Any, setting: Setting) -> None:
    """Sets how transformers computes from now on."""
    importlib.import_module("torch").set_num_threads(setting.threads)
    theirs.set_attn_implementation(setting.attention)
    theirs.set_experts_implementation(setting.experts)
