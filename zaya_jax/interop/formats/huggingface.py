"""Checkpoints in Hugging Face's layout into memory and out of it: a directory with config.json and safetensors.

Which tensor is which is the family's (`families`); what can be wrong with a folder is `folder`'s.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from zaya_jax import memory
from zaya_jax.architecture import ZayaConfig
from zaya_jax.errors import UserError
from zaya_jax.files import check_new, new_folder, write_text
from zaya_jax.interop.families.table import family_of
from zaya_jax.interop.formats.folder import CONFIG_FILE, Folder, columns
from zaya_jax.interop.formats.names import Path, abstract_variables
from zaya_jax.interop.formats.shards import plan_shards, write_shards
from zaya_jax.parallel import Placement
from zaya_jax.paths import absolute

Directory = str | os.PathLike[str]
Variables = dict[str, Any]
# Bytes from which a stack of layers is put onto the devices a layer at a time, without ever being whole on the host.
BIG_STACK = 256 << 20


def load_huggingface(directory: Directory, placement: Placement | None = None) -> tuple[ZayaConfig, Variables]:
    """Reads a checkpoint folder of any family: transformers' (5.23.0), Zyphra's legacy layout, `save_huggingface`'s.

    Each tensor is read once, straight onto the devices that hold it. The host needs room for one tensor and one stack
    of at most `BIG_STACK` bytes beside the devices' own.

    Args:
      directory: holds config.json and model.safetensors, or model.safetensors.index.json and its shards.
      placement: devices to read onto, each its own share; None for the first device.

    Returns:
      (config, variables). config.param_dtype is the dtype the parameters are stored in, float32 or bfloat16 (the wider,
      into which the others fit exactly, when the file mixes them); the balancing biases are float32 always.

    Raises:
      FileNotFoundError: a file is missing; names it.
      UserError: one line naming the file and the field or tensor that is wrong: malformed JSON, an unsupported config,
        a truncated or corrupt file, missing, unexpected or wrongly shaped tensors, a tied head that is not the
        embedding, a pickle, a path that leads out of the folder.
    """
    folder = Folder(absolute(directory))
    abstract = abstract_variables(folder.config)
    if placement is None:
        places: dict[Path, Any] = dict.fromkeys(abstract, jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    else:
        places = cast(dict, traverse_util.flatten_dict(placement.shardings(traverse_util.unflatten_dict(abstract))))
    memory.require_arrays(str(folder.directory), abstract.values(), (places[path] for path in abstract))
    flat = {path: _place(folder, path, struct, places[path]) for path, struct in abstract.items()}
    return folder.config, traverse_util.unflatten_dict(flat)


def _place(folder: Folder, path: Path, struct: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.Array:
    """One of our arrays on its devices."""
    if path[1] != "layers" or struct.size * struct.dtype.itemsize < BIG_STACK:
        return _put(folder.fetch(path), struct, place)
    layer = jax.ShapeDtypeStruct(struct.shape[1:], struct.dtype)
    layer_place = _without_layers(place)
    stack = jax.jit(lambda: jnp.zeros(struct.shape, struct.dtype), out_shardings=place)()
    write = jax.jit(
        lambda stack, piece, row: jax.lax.dynamic_update_index_in_dim(stack, piece, row, 0),
        donate_argnums=0, out_shardings=place,
    )  # fmt: skip
    for row in range(struct.shape[0]):
        piece = _put(folder.fetch(path, (row,)), layer, layer_place)
        # Waiting keeps no more than one layer in flight.
        stack = jax.block_until_ready(write(stack, piece, row))
    return stack


def _put(array: np.ndarray, struct: jax.ShapeDtypeStruct, place: jax.sharding.Sharding) -> jax.Array:
    """An array in our dtype, of which each device gets its own share, one device after the other."""
    shares = []
    for device, index in place.addressable_devices_indices_map(struct.shape).items():
        # A copy: `array` is a view of what the next tensor is read over.
        share = np.array(array[index] if index else array, struct.dtype, order="C")
        shares.append(jax.block_until_ready(jax.device_put(share, device)))
    return jax.make_array_from_single_device_arrays(struct.shape, place, shares)


def _without_layers(place: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """The place of one layer of a stack; layers are never split."""
    if not isinstance(place, jax.sharding.NamedSharding):
        return place
    return jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec(*place.spec[1:]))


def save_huggingface(
    directory: Directory,
    config: ZayaConfig,
    variables: Mapping[str, Any],
    max_shard_bytes: int = 5_000_000_000,
    beside: Callable[[pathlib.Path], Any] = lambda folder: None,
) -> None:
    """Writes a checkpoint that transformers' `from_pretrained` and `load_huggingface` read, in the model's own family.

    It is written beside `directory` and renamed into place when whole: a failed or killed save leaves no `directory`.

    Args:
      directory: must not exist, or be empty.
      config: the model's; its param_dtype is what is stored.
      variables: {"params": ..., "balancing": ...}, the arrays NumPy's or JAX's, params of config.param_dtype.
      max_shard_bytes: a file holds no more, except for a single larger tensor.
      beside: called with the folder before it takes its name, to write what goes along with the weights.

    Raises:
      UserError: a missing, unexpected or wrongly shaped or typed array; `directory` holds files; max_shard_bytes < 1.
    """
    directory = absolute(directory)
    check_new(directory)  # before what takes long
    family = family_of(config)
    text = json.dumps(family.config_to_huggingface(config), indent=2) + "\n"
    shards = plan_shards(family.tensors(config), max_shard_bytes)
    source = _Memory(_check_variables(config, variables))
    with new_folder(directory) as partial:
        write_text(partial / CONFIG_FILE, text)
        write_shards(partial, family, config, shards, source)
        beside(partial)


class _Memory:
    """Variables as a source of tensors; `Folder.fetch` says how."""

    def __init__(self, arrays: Mapping[Path, Any]) -> None:
        self._arrays = arrays

    def fetch(self, path: Path, prefix: tuple[int, ...] = (), part: tuple[int, int] = (0, 1)) -> np.ndarray:
        array = self._arrays[path]
        return columns(np.asarray(array[prefix] if prefix else array), part)


def _check_variables(config: ZayaConfig, variables: Mapping[str, Any]) -> dict[Path, Any]:
    """The variables by path, of the config's shapes and dtypes."""
    arrays = cast(dict[Path, Any], traverse_util.flatten_dict({name: dict(tree) for name, tree in variables.items()}))
    expected = abstract_variables(config)
    for path in sorted(set(arrays) ^ set(expected)):
        state = "missing" if path in expected else "unexpected in this config's model"
        raise UserError(f"variables: {'/'.join(path)}: {state}")
    for path, want in expected.items():
        got = (tuple(np.shape(arrays[path])), np.dtype(arrays[path].dtype))
        if got != (want.shape, want.dtype):
            raise UserError(
                f"variables: {'/'.join(path)}: got {got[1]}{list(got[0])}, may be {want.dtype}{list(want.shape)}"
            )
    return arrays
