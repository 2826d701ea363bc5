"""The fixture of this folder: a made-up run directory."""

import pytest

from tests.reporting.made_up_run import build_run


@pytest.fixture
def make_run(tmp_path):
    """make_run(**options) -> path: see `build_run`."""
    return lambda **options: build_run(tmp_path / "run", **options)
