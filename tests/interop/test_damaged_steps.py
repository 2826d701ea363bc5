"""Damaged files of our own checkpoints: one line of bounded length, and nothing waits for ever."""

import os
import shutil
from pathlib import Path

import pytest

from tests.helpers import no_longer_than, random_variables, small_config
from zaya_jax.interop.formats.native import CheckpointError, load_native, write_model_file
from zaya_jax.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder, config = tmp_path_factory.mktemp("steps") / "steps", small_config()
    write_model_file(folder, config)
    with Checkpoints(folder) as steps:
        steps.save(6, random_variables(config), {"data": 1})
    return folder


@pytest.mark.parametrize("kind", ["pipe", "loop"])
@pytest.mark.parametrize("name", ["6/_CHECKPOINT_METADATA", "6/state/array_metadatas/process_0", "6/state/_sharding"])
def test_a_file_that_is_none_is_named_and_not_waited_for(whole, tmp_path, name, kind):
    shutil.copytree(whole, tmp_path / "steps")
    path = tmp_path / "steps" / name
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(path.name)
    for read in (load_native, Checkpoints):  # as commands read it, and as a run resumes
        with no_longer_than(20), pytest.raises(CheckpointError, match=rf"^checkpoint {path}: cannot be read: "):
            read(tmp_path / "steps")


@pytest.mark.parametrize("name", ["d/*", "manifest.ocdbt"])
def test_many_arrays_that_are_lost_at_once_are_one_line_of_bounded_length(whole, tmp_path, name):
    shutil.copytree(whole, tmp_path / "steps")
    for path in (tmp_path / "steps" / "6" / "state").glob(name):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"/state: .*: missing: .*; and \d+ arrays more$") as error:
        load_native(tmp_path / "steps")
    assert len(str(error.value)) < 2_000 and "\n" not in str(error.value)
