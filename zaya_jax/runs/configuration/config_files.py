"""Flags, config files and overrides of their fields, read so that every mistake in them is one plain line.

absl and ml_collections do the reading. What they answer to a mistake is a traceback, a KeyError of the last name of
five, or a value of thousands of letters; here it is the field, what it got, and what it may be.
"""

import ast
import contextlib
import difflib
import inspect
import itertools
import os
import sys
import traceback
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import config_path
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from zaya_jax import checks, moved
from zaya_jax.checks import shown
from zaya_jax.errors import UserError
from zaya_jax.files import read_bytes
from zaya_jax.paths import absolute, one_line

CONFIG = "config"  # the flag of every command that reads a config
LONGEST = 200  # letters of a value that are repeated
_ARGUMENTS: list[str] = []  # of this process as `parse` was given them: where ml_collections looks for overrides
# What overrides can be parsed to: a field of another type is changed in its file.
_SETTABLE = (bool, int, float, str, tuple, ConfigDict)
_WORDS = {  # of parsers that do not say themselves what they read
    "BooleanParser": "true or false",
    "TupleParser": "a tuple such as \"('a', 'b')\", or one value",
    "_ConfigDictParser": "a dict such as \"{'data': 2}\"",
}
# What ml_collections lets through of a value that cannot be read at all (nested a thousand deep, say).
_UNREADABLE = (AttributeError, KeyError, MemoryError, OSError, RecursionError, SyntaxError, TypeError, ValueError)


def define_config(words: str) -> flags.FlagHolder:
    """--config: a Python file whose get_config makes the config; --config.FIELD=VALUE changes a field of it."""
    return _define(words, flags.FLAGS, _ARGUMENTS)


def parse(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Reads a command's flags, its config with them. Returns what is no flag, the command's name first.

    Raises:
      UserError: one line that names the flag or field, what it got and what it may be.
    """
    _ARGUMENTS[:] = [_underscored(arg) for arg in argv]
    values.set_gnu_getopt()  # flags may stand after names
    return _parse(values, _ARGUMENTS)


def read_config(file: str, overrides: Sequence[str]) -> ConfigDict:
    """A config file under overrides ("--config.seed=3"), as a command's own flags would read it.

    Raises:
      UserError: as `parse`.
    """
    values, argv = flags.FlagValues(), ["", f"--{CONFIG}={file}", *overrides]
    _define("", values, argv)
    _parse(values, argv)
    config = values[CONFIG].value
    assert isinstance(config, ConfigDict)  # `load` returns nothing else
    return config


def load(spec: str) -> ConfigDict:
    """What the config file FILE or FILE:ARGUMENT makes.

    Raises:
      UserError: no such file, or one that fails: with the line of it and the exception.
    """
    path, colon, argument = spec.partition(":")
    if not path:
        raise UserError(f"--{CONFIG}: got {shown(spec)}, may be a config file such as configs/quickstart.py")
    if not absolute(path).exists():
        raise UserError(f"--{CONFIG}: {shown(path)[1:-1]}: no such file{_near_files(path)}")
    if path.lower().endswith(".json"):
        may_be = "a Python file such as configs/quickstart.py (a run's config.json records what it ran with)"
        raise UserError(f"--{CONFIG}: got {shown(path)}, may be {may_be}")
    source = read_bytes(path)
    module = types.ModuleType(f"{CONFIG}_file")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where a dataclass that the file defines looks itself up
    try:
        # not importlib: it would write a __pycache__, and read an old one of a file that changed within the second
        exec(compile(source, path, "exec"), vars(module))
        made = _get_config(module)(*[argument] * bool(colon))
    except UserError:  # the file's own words, such as of its :argument
        raise
    except Exception as error:
        place, kind, what = _place(error, path), type(error).__name__, _plain(error)
        raise UserError(f"--{CONFIG}: {place}: {kind}" + (f": {what}" if what != kind else "")) from error
    if not isinstance(made, ConfigDict):
        raise UserError(f"--{CONFIG}: {path}: get_config returned {shown(made)}, may return a ConfigDict")
    return made


def check_field(config: ConfigDict, field: str) -> None:
    """UserError unless --config.FIELD=VALUE can change this field: an unknown one is told the nearest names."""
    where, here = f"--{CONFIG}", config
    if field in moved.FIELDS:
        raise UserError(f"{where}.{field}: is {where}.{moved.FIELDS[field]} now")
    try:
        parts = config_path.split(field)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        raise UserError(f"{where}.{_short(field)}: no field's name, may be such as {where}.data.row_length") from None
    for part in parts:
        if isinstance(here, (ConfigDict, dict)):
            if not isinstance(part, str) or part not in here:
                raise checks.unknown(f"{where}.{_short(part)}", str(part), map(str, here))
            here, where = here[part], f"{where}.{part}"
        elif isinstance(here, (tuple, list)):
            if not isinstance(part, int) or not -len(here) <= part < len(here):
                may_be = f"a number below {len(here)} in brackets" if here else "given whole: it is empty"
                raise UserError(f"{where}: got item {_short(part)}, may be {may_be}")
            here, where = here[part], f"{where}[{part}]"
        elif here is None:
            raise UserError(f"{where}: None, so it has no field {_short(part)}; may be given whole: {where}=VALUE")
        else:
            raise UserError(f"{where}: {shown(here)}, so it has no field {_short(part)}")
    if isinstance(parts[-1], int):
        whole = where.rpartition("[")[0]
        raise UserError(f'{where}: an item of a tuple, may be given with all others: {whole}="{shown(here)}, ..."')
    kind = config_path.get_type(field, config)
    if kind is not object and not (isinstance(kind, type) and issubclass(kind, _SETTABLE)):
        name = getattr(kind, "__name__", kind)
        raise UserError(f"{where}: {shown(here)} of type {name}, may be changed in the config file only")


class _ConfigFile(ConfigFileFlagParser):
    """Loads the file, and checks the names of the fields that are overridden before their flags are made."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__(name=CONFIG)
        self._argv = argv

    def parse(self, path: str) -> ConfigDict:
        config = load(path)
        for field in _overridden(self._argv):
            check_field(config, field)
        return config.lock()


def _define(words: str, values: flags.FlagValues, argv: list[str]) -> flags.FlagHolder:
    holder = config_flags.DEFINE_config_file(CONFIG, None, words, values, sys_argv=argv)
    values[CONFIG].parser = _ConfigFile(argv)
    return holder


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
    try:
        if CONFIG in values and (field := next(_overridden(itertools.takewhile(_names_no_file, argv)), None)):
            raise UserError(f"--{CONFIG}.{_short(field)}: may stand after --{CONFIG}=FILE, whose field it changes")
        return values(argv)
    except flags.IllegalFlagValueError as error:
        raise UserError(_illegal(error, values)) from (error.__context__ or error)
    except flags.UnrecognizedFlagError as error:
        if (now := moved.FLAGS.get(error.flagname)) and now in values:
            raise UserError(f"--{error.flagname}: is --{now} now") from error
        raise UserError(_without_long_values(str(error), argv)) from error
    except flags.Error as error:
        raise UserError(_without_long_values(str(error), argv)) from error
    except UserError:
        raise
    except _UNREADABLE as error:
        if unknown := next(
            (arg for arg in argv if arg.startswith("--") and len(arg.partition("=")[0]) > LONGEST), None
        ):
            raise UserError(f"{_short(unknown)}: unknown flag") from error  # absl gave up on names that are near it
        raise UserError(f"--{CONFIG}: {type(error).__name__}: {one_line(error)}") from error


def _illegal(error: flags.IllegalFlagValueError, values: flags.FlagValues) -> str:
    """In plain words what absl spells "flag --NAME=VALUE: reason"."""
    reason = error.__context__
    if isinstance(reason, UserError):
        return str(reason)
    name, _, rest = str(error).removeprefix("flag --").partition("=")
    if name not in values or reason is None:
        return _short(str(error))
    got, parser = rest.removesuffix(f": {reason}"), values[name].parser
    if isinstance(parser, flags.EnumParser):
        return str(checks.no_such(f"--{name}", got, parser.enum_values))
    may_be = parser.syntactic_help or _WORDS.get(type(parser).__name__) or one_line(reason)
    return f"--{name}: got {shown(got)}, may be {may_be}"


def _get_config(module: types.ModuleType) -> Any:
    """A config file's function. UserError where there is none, or none that takes an :argument or comes without."""
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"--{CONFIG}: {module.__file__}: has no get_config, may define get_config(arg=None)")

    def called(*arguments: str) -> Any:
        try:
            inspect.signature(function).bind(*arguments)
        except TypeError:
            words = "takes no :argument" if arguments else "needs an :argument"
            raise UserError(f"--{CONFIG}: {module.__file__}: its get_config {words}") from None
        return function(*arguments)

    return called


def _place(error: BaseException, path: str) -> str:
    """FILE:LINE of what the config file was doing, or where a file that it imports cannot be read."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{error.filename}:{error.lineno}"
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
    return f"{path}:{lines[-1]}" if lines else path


def _plain(error: BaseException) -> str:
    """Its message on one line, without the quotes that KeyError puts around it (ConfigDict raises one of another)."""
    if isinstance(error, SyntaxError):
        return error.msg
    if isinstance(error, (AttributeError, KeyError)):
        with contextlib.suppress(ValueError, SyntaxError):
            return " ".join(str(ast.literal_eval(str(error))).split())[:300]
    return one_line(error)


def _near_files(path: str) -> str:
    """ ", did you mean configs/quickstart.py?", of the files beside `path` and in configs/."""
    folders = dict.fromkeys((Path(path).expanduser().parent, Path("configs")))
    found = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.py"))]
    name = Path(path).name.removesuffix(".py")
    near = difflib.get_close_matches(name, {file.stem for file in found}, checks.NEAR)
    meant = [str(file) for stem in near for file in found if file.stem == stem]
    return f", did you mean {' or '.join(meant)}?" if meant else ""


def _names_no_file(arg: str) -> bool:
    return arg.partition("=")[0] not in (f"--{CONFIG}", f"-{CONFIG}")


def _overridden(argv: Iterable[str]) -> Iterator[str]:
    """The fields that an argument changes: --config.FIELD=VALUE, --noconfig.FIELD."""
    for arg in flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False):
        name, dot, field = arg.partition("=")[0].partition(".")
        if dot and name.lstrip("-") in (CONFIG, f"no{CONFIG}") and name.startswith("-"):
            yield field


def _underscored(arg: str) -> str:
    """--prompts-file=a-b as absl wants it: --prompts_file=a-b; and --config=~/a.py as Python opens it."""
    name, equals, value = arg.partition("=")
    if name.lstrip("-") == CONFIG:
        value = os.path.expanduser(value)
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else arg


def _without_long_values(message: str, argv: Sequence[str]) -> str:
    """A message of absl's that repeats whole arguments, each cut to a bearable length."""
    for arg in argv:
        for text in filter(None, arg.lstrip("-").partition("=")[::2]):
            if len(text) > LONGEST:
                message = message.replace(text, _short(text))
    return _short(message, 5 * LONGEST)


def _short(text: Any, limit: int = LONGEST) -> str:
    text = str(text)
    return text if len(text) <= limit else f"{text[:limit]}..."
