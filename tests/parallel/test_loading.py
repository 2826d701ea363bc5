"""A folder is read straight onto a mesh, and holds there what it holds on one device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import random_variables
from zaya_jax.architecture import preset
from zaya_jax.interop import save_huggingface
from zaya_jax.interop.conversion.conversion import convert

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("layout", ["huggingface", pytest.param("legacy", marks=pytest.mark.slow)])
def test_eight_devices_hold_what_one_does(tmp_path, layout):
    config = preset("tiny", vocab_size=64, num_experts=8, num_hidden_layers=3)
    folder = tmp_path / "huggingface"
    save_huggingface(folder, config, random_variables(config), 100_000)
    if layout == "legacy":
        convert(folder, tmp_path / "legacy", "legacy")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "tests.parallel.loading", str(tmp_path / layout)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stdout.splitlines()
    assert len(lines) == 2, lines
    for line in lines:
        assert "36 arrays equal" in line and " 0 split" not in line, line
