"""Checkpoints on disk: the one place that talks to Orbax (v1 API).

A checkpoint directory holds numbered steps. Each step is written beside its final name and renamed when whole, so an
interrupted save leaves the one before it loadable; the data position and anything else that is plain JSON travels in
the step's metadata.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
from orbax.checkpoint import v1 as ocp

from zaya_jax.interop.formats import sums
from zaya_jax.interop.formats.native import CheckpointError, check_plain, check_sums, drop_reads, why
from zaya_jax.paths import absolute, one_line

UNFINISHED = "*.orbax-checkpoint-tmp*"  # a step that Orbax is writing, beside its final name


class Checkpoints:
    """The steps of one training phase."""

    def __init__(self, directory: Path | str, keep: int = 2):
        self.directory = absolute(directory)
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._failed = False
        self._writing: tuple[int, Any] | None = None  # a step that is being written, and Orbax's handle on it
        check_plain(self.directory)
        try:
            self._orbax = ocp.training.Checkpointer(
                str(self.directory),
                preservation_policy=policy,  # pyrefly: ignore[bad-argument-type] (their policy misses their protocol)
                cleanup_tmp_directories=True,
            )
        except Exception as error:  # it reads every step's metadata, and what it raises of a damaged one is its own
            raise CheckpointError(f"checkpoint {self.directory}: cannot be opened: {one_line(error)}") from error

    @property
    def latest(self) -> int | None:
        """The newest whole step, or None."""
        self.wait()
        newest = self._orbax.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: Any, extra: dict[str, Any], wait: bool = True) -> None:
        """Writes a pytree of arrays and a JSON-able dict.

        Args:
          wait: return when both are on disk. Otherwise when they are in the host's memory: the rest is done while
            training goes on, and the next `save`, `wait` or `load` says what became of it. The arrays may then be
            given away.

        Raises:
          CheckpointError: the disk refuses (full, read-only); the steps before stay as they were.
        """
        self.wait()
        extra = {**extra, sums.SUMS: sums.of_tree(state)}
        with self._refusals(step):
            writing = self._orbax.save_async(step, state, custom_metadata=extra, overwrite=True)
        self._writing = None if writing is None else (step, writing)
        if wait:
            self.wait()

    def wait(self) -> None:
        """Returns when what `save` has begun is on disk. CheckpointError as of `save`."""
        if self._writing is not None:
            (step, writing), self._writing = self._writing, None
            with self._refusals(step):
                writing.result()

    @contextlib.contextmanager
    def _refusals(self, step: int) -> Iterator[None]:
        """Orbax and TensorStore raise many types (OSError, ValueError, their own); all mean one thing to a user."""
        try:
            yield
        except Exception as error:
            self._failed = True
            raise CheckpointError(
                f"checkpoint {self.directory}/{step}: cannot be written: {one_line(error)}"
            ) from error

    def load(self, state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a step (the newest by default) into the shapes, dtypes and shardings of `state`.

        Raises:
          CheckpointError: no such step, or one that does not fit, cannot be read or holds other values than were saved.
        """
        step = self.latest if step is None else step
        if step is None:
            raise CheckpointError(f"checkpoint {self.directory}: no whole step in it")
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        try:
            loaded = self._orbax.load(step, abstract)
            extra = dict(cast(dict[str, Any], self._orbax.metadata(step).custom_metadata))  # what `save` was given
            saved = sums.known(extra, self.directory / str(step))
        except Exception as error:
            reason = why(error)
        else:
            check_sums(self.directory / str(step), saved, sums.of_tree(loaded) if saved else {})
            extra.pop(sums.SUMS, None)
            return loaded, extra
        drop_reads()
        raise CheckpointError(f"checkpoint {self.directory}/{step}: cannot be read: {reason}")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self._orbax.close()
        except Exception:
            if not self._failed:  # closing raises a failed save once more; `save` has said it
                raise
        finally:
            if self._failed:  # what was written of that step would keep a full disk full
                for unfinished in self.directory.glob(UNFINISHED):
                    shutil.rmtree(unfinished, ignore_errors=True)
