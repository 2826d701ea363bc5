"""The figures after TiDAR's and Zyphra's, by name: what each is drawn from, and the command that makes that.

Everything is drawn from committed result files: nothing is measured here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError
from zaya_jax.files import flush, make_folder, read_object, remedy, replacing, write_text
from zaya_jax.reporting import results
from zaya_jax.reporting.paper import stability
from zaya_jax.reporting.paper.ablations import block_size, masking, negative_control
from zaya_jax.reporting.paper.benchmarks import anchors, free_slots, strategies
from zaya_jax.reporting.paper.marks import Drawn
from zaya_jax.reporting.paper.rivals import rivals
from zaya_jax.reporting.paper.roofline import roofline
from zaya_jax.reporting.paper.samplers import beta, pass_at_16, speedup
from zaya_jax.reporting.paper.sweep_rows import MissingData
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.result_files import Record, made_of, read_record
from zaya_jax.reporting.run_files import Run, training_seed


def _read_sweep(folder: Path) -> list[results.Row]:
    """Rows of a sweep or run, each with its run's "parameters" and "training_seed"; None without its config.json."""
    rows = results.read_rows(folder)
    known: dict[str, dict[str, Any]] = {}
    for name in {row["run"] for row in rows}:
        own = folder / "runs" / name / "config.json"
        config = own if own.exists() else folder / "config.json"
        run = Run(config.parent, read_object(config) if config.exists() else {}, {}, [], [], [])
        known[name] = {"parameters": style.parameters(run), "training_seed": run.config.get("seed")}
    return [row | known[row["run"]] for row in rows]


def _read_bench(path: Path, results_folder: Path) -> Record:
    """A benchmark's numbers, its model with "training_seed": None if neither the file nor the model's run says it."""
    record = read_record(path)
    model = record.get("model")
    if isinstance(model, dict) and "training_seed" not in model:  # of before benchmarks wrote it
        parts = Path(str(model.get("checkpoint"))).parts
        below = max((i for i, part in enumerate(parts) if part == "results"), default=len(parts)) + 1
        model["training_seed"] = training_seed(results_folder.joinpath(*parts[below:])) if parts[below:] else None
    return record


@dataclasses.dataclass(frozen=True)
class Input:
    """A result file.

    Attributes:
      path: below the results folder.
      command: what makes it.
      optional: whether the figure goes without.
    """

    path: str
    command: str
    optional: bool = False

    def file(self, results_folder: Path) -> Path:
        """Where it is: the folder's own table where that is one sweep's or run's."""
        own = self.path.endswith(".csv") and results.is_own(results_folder)
        return results_folder / (results.RESULTS if own else self.path)

    def read(self, results_folder: Path) -> Any:
        """Rows of a sweep's CSV, or an object of JSON; no rows where an optional file is not there.

        Where the folder is itself a sweep's or a run's, its rows stand for those of the sweep that is not optional.

        Raises:
          FileNotFoundError: it is not there; one line that names the command.
          UserError: it is not what it should be.
        """
        path = self.file(results_folder)
        if self.optional and path != results_folder / self.path:
            return []
        if path.exists():
            with remedy(f"is made by `{self.command}`"):
                return _read_sweep(path.parent) if path.suffix == ".csv" else _read_bench(path, results_folder)
        if self.optional:
            return []
        raise FileNotFoundError(f"{path}: no such file, is made by `{self.command}`")


def _sweep(name: str, optional: bool = False) -> Input:
    command = f"python -m experiments.sweep --config=configs/sweeps/{name}.py --workdir=results/sweeps/{name}"
    return Input(f"sweeps/{name}/results.csv", command, optional)


def _bench(name: str, flags: str) -> Input:
    return Input(
        f"bench/{name}.json", f"python -m experiments.bench.sampling {flags} --output=results/bench/{name}.json"
    )


def _lowered(target: str, batch: int) -> Input:
    flags = f"--what=steps --context=4096 --batch={batch} --target={target}"
    command = f"python -m experiments.lower --config=configs/zaya1_8b.py:... {flags}"
    return Input(f"lower/{target}_decode_4k_{batch:02}.json", command, optional=True)


@dataclasses.dataclass(frozen=True)
class PaperFigure:
    """What a figure shows, its inputs, and what draws it from their contents (in order)."""

    shows: str
    inputs: tuple[Input, ...]
    draw: Callable[..., Drawn]


INTRODUCTION = (
    "The figures after TiDAR's and Zyphra's papers, drawn from committed result files. Published numbers are hollow, "
    "hatched or purple; ours are toys. This page is written by `python -m experiments.figures`; captions also stand "
    "beside the pictures (NAME.txt)."
)
_STABILITY = (
    Input(
        "stability/tiny.json",
        "python -m experiments.bench.stability --config=configs/stability.py --config.convert.steps=150 "
        "--workdir=runs/stability --parts=weights,noise,runs --at=checkpoint --draws=8,3,3 "
        "--rates=0.004,0.008,0.016,0.032,0.064 --output=results/stability/tiny.json",
    ),
)
_DECODERS = (
    Input(
        "stability/decoders.json",
        "python -m experiments.bench.stability --config=configs/stability.py --workdir=runs/stability "
        "--parts=runs,decode --rates=0.004 --seeds=1 --output=results/stability/decoders.json",
    ),
)
_RIVALS = (
    Input(
        "rivals/list_programs/results.csv",
        "python -m experiments.sweep --config=configs/sweeps/rivals.py:steps=200,seeds=1 "
        "--workdir=results/rivals/list_programs",
    ),
)
_TASKS = (_sweep("study"), _sweep("gsm_symbolic", optional=True))
_SAMPLERS = _bench("samplers", "--threads=1 --only=anchors,strategies,auto,predicted")
FIGURES: Mapping[str, PaperFigure] = {
    "pass_at_16": PaperFigure("pass@16 by task: AR, lossless, mixing (Zyphra)", _TASKS, pass_at_16),
    "speedup": PaperFigure("tokens per forward: AR, lossless, mixing, against 4.6 and 7.7 (Zyphra)", _TASKS, speedup),
    "strategies": PaperFigure("decoding strategies (TiDAR)", (_SAMPLERS,), strategies),
    "masking": PaperFigure("full against random masking (TiDAR)", (_sweep("recipe"),), masking),
    "block_size": PaperFigure(
        "block size against T and quality (TiDAR)", (_sweep("study"), _sweep("block_size", optional=True)), block_size
    ),
    "beta": PaperFigure("mixing's trade-off curve", (_sweep("samplers"),), beta),
    "free_slots": PaperFigure(
        "latency against query tokens on the device at hand (TiDAR)",
        (_bench("forward", "--only=rows,context"), _bench("few_experts", "--only=rows --large_experts=1 --batches=1")),
        free_slots,
    ),
    "roofline": PaperFigure(
        "proposals a forward against hardware (Zyphra): published peaks, and bytes that compiled programs move",
        tuple(_lowered(target, batch) for batch in (1, 8, 64) for target in ("mi300x", "mi355x", "h100")),
        roofline,
    ),
    "anchors": PaperFigure("expected and measured T against branch points", (_SAMPLERS,), anchors),
    "negative_control": PaperFigure(
        "layout-unaware CCA against CCA along the text: AR loss and T", (_sweep("architecture"),), negative_control
    ),
    "stability_noise": PaperFigure("gradient variance of nine objectives by source", _STABILITY, stability.noise),
    "rivals": PaperFigure("tokens per forward-equivalent of ways to draft (Zyphra)", _RIVALS, rivals),
    "stability_norms": PaperFigure("gradient norms of nine objectives in training", _STABILITY, stability.norms),
    "stability_margin": PaperFigure("learning rates that nine objectives stand", _STABILITY, stability.margin),
    "stability_decoders": PaperFigure("quality against T of every decoder", _DECODERS, stability.quality),
    "stability_exchange": PaperFigure("AR loss against T of objectives", _DECODERS, stability.exchange),
}


def draw(name: str, results_folder: Path | str) -> Drawn:
    """Draws a figure of FIGURES from the files below `results_folder`.

    Raises:
      FileNotFoundError, UserError: a file or rows are not there; one line that names them and the command.
    """
    chosen, folder = FIGURES[name], Path(results_folder)
    files = " and ".join(str(each.file(folder)) for each in chosen.inputs if not each.optional)
    try:
        with made_of(f"{name}: {files}"):
            return chosen.draw(*(each.read(folder) for each in chosen.inputs))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: {error}") from None
    except MissingData as lacking:
        commands = " and ".join(f"`{each.command}`" for each in chosen.inputs if not each.optional)
        raise UserError(f"{name}: {files}: got no {lacking}; made by {commands}") from None


def show(name: str, results_folder: Path | str) -> None:
    """In a notebook: the figure and its caption, or the line that says which command makes what it lacks."""
    from IPython.display import display  # only notebooks have it

    try:
        drawn = draw(name, results_folder)
    except (FileNotFoundError, ValueError) as missing:
        print(missing)
        return
    display(drawn.figure)
    print(drawn.caption)


def write(name: str, drawn: Drawn, directory: Path | str, field: str = "") -> Path:
    """Writes NAME.png and its caption NAME.txt, both or neither, makes the directory, and returns the picture's path.

    UserError, naming `field`, where the directory cannot be made.
    """
    directory = make_folder(Path(directory), field)
    path = directory / f"{name}.png"
    with replacing(path.with_suffix(".txt")) as caption:
        caption.write_text(drawn.caption + "\n", encoding="utf-8")
        flush(caption)
        with replacing(path) as picture:
            style.save(drawn.figure, picture)
    return path


def index(directory: Path | str) -> str:
    """A Markdown page of the figures that `write` has put into `directory`: picture, caption, inputs and commands."""
    directory = Path(directory)
    lines = ["# Figures", "", INTRODUCTION, ""]
    for name, figure in FIGURES.items():
        caption = directory / f"{name}.txt"
        if not caption.exists():
            continue
        said = " ".join(caption.read_text(encoding="utf-8").split())
        lines += [f"## {name}", "", f"![{figure.shows}]({name}.png)", "", said, ""]
        lines += ["Drawn by:", "", "```bash", f"python -m experiments.figures {name}", "```", ""]
        for each in figure.inputs:
            where = f"results/{each.path}" + (", where it is there" if each.optional else "")
            lines += [f"From {where}, which is made by:", "", "```bash", each.command, "```", ""]
        lines += [] if figure.inputs else ["From no result file.", ""]
    return "\n".join(lines)


def write_index(directory: Path | str) -> Path:
    """Writes README.md, the page of `index`, and returns its path."""
    path = Path(directory) / "README.md"
    write_text(path, index(directory))
    return path
