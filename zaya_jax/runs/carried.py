"""The tokenizer and chat template of a run, as files beside a checkpoint's weights: it can then be read anywhere."""

import json
import shutil
import tempfile
from pathlib import Path

import tokenizers

from zaya_jax.files import copy_file, named_as, refused_in_one_line, write_text
from zaya_jax.interop.conversion.companions import copy_companions, write_ids
from zaya_jax.text.published import TOKENIZER_FILE
from zaya_jax.text.special_tokens import SPELLED, read_object
from zaya_jax.text.templates import TEMPLATE_FILE, ChatTemplate
from zaya_jax.text.tokenizers import (
    OWN_BPE,
    BPETokenizer,
    ByteTokenizer,
    byte_vocabulary,
    load_tokenizer,
    tokenizer_file,
)

# Without it transformers would guess the class from the model's type.
FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


def spec_in(workdir: Path, spec: str) -> str:
    """What the tokenizer of a run's config is, as of `load_tokenizer`: one that the run trains is in its workdir."""
    return str(workdir / TOKENIZER_FILE) if spec.startswith(OWN_BPE) else spec


def write_tokenizer(folder: Path, spec: str, template: ChatTemplate | None) -> None:
    """Puts a tokenizer, the ids that begin, end and fill its texts, and a chat template into a folder.

    Files that are there are replaced one by one, each at once.

    Args:
      spec: as of `load_tokenizer`; "bytes" becomes a tokenizer.json without merges, which is read as "bytes" again.
      template: None: the folder is left without one.

    Raises:
      UserError, FileNotFoundError: no such tokenizer.
      WriteError: the system refuses; it names `folder`, or the file in it.
    """
    tokenizer = load_tokenizer(spec)
    with refused_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".tokenizer.", dir=folder)
    with temporary as scratch, named_as(Path(scratch), folder):
        fresh = Path(scratch)
        if isinstance(tokenizer, BPETokenizer | ByteTokenizer):
            own = _of_bytes() if isinstance(tokenizer, ByteTokenizer) else tokenizer
            own.save(fresh / TOKENIZER_FILE)
            write_text(fresh / SPELLED, json.dumps(FAST, indent=2) + "\n")
        else:
            _copy_published(tokenizer_file(spec), fresh)
        write_ids(fresh, {"bos": tokenizer.bos_id, "eos": list(tokenizer.eos_ids), "pad": tokenizer.pad_id})
        if template is not None:
            write_text(fresh / TEMPLATE_FILE, template.source)
        for path in fresh.iterdir():
            path.replace(folder / path.name)


def _copy_published(path: Path, folder: Path) -> None:
    """A published tokenizer with what says which of its tokens are special, but for its templates and licence."""
    copy_companions(path.parent, folder)
    copy_file(path, folder / TOKENIZER_FILE)  # whatever it is called there
    for extra in (TEMPLATE_FILE, "chat_template.json", "additional_chat_templates"):
        target = folder / extra
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    values = read_object(folder / SPELLED)
    if values.pop("chat_template", None) is not None:
        write_text(folder / SPELLED, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _of_bytes() -> BPETokenizer:
    """A byte-level BPE without merges: each byte is its own id."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(byte_vocabulary(), []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    return BPETokenizer(model)
