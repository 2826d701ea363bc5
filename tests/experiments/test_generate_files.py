"""What generate reads beside a model: files of prompts, and the tokenizer that belongs to a checkpoint."""

import json

import pytest

from zaya_jax import preset
from zaya_jax.command_line.completions import read_prompts
from zaya_jax.interop.formats.native import write_model_file
from zaya_jax.runs import tokens
from zaya_jax.text.tokenizers import BPETokenizer


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_prompts_are_the_same_whoever_saved_them(tmp_path, mark, end):
    """Windows' line ends and byte order mark, blank lines."""
    (tmp_path / "a.TXT").write_bytes(mark + end.join(["one", " two\u2028", "", ""]).encode())
    lines = [json.dumps({"prompt": prompt}) for prompt in ("one", " two\u2028\r")]
    (tmp_path / "a.jsonl").write_bytes(mark + end.join(["", lines[0], " ", lines[1], "", ""]).encode())
    assert read_prompts(tmp_path / "a.TXT") == ["one", " two\u2028"]
    assert read_prompts(tmp_path / "a.jsonl") == ["one", " two\u2028\r"]


@pytest.mark.parametrize("text", ["[]", "null", "7", "[" * 100_000, '{"tokenizer": 7, "data": []}'])
def test_a_run_whose_config_is_damaged_is_one_line(tmp_path, text):
    folder = tmp_path / "checkpoints" / "convert"
    write_model_file(folder, preset("tiny", vocab_size=290))
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json: |--tokenizer: missing"):
        tokens.tokenizer_of(folder, 290)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ValueError, match=r"tokenizer\.model is not read here; may be a tokenizer json"):
        tokens.tokenizer_of(tmp_path, 290)


def test_the_tokenizer_is_what_the_checkpoint_needs(tmp_path):
    folder = tmp_path / "run" / "checkpoints" / "convert"
    folder.mkdir(parents=True)
    assert tokens.tokenizer_of(folder, 260) == "bytes"
    with pytest.raises(ValueError, match=r"--tokenizer: missing, may be a tokenizer json \(the model has 290 ids\)"):
        tokens.tokenizer_of(folder, 290)
    write_model_file(folder, preset("tiny"))
    (tmp_path / "run" / "config.json").write_text(json.dumps({"tokenizer": "bpe.json"}))
    assert tokens.tokenizer_of(folder, 290) == "bpe.json"
    BPETokenizer.train(["some words and some more words"] * 3, 270).save(folder / "tokenizer.json")
    name, tokenizer = tokens.choose_tokenizer(None, folder, preset("tiny", vocab_size=290))
    assert name == str(folder / "tokenizer.json") and tokenizer.vocab_size == 270
    assert tokenizer.decode([289, *tokenizer.encode("words"), 280]) == "words"
    with pytest.raises(ValueError, match="--tokenizer: got '', may be bytes or a tokenizer json"):
        tokens.choose_tokenizer("", folder, preset("tiny", vocab_size=290))
    with pytest.raises(ValueError, match="has 270 ids, may have at most the model's 260"):
        tokens.choose_tokenizer(None, folder, preset("tiny"))
    with pytest.raises(ValueError, match=r"mask token 266 is '' in .*, may be no text; an unconverted model may have"):
        tokens.choose_tokenizer(None, folder, preset("tiny", vocab_size=290, mask_token_id=266))
    tokens.choose_tokenizer(None, folder, preset("tiny", vocab_size=290, mask_token_id=266), drafts=False)
