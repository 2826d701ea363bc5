"""All figures of a run, and their captions."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from zaya_jax.analysis import style
from zaya_jax.analysis.layout_plot import layout_picture
from zaya_jax.analysis.results import Run
from zaya_jax.analysis.sampling_plots import accepted_histogram, forward_cost, tokens_per_forward
from zaya_jax.analysis.training_plots import draft_accuracy, expert_load, training_curves
from zaya_jax.writing import replacing

# File stem -> the figure (None where the run lacks its data); in the order of the report.
FIGURES: dict[str, Callable[[Run], Figure | None]] = {
    "tokens_per_forward": tokens_per_forward,
    "forward_cost": forward_cost,
    "training_curves": training_curves,
    "draft_accuracy": draft_accuracy,
    "accepted_per_forward": accepted_histogram,
    "expert_load": expert_load,
    "layout": layout_picture,
}
CAPTIONS = {
    "tokens_per_forward": (
        "The four figures belong together: tokens per forward say how many sequential steps are saved, rows per "
        "forward what each step computes, the wall-clock ratio what it gained or lost here, "
        "accuracy what the answers are worth."
    ),
    "forward_cost": (
        "Drafting gains time only where the measured curve, read at the rows a forward computes, lies below the "
        "break-even line (cost ratio = tokens per forward)."
    ),
    "training_curves": (
        "Lines are training batches (all sources mixed), markers held-out text of one source; a control trains the "
        "pretrained model on for the same clean tokens with the AR loss alone, so convert is compared with it."
    ),
    "draft_accuracy": (
        "A block is drafted in one forward and no slot knows what the others chose, so later slots are harder; when "
        "sampling, slot 1 is replaced by a token that is already settled."
    ),
    "accepted_per_forward": "Each forward yields between one token (the first draft is refused) and a whole block.",
    "expert_load": (
        "Clean and mask rows are counted apart because all mask rows share one embedding and tend to crowd onto few "
        "experts; the dashed line is a perfectly even load."
    ),
    "layout": (
        "Every draft block sees the clean tokens before it and itself, never another block; the cells are computed by "
        "the rule that the model itself reads."
    ),
}


def draw_figures(run: Run, directory: Path | str) -> list[Path]:
    """Writes every figure the run has data for as a PNG and returns their paths; creates the directory."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in FIGURES.items():
        figure = draw(run)
        if figure is not None:
            paths.append(directory / f"{name}.png")
            with replacing(paths[-1]) as partial:
                figure.savefig(partial, dpi=style.DPI, format="png")
    return paths
