"""The same contract against the transformers that is installed, with models no fixture holds. Needs torch."""

import dataclasses

import make_llama_fixtures
import pytest
from comparison import TOLERANCE, deviation, logits

from tests.test_extending import shown
from zaya_jax.interop import config_from_huggingface, config_to_huggingface, load_huggingface, save_huggingface
from zaya_jax.interop.conversion.conversion import convert
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.families.llama import LLAMA, RELATIVES
from zaya_jax.interop.families.table import FAMILIES

torch = pytest.importorskip("torch", reason="live parity needs the `parity` extra: torch")
transformers = pytest.importorskip("transformers", reason="live parity needs the `parity` extra: transformers")


@pytest.mark.parametrize("name", make_llama_fixtures.CASES)
def test_a_new_model_agrees_and_transformers_loads_it_again(name, tmp_path):
    model, tokens, valid, expected = make_llama_fixtures.make(name, 777)
    model.save_pretrained(tmp_path / "theirs")
    config, variables = load_huggingface(tmp_path / "theirs")
    assert deviation(logits(config, variables, tokens, valid), expected, valid) <= TOLERANCE
    save_huggingface(tmp_path / "ours", config, variables)
    again = make_llama_fixtures.forward(reload(tmp_path / "ours", type(model)), tokens, valid)
    assert deviation(again, expected, valid) <= 1e-5  # not 0: torch's sums depend on how a mapped file is aligned


def reload(directory, kind=None):
    """from_pretrained, with nothing missing and nothing left over; the folder alone says which class."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype="auto", output_loading_info=True
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    assert kind is None or type(model) is kind
    return model.eval()


def test_the_family_that_the_page_adds_is_transformers(tmp_path, monkeypatch):
    """Helium, by docs/extending.md: read, written as a Llama, and as itself again, transformers' logits each time."""
    case = ("Helium", dict(head_dim=6), 40, (0, 7))
    monkeypatch.setitem(make_llama_fixtures.CASES, "helium", case)
    model, tokens, valid, expected = make_llama_fixtures.make("helium", 779)
    model.save_pretrained(tmp_path / "theirs")
    monkeypatch.setattr(FAMILIES, "entries", dict(FAMILIES.entries))
    exec(compile(shown("my_family.py"), "my_family.py", "exec"), {"__name__": "my_family.py"})
    config, variables = load_huggingface(tmp_path / "theirs")
    assert deviation(logits(config, variables, tokens, valid), expected, valid) <= TOLERANCE
    for format, kind in (("huggingface", transformers.LlamaForCausalLM), ("helium", type(model))):
        convert(tmp_path / "theirs", tmp_path / format, format)
        again = make_llama_fixtures.forward(reload(tmp_path / format, kind), tokens, valid)
        assert deviation(again, expected, valid) <= 1e-5


@pytest.mark.parametrize("tied", [True, False])
def test_a_row_for_the_mask_token_changes_no_logit_of_the_others(tied, tmp_path):
    model, tokens, valid, expected = make_llama_fixtures.make("llama" if tied else "llama3_rope", 778)
    model.save_pretrained(tmp_path / "theirs")
    config, variables = add_mask_token(*load_huggingface(tmp_path / "theirs"))
    assert (config.vocab_size, config.mask_token_id) == (49, 48)
    save_huggingface(tmp_path / "ours", config, variables)
    theirs = make_llama_fixtures.forward(reload(tmp_path / "ours"), tokens, valid)
    assert deviation(theirs[..., :48], expected, valid) <= 1e-5
    ours = logits(config, variables, tokens, valid)
    assert deviation(ours, theirs, valid) <= TOLERANCE
    assert load_huggingface(tmp_path / "ours")[0] == config


@pytest.mark.parametrize("relative", RELATIVES, ids=lambda relative: relative.model_type)
def test_an_empty_file_has_their_defaults(relative):
    theirs = getattr(transformers, relative.architecture.replace("ForCausalLM", "Config"))()
    whole = config_from_huggingface({**theirs.to_dict(), "model_type": relative.model_type})
    assert config_from_huggingface({"model_type": relative.model_type}) == whole
    assert dataclasses.replace(whole, rope_theta=theirs.rope_parameters["rope_theta"]) == whole


def test_what_older_versions_read_says_the_same():
    """Files before transformers 5 had rope_theta and rope_scaling; ours say it in both forms."""
    config = config_from_huggingface(
        {"model_type": "llama", "rope_theta": 5e5, "rope_scaling": {**make_llama_fixtures.LLAMA3, "rope_theta": 5e5}}
    )
    values = config_to_huggingface(config)
    old = {name: value for name, value in values.items() if name != "rope_parameters"}
    new = {name: value for name, value in values.items() if name not in ("rope_theta", "rope_scaling")}
    a, b = (transformers.LlamaConfig(**form).to_dict() for form in (old, new))
    assert a["rope_parameters"] == b["rope_parameters"]
    assert config_from_huggingface(old) == config_from_huggingface(new) == config
    assert LLAMA.reads(values)
