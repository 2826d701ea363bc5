"""All figures of a run, and their captions."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from zaya_jax.files import make_folder, replacing
from zaya_jax.reporting.plots import style
from zaya_jax.reporting.plots.layout_plot import layout_picture
from zaya_jax.reporting.plots.sampling_plots import accepted_histogram, forward_cost, tokens_per_forward, yields
from zaya_jax.reporting.plots.training_plots import draft_accuracy, expert_load, training_curves
from zaya_jax.reporting.run_files import Run

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
        "The four figures belong together: tokens per forward say how many sequential steps are saved, query "
        "tokens per forward what each step computes, the wall-clock ratio what it gained or lost here, "
        "accuracy what the answers are worth."
    ),
    "forward_cost": (
        "Drafting gains time only where the measured curve, read at the query tokens a forward computes, lies below "
        "the break-even line (cost ratio = tokens per forward)."
    ),
    "training_curves": (
        "Lines are training batches (all sources mixed), markers held-out text of one source; a control trains the "
        "pretrained model on for the same clean tokens with the AR loss alone, so convert is compared with it."
    ),
    "draft_accuracy": (
        "A block is drafted in one forward and no slot knows what the others chose, so later slots are harder; when "
        "sampling, slot 1 is replaced by the pending token, which is already sampled."
    ),
    "accepted_per_forward": "Each forward yields between one token (the first draft is refused) and a whole block.",
    "expert_load": (
        "Clean and mask tokens are counted separately because all mask tokens share one embedding and tend to crowd "
        "onto few experts; the dashed line is a perfectly even load."
    ),
    "layout": (
        "Every draft block sees the clean tokens before it and itself, never another block; the cells are computed by "
        "the rule that the model itself reads."
    ),
}


# What a reader who cannot see a figure is told that it shows; the caption says what to make of it.
DESCRIPTIONS = {
    "tokens_per_forward": "Four bar charts by temperature and sampler: tokens per forward, query tokens per forward, "
    "wall-clock ratio, accuracy. The table under Sampling holds the numbers.",
    "forward_cost": "Line chart: what a forward costs over a forward of one token, by its query tokens.",
    "training_curves": "Line charts of the training and validation losses of each phase by clean tokens.",
    "draft_accuracy": "Line charts: the share of draft tokens that are right, by slot of the block and by step.",
    "accepted_per_forward": "Bar charts by temperature: the share of forwards that yielded 1, 2, 3 .. tokens.",
    "expert_load": "Line charts and heat maps: how evenly tokens are spread over the experts.",
    "layout": "A grid of queries and keys: which tokens of a training row see which.",
}


def caption(name: str, run: Run) -> str:
    """What is written below a figure of this run."""
    text = CAPTIONS.get(name, name)
    if name == "accepted_per_forward":
        counts, prompts, whole = yields(run)
        forwards = sum(counted.total() for by_sampler in counts.values() for counted in by_sampler.values())
        sampled = max((row["prompts"] or 0 for row in run.rows("sampling")), default=0)
        of = f" of {sampled:,.0f}" if sampled else ""
        text += f" Counted over all {prompts:,} prompts." if whole else (
            f" This run kept no counts of all forwards: drawn from {forwards} forwards for the {prompts}{of} prompts "
            "whose samples are shown, so its means are not those of the table.")  # fmt: skip
    return text


def draw_figures(run: Run, directory: Path | str) -> list[Path]:
    """Writes every figure the run has data for as a PNG and returns their paths; creates the directory."""
    directory = make_folder(Path(directory))
    paths = []
    for name, draw in FIGURES.items():
        figure = draw(run)
        if figure is not None:
            paths.append(directory / f"{name}.png")
            with replacing(paths[-1]) as partial:
                style.save(figure, partial)
    return paths
