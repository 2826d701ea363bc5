"""The same contract against the transformers that is installed, with models no fixture holds. Needs torch."""

import make_fixtures
import pytest
from comparison import TOLERANCE, cached_logits, deviation, logits

from zaya_jax import load_pretrained
from zaya_jax.architecture import ZayaConfig
from zaya_jax.interop import (
    abstract_tensors,
    config_from_huggingface,
    config_to_huggingface,
    load_huggingface,
    save_huggingface,
)
from zaya_jax.interop.conversion.conversion import convert

torch = pytest.importorskip("torch", reason="live parity needs the `parity` extra: torch")
transformers = pytest.importorskip("transformers", reason="live parity needs the `parity` extra: transformers")
if not hasattr(transformers, "ZayaForCausalLM"):
    pytest.skip(f"transformers {transformers.__version__} has no ZAYA, 5.23.0 has", allow_module_level=True)
load_file = pytest.importorskip("safetensors.torch").load_file


@pytest.mark.parametrize("name", make_fixtures.CASES)
def test_a_new_model_agrees_and_comes_back(name, tmp_path):
    """transformers -> us: the same logits; us -> transformers: the same files, bit for bit, and they load."""
    model, tokens, valid, expected, cached = make_fixtures.make(name, 777_000)
    model.save_pretrained(tmp_path / "theirs")
    config, variables = load_huggingface(tmp_path / "theirs")
    assert deviation(logits(config, variables, tokens, valid), expected, valid) <= TOLERANCE
    if cached is not None:
        got = cached_logits(config, variables, tokens, make_fixtures.CASES[name][2]["chunks"])
        assert deviation(got, cached, valid) <= TOLERANCE

    save_huggingface(tmp_path / "ours", config, variables, max_shard_bytes=40_000)
    assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")
    again, reference = reload(tmp_path / "ours"), reload(tmp_path / "theirs")
    one, other = (make_fixtures.forward(model, tokens, valid)[0] for model in (again, reference))
    assert deviation(one, other, valid) <= 1e-5  # not 0: torch's sums depend on how a mapped file is aligned


def reload(directory):
    """from_pretrained, with nothing missing and nothing left over.

    5.23.0 resets every router's skip bias to -1 here, whatever the file holds (`ZayaPreTrainedModel._init_weights`
    assigns it past its own guard), so a reloaded model is compared with a reloaded one.
    """
    model, report = transformers.ZayaForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype="auto", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model.eval()


def assert_same_tensors(one, other):
    """Bit for bit what the files of two checkpoints hold."""
    one, other = (
        {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}
        for directory in (one, other)
    )
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


def test_bfloat16_goes_through_unchanged(tmp_path):
    model = make_fixtures.build({}, seed=5).to(torch.bfloat16)
    for layer in model.model.layers:  # a buffer transformers creates, and we store, in float32
        layer.mlp.gate.balancing_biases = layer.mlp.gate.balancing_biases.float()
    model.save_pretrained(tmp_path / "theirs")
    config, variables = load_huggingface(tmp_path / "theirs")
    assert (config.param_dtype, config.dtype) == ("bfloat16", "bfloat16")
    save_huggingface(tmp_path / "ours", config, variables)
    assert_same_tensors(tmp_path / "ours", tmp_path / "theirs")
    assert reload(tmp_path / "ours").dtype == torch.bfloat16


def test_defaults_and_the_8b_preset_mean_the_same_there():
    theirs = transformers.ZayaConfig()
    assert config_from_huggingface({}) == ZayaConfig()
    assert config_from_huggingface(theirs.to_dict()) == ZayaConfig()
    ours = transformers.ZayaConfig(**config_to_huggingface(ZayaConfig()))
    ignored = {"zaya_jax", "architectures", "dtype", "transformers_version"}
    a, b = ({k: v for k, v in c.to_dict().items() if k not in ignored} for c in (theirs, ours))
    assert a == b


def test_the_8b_names_and_shapes_are_theirs():
    with torch.device("meta"):
        model = transformers.ZayaForCausalLM(transformers.ZayaConfig())
    theirs = {name: tuple(value.shape) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert {name: shape for name, (shape, _) in abstract_tensors(ZayaConfig()).items()} == theirs


@pytest.mark.parametrize("name", ["plain", "biases_untied", "sliding"])
def test_through_zyphras_legacy_layout_and_ours_to_transformers(name, tmp_path):
    """transformers -> legacy -> ours -> transformers: the same tensors, and the same logits from each."""
    model, tokens, valid, expected, _ = make_fixtures.make(name, 555_000)
    model.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "legacy", "legacy", max_shard_bytes=40_000)
    convert(tmp_path / "legacy", tmp_path / "native", "native")
    convert(tmp_path / "native", tmp_path / "again")
    assert_same_tensors(tmp_path / "again", tmp_path / "theirs")
    for folder in ("legacy", "native", "again"):
        config, variables = load_pretrained(tmp_path / folder)
        assert deviation(logits(config, variables, tokens, valid), expected, valid) <= TOLERANCE
    one, other = (reload(tmp_path / folder) for folder in ("again", "theirs"))
    one, other = (make_fixtures.forward(model, tokens, valid)[0] for model in (one, other))
    assert deviation(one, other, valid) <= 1e-5
