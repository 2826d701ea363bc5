import pytest
from folders import CONFIGS, random_variables

from zaya_jax.interop import save_huggingface


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One checkpoint in a file and the same in shards; copied by each test that spoils it."""
    root = tmp_path_factory.mktemp("checkpoints")
    save_huggingface(root / "file", CONFIGS["tied"], random_variables(CONFIGS["tied"]))
    save_huggingface(root / "shards", CONFIGS["tied"], random_variables(CONFIGS["tied"]), 20_000)
    return root
