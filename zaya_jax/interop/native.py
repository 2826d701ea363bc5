"""Our own checkpoints, for reading: the newest step's weights without the optimizer that Training keeps beside them."""

import dataclasses
import json
from pathlib import Path
from typing import cast

import jax
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.moe import BALANCING
from zaya_jax.errors import UserError
from zaya_jax.files import one_line
from zaya_jax.interop.names import abstract_variables
from zaya_jax.parallel import Placement

MODEL_FILE = "zaya_config.json"  # beside the numbered steps: what a reader needs to know of the model


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message is one line that names the path."""


def write_model_file(directory: Path | str, config: ZayaConfig) -> None:
    """Puts the model's configuration beside its steps."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    (path / MODEL_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_native(
    directory: Path | str, ema: bool = False, placement: Placement | None = None
) -> tuple[ZayaConfig, dict]:
    """Configuration and variables of the newest step of one of our checkpoint directories.

    Args:
      ema: the average that training kept (OptimizerConfig.ema_decay) in place of the parameters.
      placement: devices to read onto, each its own share; None for the first device.

    Raises:
      CheckpointError: no configuration, no whole step, or files that do not fit it or are damaged.
    """
    directory = Path(directory).absolute()
    config = read_model_file(directory)
    path = directory / str(newest_step(directory))
    abstract = traverse_util.unflatten_dict(abstract_variables(config))
    if placement is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = jax.tree.map(lambda _: device, abstract)
    else:
        places = placement.shardings(abstract)
    wanted = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places)
    params = "ema" if ema else "params"
    if ema and not _has_average(path):
        raise CheckpointError(f"checkpoint {directory}: holds no average of the parameters (optimizer.ema_decay is 0)")
    read = read_tree(path, {params: wanted["params"], BALANCING: wanted.get(BALANCING, {})})
    return config, {"params": read[params], BALANCING: read[BALANCING]}


def read_model_file(directory: Path) -> ZayaConfig:
    """The configuration beside the steps; raises CheckpointError."""
    try:
        return ZayaConfig(**json.loads((directory / MODEL_FILE).read_text()))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {directory / MODEL_FILE}: cannot be read: {one_line(error)}") from error


def newest_step(directory: Path) -> int:
    """The number of the newest whole step; raises CheckpointError where there is none."""
    with ocp.training.Checkpointer(str(directory)) as steps:
        newest = steps.latest
    if newest is None:
        raise CheckpointError(f"checkpoint {directory}: no whole step in it")
    return newest.step


def _has_average(path: Path) -> bool:
    try:
        return bool(cast(dict, ocp.metadata(str(path)).metadata).get("ema"))
    except Exception as error:  # as in `read_tree`
        raise CheckpointError(f"checkpoint {path}: cannot be read: {one_line(error)}") from error


def read_tree(path: Path, abstract) -> dict:
    """Reads the leaves of `abstract` out of a step that may hold more (an optimizer's, say).

    Raises:
      CheckpointError: as `load_native`.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    try:
        with context:
            return cast(dict, ocp.load(str(path), abstract))
    except Exception as error:
        # Orbax and TensorStore raise many types here; to a user all mean that this checkpoint does not fit.
        raise CheckpointError(f"checkpoint {path}: cannot be read: {one_line(error)}") from error
