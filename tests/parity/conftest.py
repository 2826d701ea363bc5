"""Makes `make_fixtures` importable whatever pytest's import mode is."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
