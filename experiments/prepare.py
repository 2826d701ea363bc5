"""Tokenises and packs a corpus once, in all processes of a host or of many; runs then read rows and no text.

    python -m experiments.prepare --text=my/folder,more.jsonl --tokenizer=TOKENIZER --row_length=4096 --output=rows/4k
    python -m experiments.prepare --chat=chats.jsonl --chat_template=tokenizer --tokenizer=smollm2 --row_length=4096 \\
        --packing=best_fit --output=rows/sft
    python -m experiments.prepare --text=~/tensorflow_datasets/lm1b/plain_text/1.1.0 --tokenizer=smollm2 \\
        --row_length=4096 --output=rows/lm1b
    python -m experiments.prepare --verify=rows/4k

A config's mixture then has {"packed": "rows/4k", "weight": 1.0} where it had {"text": [...]}. Documents go to train,
validation and test, and equal ones are kept once, as without it. Kill it at any moment: the same command does what is
left. The same command on several hosts that see the folder shares the work out. manifest.json says what was made of
what: tokenizer, template, row length, packing, checksums, counts.
"""

import sys
import time

from absl import flags

from zaya_jax.command_line import cli
from zaya_jax.data import packed
from zaya_jax.data.builders import SPLIT_BY
from zaya_jax.data.packing import Preparation, prepare_rows
from zaya_jax.data.pipeline import PACKINGS
from zaya_jax.errors import UserError
from zaya_jax.paths import absolute
from zaya_jax.runs.provenance import cores

_TEXT = flags.DEFINE_list("text", [], "Files, directories, globs, and folders that tensorflow-datasets prepared.")
_CHAT = flags.DEFINE_list("chat", [], ".jsonl files of chats, in place of --text.")
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "bytes, a tokenizer json, or a folder that holds one.")
_ROW_LENGTH = flags.DEFINE_integer("row_length", None, "Tokens in a row.", lower_bound=2, upper_bound=2**24)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the rows.")
_PACKING = flags.DEFINE_enum("packing", "first_fit", list(PACKINGS), "As a config's data.packing.")
_KEY = flags.DEFINE_string("key", "text", "Where the text stands in a .jsonl line or a tfds record.")
_SPLIT = flags.DEFINE_enum("split", "documents", SPLIT_BY, "What is held back: documents, or each one's end.")
_TFDS_SPLIT = flags.DEFINE_string("tfds_split", "train", "Which split of folders of tfds is read.")
_TEMPLATE = flags.DEFINE_string("chat_template", "plain", "Of chats, as a config's data.chat_template.")
_DATE = flags.DEFINE_string("chat_date", None, "What a template is told that asks for the date, such as 2026-11-28.")
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "How many work; default: one for each core.", lower_bound=1, upper_bound=4096
)
_VERIFY = flags.DEFINE_string("verify", None, "Read a finished folder and compare every file with its checksum.")


def main() -> None:
    if _VERIFY.value:
        print(f"{packed.verify(absolute(_VERIFY.value))} files as they were written")
        return
    if bool(_TEXT.value) == bool(_CHAT.value):
        raise UserError("--text: got " + ("--chat, too" if _TEXT.value else "nothing") + ", may be --text or --chat")
    for name, flag in (("tokenizer", _TOKENIZER), ("row_length", _ROW_LENGTH), ("output", _OUTPUT)):
        if not flag.value:
            raise UserError(f"--{name}: missing, may be such as --{name}={{}}".format(
                {"tokenizer": "bytes", "row_length": 4096, "output": "rows/4k"}[name]))  # fmt: skip
    assert _TOKENIZER.value and _ROW_LENGTH.value and _OUTPUT.value
    what = Preparation(
        tuple(_TEXT.value or _CHAT.value or ()), _TOKENIZER.value, _ROW_LENGTH.value, _PACKING.value, bool(_CHAT.value),
        _KEY.value, _SPLIT.value, _TFDS_SPLIT.value, _TEMPLATE.value, _DATE.value,
    )  # fmt: skip
    output, began = absolute(_OUTPUT.value), time.perf_counter()
    manifest = prepare_rows(what, output, _PROCESSES.value or cores(), quiet=not sys.stderr.isatty())
    for split, found in manifest["counts"].items():
        full = found["tokens"] / max(1, found["rows"] * what.row_length)
        tokens = f"{found['tokens']:,} tokens in {found['rows']:,} rows ({full:.1%} full)"
        print(f"{split}: {found['documents']:,} documents, {tokens}")
    for reason, count in manifest["dropped"].items():
        print(f"left out, {reason}: {count:,}")
    seconds = time.perf_counter() - began
    print(f"{manifest['source']['bytes']:,} bytes in {seconds:.1f} s; in a config's mixture:")
    print({"packed": str(output), "weight": 1.0})


if __name__ == "__main__":
    cli.run(main, keep_programs=False)
