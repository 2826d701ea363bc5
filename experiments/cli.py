"""The command line shared by the doors: absl flags, one-line errors."""

import sys
from collections.abc import Callable, Sequence

import tensorflow_datasets as tfds
from absl import app, flags, logging

# What a user's mistake raises. Anything else is our bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, FloatingPointError)


def run(main: Callable[[], None]) -> None:
    """Parses flags and runs `main`; a user's mistake becomes one line on stderr and exit status 2."""

    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"argument {argv[1]!r}: unexpected, may be flags only (--help lists them)")
        try:
            main()
        except USER_ERRORS as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("interrupted; the same command goes on from the last checkpoint", status=130)

    # Orbax, tfds and JAX log every probe and file; a user's terminal shows progress bars and our own lines.
    logging.set_verbosity(logging.FATAL)
    logging.set_stderrthreshold(logging.FATAL)
    tfds.disable_progress_bar()
    app.run(guarded, flags_parser=_parse)


def fail(message: str, status: int = 2) -> None:
    """Ends the program with one line."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)


def _parse(argv: Sequence[str]) -> list[str]:
    if any(arg in ("--help", "-h", "-help", "--helpshort") for arg in argv[1:]):
        print(sys.modules["__main__"].__doc__)
        print(flags.FLAGS.main_module_help())
        raise SystemExit(0)
    try:
        return flags.FLAGS([_underscored(arg) for arg in argv])
    except flags.Error as error:
        # ml_collections wraps what a config file raises in its whole traceback; the last line is the reason.
        text = str(error)
        fail(f"--config: {text.strip().splitlines()[-1]}" if "Traceback" in text else text)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, ImportError, SyntaxError) as error:
        # ml_collections reads the config file and applies overrides here; it raises these for unknown keys and types.
        fail(f"--config: {error}")
    return []


def _underscored(arg: str) -> str:
    """--prompts-file=a-b as absl wants it: --prompts_file=a-b."""
    name, equals, value = arg.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else arg
