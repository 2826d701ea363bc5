"""Python as `python -c CODE ARGUMENTS` runs it, for tests.commands: `python -m tests.snippet CODE ARGUMENTS`."""

import sys
import textwrap

if __name__ == "__main__":
    text = textwrap.dedent(sys.argv[1])
    sys.argv = ["-c", *sys.argv[2:]]
    exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
