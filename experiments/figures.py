"""The figures after TiDAR's and Zyphra's papers, from committed result files, with the published numbers beside ours.

    python -m experiments.figures roofline beta --output=/tmp/figures
    python -m experiments.figures all reports pages
    python -m experiments.figures block_size --results=runs/sweeps/block_size --output=/tmp/figures

Arguments are names of figures. Writes NAME.png and its caption NAME.txt, and README.md, a page of all of them. No name,
or `all`, draws every figure whose inputs are there and names the command that makes the others'. --results may also be
the folder of your own sweep or run. `reports` draws the figures and the report of every run below --results anew (of
those that have some), and `pages` the tables of README.md and docs/: `all reports pages` is all that is published here.
Names, and what each is drawn from:
"""

from absl import flags

from zaya_jax.command_line import cli
from zaya_jax.errors import UserError
from zaya_jax.paths import absolute
from zaya_jax.reporting.html.report import redraw
from zaya_jax.reporting.markdown_pages import rewrite
from zaya_jax.reporting.paper.figures import FIGURES, draw, write, write_index

_WIDTH = max(map(len, FIGURES))
_NEEDS = {name: ", ".join(each.path for each in chosen.inputs) or "-" for name, chosen in FIGURES.items()}
__doc__ = f"{__doc__}\n" + "".join(
    f"  {name:{_WIDTH}}  {chosen.shows}\n  {'':{_WIDTH}}    from {_NEEDS[name]}\n" for name, chosen in FIGURES.items()
)

_RESULTS = flags.DEFINE_string("results", "results", "Folder that the result files are read from.")
_PAGES = flags.DEFINE_string("pages", ".", "The clone whose README.md and docs/ `pages` writes anew.")
_OUTPUT = flags.DEFINE_string("output", "results/figures", "Folder for the figures and their captions.")


def main(*names: str) -> None:
    """Draws the named figures; a figure whose inputs are not there is one line on stderr."""
    for name in names:
        if name not in ("all", "reports", "pages", *FIGURES):
            raise UserError(f"figure: got {name!r}, may be all, reports, pages, {', '.join(FIGURES)}")
    if "reports" in names:
        written = redraw(absolute(_RESULTS.value))
        print(*written or ["reports: there is none"], sep="\n", flush=True)
    if "pages" in names:
        changed = rewrite(absolute(_PAGES.value), absolute(_RESULTS.value))
        print(*changed or ["pages: nothing has changed"], sep="\n", flush=True)
    if not _OUTPUT.value:
        raise UserError("--output: missing, may be a folder")
    everything = not names or "all" in names
    drawn, lacking = [], []
    for name in FIGURES if everything else [name for name in dict.fromkeys(names) if name not in ("reports", "pages")]:
        try:
            figure = draw(name, absolute(_RESULTS.value))
        except cli.USER_ERRORS as error:
            lacking.append(str(error))
            continue
        drawn.append(write(name, figure, absolute(_OUTPUT.value), "--output"))
        print(drawn[-1], flush=True)
    if drawn:
        page = write_index(absolute(_OUTPUT.value))
        print(f"{len(drawn)} of {len(drawn) + len(lacking)} figures drawn; all with their captions: {page}", flush=True)
    cli.complain(lacking)
    if lacking and not (everything and drawn):
        raise SystemExit(2)


if __name__ == "__main__":
    cli.run(main, names=True)
