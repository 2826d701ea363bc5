"""The figures after TiDAR's and Zyphra's papers, from committed result files, with the published numbers beside ours.

    python -m experiments.figures [NAME ...] [--results=results] [--output=results/figures]

Writes NAME.png and its caption NAME.txt. No name, or `all`, draws every figure whose inputs are there and names the
command that makes the others'. `readme` writes the README's tables anew, so `all readme` is all that is published here.
Names, and what each is drawn from:
"""

from pathlib import Path

from absl import flags

from experiments import cli
from zaya_jax.analysis.paper_figures import FIGURES, draw, write
from zaya_jax.analysis.readme import regenerate
from zaya_jax.errors import UserError
from zaya_jax.writing import write_text

_WIDTH = max(map(len, FIGURES))
_NEEDS = {name: ", ".join(each.path for each in chosen.inputs) or "-" for name, chosen in FIGURES.items()}
__doc__ = f"{__doc__}\n" + "".join(
    f"  {name:{_WIDTH}}  {chosen.shows}\n  {'':{_WIDTH}}    from {_NEEDS[name]}\n" for name, chosen in FIGURES.items()
)

_RESULTS = flags.DEFINE_string("results", "results", "Folder that the result files are read from.")
_README = flags.DEFINE_string("readme", "README.md", "The file whose tables `readme` writes anew.")
_OUTPUT = flags.DEFINE_string("output", "results/figures", "Folder for the figures and their captions.")


def main(*names: str) -> None:
    """Draws the named figures; a figure that cannot be drawn is one line on stderr."""
    for name in names:
        if name not in ("all", "readme", *FIGURES):
            raise UserError(f"figure: got {name!r}, may be all, readme, {', '.join(FIGURES)}")
    if "readme" in names:
        path = Path(_README.value)
        write_text(path, regenerate(path.read_text(), Path(_RESULTS.value)))
        print(path, flush=True)
    everything = not names or "all" in names
    drawn, lacking = [], []
    for name in FIGURES if everything else [name for name in dict.fromkeys(names) if name != "readme"]:
        try:
            drawn.append(write(name, draw(name, _RESULTS.value), Path(_OUTPUT.value)))
            print(drawn[-1], flush=True)
        except cli.USER_ERRORS as error:
            lacking.append(str(error))
    cli.complain(lacking)
    if lacking and not (everything and drawn):
        raise SystemExit(2)


if __name__ == "__main__":
    cli.run(main, names=True)
