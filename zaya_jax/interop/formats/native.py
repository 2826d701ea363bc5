"""Our own checkpoints, for reading: the newest step's weights without the optimizer that Training keeps beside them."""

import dataclasses
import gc
import json
import os
import re
import stat
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import jax
import tensorstore as ts
from flax import traverse_util
from orbax.checkpoint import v1 as ocp

from zaya_jax import memory
from zaya_jax.architecture import ZayaConfig
from zaya_jax.architecture.execution import without_execution
from zaya_jax.architecture.moe.router import BALANCING
from zaya_jax.errors import UserError
from zaya_jax.files import make_folder, read_object, write_text
from zaya_jax.interop.formats import sums
from zaya_jax.interop.formats.names import Path as Variable
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.parallel import Placement
from zaya_jax.paths import absolute, one_line

EMBEDDING: Variable = ("params", "embed_tokens")
MODEL_FILE = "zaya_config.json"  # beside the numbered steps: what a reader needs to know of the model
LISTED = 4  # problems that a line names


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message is one line that names the path."""


def write_model_file(directory: Path | str, config: ZayaConfig) -> None:
    """Puts the model's configuration beside its steps."""
    path = make_folder(absolute(directory))
    write_text(path / MODEL_FILE, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def load_native(
    directory: Path | str, ema: bool = False, placement: Placement | None = None
) -> tuple[ZayaConfig, dict]:
    """Configuration and variables of the newest step of one of our checkpoint directories.

    Args:
      ema: the average that training kept (OptimizerConfig.ema_decay) in place of the parameters.
      placement: devices to read onto, each its own share; None for the first device.

    Raises:
      CheckpointError: no configuration, no whole step, files that do not fit it or are damaged, or values that are not
        those that were saved.
    """
    directory = absolute(directory)
    config = read_model_file(directory)
    path = directory / str(newest_step(directory))
    item, metadata = open_step(path)
    if ema and not _has_average(path):
        raise CheckpointError(f"checkpoint {directory}: holds no average of the parameters (optimizer.ema_decay is 0)")
    # Names and shapes first: what does not fit is named, and Orbax does not begin to read it.
    open_arrays(item, metadata, config, ema)
    abstract = traverse_util.unflatten_dict(abstract_variables(config))
    if placement is None:
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        places = jax.tree.map(lambda _: device, abstract)
    else:
        places = placement.shardings(abstract)
    wanted = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, places)
    memory.require_arrays(f"checkpoint {directory}", jax.tree.leaves(abstract), jax.tree.leaves(places))
    params = "ema" if ema else "params"
    saved = saved_sums(path)
    read = read_tree(path, {params: wanted["params"], BALANCING: wanted.get(BALANCING, {})})
    check_sums(path, saved, sums.of_tree(read) if saved else {})
    return config, {"params": read[params], BALANCING: read[BALANCING]}


def read_model_file(directory: Path) -> ZayaConfig:
    """The configuration beside the steps; raises CheckpointError."""
    try:
        return ZayaConfig(**without_execution(read_object(directory / MODEL_FILE)))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {directory / MODEL_FILE}: cannot be read: {one_line(error)}") from error


def newest_step(directory: Path) -> int:
    """The number of the newest whole step; raises CheckpointError where there is none."""
    check_plain(directory)
    try:
        with ocp.training.Checkpointer(str(directory)) as steps:
            newest = steps.latest
    except Exception as error:  # as in `read_tree`
        raise CheckpointError(f"checkpoint {directory}: cannot be read: {one_line(error)}") from error
    if newest is None:
        raise CheckpointError(f"checkpoint {directory}: no whole step in it")
    return newest.step


def check_plain(directory: Path) -> None:
    """Raises CheckpointError for a file below `directory` that is none: Orbax would wait for a pipe for ever."""
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                mode = os.stat(os.path.join(folder, name)).st_mode
            except FileNotFoundError:  # a step that another process removes
                continue
            except OSError as error:
                reason = error.strerror
            else:
                reason = "" if stat.S_ISREG(mode) else "not a plain file, may be no pipe or device"
            if reason:
                raise CheckpointError(f"checkpoint {os.path.join(folder, name)}: cannot be read: {reason}")


def read_metadata(path: Path) -> dict[str, Any]:
    """A JSON object of Orbax's. CheckpointError for anything else."""
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {one_line(error)}") from None


def open_array(item: Path, metadata: dict[str, Any], name: str, cache: int = 0) -> Any:
    """An array of a tree that Orbax saved, by its dotted name; nothing of it is read.

    Args:
      cache: bytes of decoded chunks to keep.
    """
    if metadata.get("use_ocdbt"):
        # not a URL, in which a folder's "%" or "#" would mean something
        base = {"driver": "file", "path": f"{item}/"}
        store: dict[str, Any] = {"driver": "ocdbt", "base": base, "path": name + "/"}
    else:
        store = {"driver": "file", "path": f"{item}/{name}/"}
    driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
    context = ts.Context({"cache_pool": {"total_bytes_limit": cache}})
    return ts.open({"driver": driver, "kvstore": store}, read=True, write=False, context=context).result()


def open_step(path: Path) -> tuple[Path, dict[str, Any]]:
    """(the folder of the one tree of arrays in a step, its metadata), of files that `newest_step` has seen to be plain.

    CheckpointError where there is no such tree.
    """
    items = [found.parent for found in path.glob("*/_METADATA")]
    if len(items) != 1:
        raise CheckpointError(f"checkpoint {path}: cannot be read: holds {len(items)} trees of arrays, may hold 1")
    return items[0], read_metadata(items[0] / "_METADATA")


def open_arrays(item: Path, metadata: dict[str, Any], config: ZayaConfig, ema: bool = False) -> dict[Variable, Any]:
    """TensorStore's arrays of a model's variables; of none of them more than its header is read.

    Raises:
      CheckpointError: arrays that are missing or not of this configuration's shapes and dtypes.
    """
    try:
        _check_embedding(item, metadata, config)
        structs = abstract_variables(config)
    except (OverflowError, TypeError, ValueError) as error:  # the file's numbers, which nobody has checked
        raise CheckpointError(f"checkpoint {item}: no model has its configuration: {one_line(error)}") from None
    arrays, problems = {}, []
    for path, struct in structs.items():
        where = f"checkpoint {item}: {'/'.join(path)}"
        try:
            array = open_array(item, metadata, stored_name(path, ema))
        except Exception as error:  # TensorStore raises many types
            average = " (no average of the parameters was kept)" if ema else ""
            problems.append(f"{where}: missing{average}: {one_line(error)}")
            continue
        if tuple(array.shape) != struct.shape or array.dtype.numpy_dtype != struct.dtype:
            got = f"got {array.dtype.name}{list(array.shape)}"
            problems.append(f"{where}: {got}, may be {struct.dtype}{list(struct.shape)}")
        arrays[path] = array
    if problems:
        more = [f"and {len(problems) - LISTED} arrays more"] if len(problems) > LISTED else []
        raise CheckpointError("; ".join([*problems[:LISTED], *more]))
    return arrays


def _check_embedding(item: Path, metadata: dict[str, Any], config: ZayaConfig) -> None:
    """CheckpointError for a configuration of other sizes than the stored embedding's, before anything is built of it.

    An embedding that cannot be read is told of with the other arrays.
    """
    try:
        shape = tuple(open_array(item, metadata, stored_name(EMBEDDING, ema=False)).shape)
    except Exception:  # TensorStore raises many types
        return
    may_be = (config.vocab_size, config.hidden_size)
    if shape != may_be:
        names = f"{MODEL_FILE} (vocab_size, hidden_size)"
        raise CheckpointError(f"checkpoint {item}: params/{EMBEDDING[1]}: got {shape}, may be {may_be}, as of {names}")


def stored_name(path: Variable, ema: bool) -> str:
    """What a variable is called in a step; `ema`: the average in place of a parameter."""
    return ".".join(("ema", *path[1:]) if ema and path[0] == "params" else path)


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
        reason = why(error)
    drop_reads()
    raise CheckpointError(f"checkpoint {path}: cannot be read: {reason}")


def saved_sums(path: Path) -> dict[str, int]:
    """What a step says its arrays' values come to (`formats.sums`). CheckpointError as of `read_metadata`."""
    try:
        return sums.of_step(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {one_line(error)}") from None


def check_sums(path: Path, saved: dict[str, int], read: dict[str, int]) -> None:
    """CheckpointError where arrays of a step were read otherwise than they were saved."""
    if names := sums.differing(saved, read):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise CheckpointError(
            f"checkpoint {path}: array {names[0]}{more}: damaged, its values are not those that were saved; delete "
            f"this step's folder to go on from the one before, or take a copy"
        )


def why(error: BaseException) -> str:
    """What Orbax or TensorStore says of a failed read, on one line: the array by name, not its whole specification."""
    text = str(error)
    paths = re.findall(r"'path': '([^']*)'", text)
    if not paths or "TensorStore(" not in text:
        return one_line(error)
    cause = f" ({one_line(error.__cause__)})" if error.__cause__ is not None else ""
    return f"array {paths[-1].rstrip('/').rpartition('/')[2]} is damaged or missing{cause}"


def drop_reads() -> None:
    """Collects the reads that a failed one leaves behind, each of which Python would report with a traceback.

    To be called outside of the `except` block, which holds them.
    """
    report, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coroutines that were never awaited
            gc.collect()
    finally:
        sys.unraisablehook = report
