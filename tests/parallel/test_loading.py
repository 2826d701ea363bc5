"""A folder is read straight onto a mesh, and holds there what it holds on one device."""

import pytest

from tests import commands
from tests.helpers import random_variables
from zaya_jax.architecture import preset
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.conversion.conversion import convert


@pytest.mark.parametrize("layout", ["huggingface", pytest.param("legacy", marks=pytest.mark.slow)])
def test_eight_devices_hold_what_one_does(tmp_path, layout):
    config = preset("tiny", vocab_size=64, num_experts=8, num_hidden_layers=3)
    folder = tmp_path / "huggingface"
    save_huggingface(folder, config, random_variables(config), 100_000)
    if layout == "legacy":
        convert(folder, tmp_path / "legacy", "legacy")
    result = commands.run("tests.parallel.loading", str(tmp_path / layout), XLA_FLAGS=None)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert len(lines) == 2, lines
    for line in lines:
        assert "36 arrays equal" in line and " 0 split" not in line, line
