"""How stable each arm of configs/stability.py is to train, and what its model is worth: everything from one checkpoint.

    python -m experiments.run --config=configs/stability.py --workdir=runs/stability --train_only \\
        --config.phases="('pretrain',)"
    python -m experiments.bench.stability --config=configs/stability.py --workdir=runs/stability \\
        --output=results/stability/tiny.json
    python -m experiments.bench.stability --config=configs/stability.py:fast --workdir=runs/fast --rates=0.004 --seeds=2

The config's `pretrain` phase must have been trained in --workdir, its `convert` phase says data, steps and optimizer of
every arm; learning rates are --rates. Every unit is written to --output as it ends, and one that is there already is
not measured again. The parts (--parts):

  weights  variance of a token's loss weight by the arm's own draws, beside the closed form
  noise    at the checkpoint, and at the end of the arm's own training: variance of loss and gradient by data, rate and
           mask (--draws of each), for the whole loss and for the draft term alone; relative noise, cosine
  runs     every arm at every rate and seed, in one program: gradient norms, spikes, and at the end the
           held-out loss of its own kind (fixed draws), the AR loss, the draft loss of whole blocks; a seed is the same
           data for every arm and rate. The first at --base_rate is kept in WORKDIR/arms
  decode   each arm's first run at --base_rate sampled losslessly and by the samplers that verify nothing: T, accuracy,
           pass@16
"""

import contextlib
import dataclasses
import functools
import io
import math
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from flax import traverse_util
from tqdm import tqdm

from configs.stability import ARMS, MORE
from zaya_jax.architecture import Zaya
from zaya_jax.checks import no_such
from zaya_jax.command_line import cli
from zaya_jax.command_line.closing import aligned
from zaya_jax.data.pipeline import make_train_iterator
from zaya_jax.errors import UserError
from zaya_jax.evaluation.draw_variance import Noise, draw_noise, draw_weights
from zaya_jax.evaluation.samplers import NamedSampler
from zaya_jax.evaluation.task_accuracy import run_sampler, task_rows
from zaya_jax.evaluation.variance import relative_variance, weight_variance
from zaya_jax.files import make_folder, read_bytes, replacing
from zaya_jax.interop.formats.native import load_native
from zaya_jax.paths import absolute, one_line
from zaya_jax.reporting.paper import stability as figures
from zaya_jax.reporting.paper.figures import write
from zaya_jax.reporting.paper.sweep_rows import MissingData
from zaya_jax.reporting.result_files import begun
from zaya_jax.reporting.tables import stability as tables
from zaya_jax.runs import provenance
from zaya_jax.runs.configuration import config_files, settings
from zaya_jax.runs.held_out import held_out_batches, open_source
from zaya_jax.sampling import SamplerConfig
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import rates
from zaya_jax.training.stability import spikes, trajectory
from zaya_jax.training.state import init_state, make_eval_step, make_train_step, summarise

PARTS = {  # by what tells a part's rows apart
    "weights": ("arm",), "noise": ("arm", "at", "term"), "runs": ("arm", "rate", "seed"),
    "decode": ("arm", "sampler", "temperature"),
}  # fmt: skip
TABLES = {
    "weights": tables.weights_table, "noise": tables.noise_table, "runs": tables.runs_table,
    "decode": tables.decode_table,
}  # fmt: skip
FIGURES = {
    "noise": figures.noise, "norms": figures.norms, "margin": figures.margin, "exchange": figures.exchange,
    "quality": figures.quality,
}  # fmt: skip
WINDOW = 50  # steps, of spikes and trajectories: runs are short
WEIGHED = 2**19  # rows whose draws' weights are looked at
_CONFIG = config_files.define_config("configs/stability.py, with its :argument.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/stability", "The run whose checkpoint everything starts from.")
_OUTPUT = flags.DEFINE_string("output", None, "Where the numbers are as JSON, and are kept; nowhere by default.")
_PARTS = flags.DEFINE_list("parts", list(PARTS), "What to measure.")
_ARMS = flags.DEFINE_list("arms", list(ARMS), f"Of {', '.join(ARMS | MORE)}.")
_RATES = flags.DEFINE_list("rates", ["0.002", "0.004", "0.008", "0.016", "0.032", "0.064"], "Learning rates.")
_BASE = flags.DEFINE_float(
    "base_rate", 0.004, "That of `decode`, and of `noise` at the end.", lower_bound=1e-9, upper_bound=1000
)
_AT = flags.DEFINE_list("at", ["checkpoint", "end"], "Where part `noise` looks: the checkpoint, each arm's end.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Of each arm and rate.", lower_bound=1, upper_bound=1000)
_FIGURES = flags.DEFINE_string("figures", None, "Folder for the study's figures, those that there are numbers for.")
_DRAWS = flags.DEFINE_list("draws", ["16", "4", "4"], "Of data, of rates for each, of masks for each of these.")


class Study:
    """The checkpoint, the data, and the results so far."""

    def __init__(self) -> None:
        config = _CONFIG.value
        if config is None:
            raise UserError("--config: missing, may be configs/stability.py")
        self.setup = settings.read(config)
        self.stage = self.setup.stages["convert"]
        self.workdir = absolute(_WORKDIR.value)
        model, self.start = load_native(self.workdir / "checkpoints" / "pretrain")
        self.model = Zaya(model, self.stage.execution)
        (source,) = self.setup.sources.values()
        self.train_data = open_source(self.setup, self.workdir, source, "train")
        held_out = held_out_batches(self.setup, self.stage, open_source(self.setup, self.workdir, source, "validation"))
        # batches stacked, and the numbers that their draws belong to
        self.numbered = jax.tree.map(lambda *x: np.stack(x), *held_out), np.arange(len(held_out), dtype=np.int32)
        self.numbers: dict[str, Any] = {
            "hardware": provenance.hardware(), "environment": provenance.describe(), "name": self.setup.name,
            "training_seed": self.setup.seed,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.start["params"])),
            "steps": self.stage.phase.steps, "batch": self.stage.batch_size,
            "row_length": self.stage.row_length, "clip_norm": self.stage.phase.optimizer.clip_norm,
            "pretrain_steps": self.setup.stages["pretrain"].phase.steps, "base_rate": _BASE.value,
            "weights": [], "noise": [], "runs": [], "decode": [],
        }  # fmt: skip
        self._resume()

    def _resume(self) -> None:
        """Takes over what --output holds. UserError where it is of another study."""
        before = begun(_OUTPUT.value, check_numbers)
        if before is None:
            return
        for name in set(self.numbers) - {"environment", *PARTS}:
            if before.get(name) != self.numbers[name]:
                raise UserError(
                    f"--output {_OUTPUT.value}: holds numbers of another {name}: got {before.get(name)!r}, may be "
                    f"{self.numbers[name]!r}"
                )
        self.numbers |= {part: before[part] for part in PARTS}

    def has(self, part: str, **unit: Any) -> bool:
        return any(all(row[name] == value for name, value in unit.items()) for row in self.numbers[part])

    def add(self, part: str, *rows: dict[str, Any]) -> None:
        self.numbers[part] += rows
        cli.write_numbers(_OUTPUT.value, self.numbers)

    def keep(self, arm: str, variables: dict) -> None:
        """Writes an arm's trained variables into the workdir."""
        flat = traverse_util.flatten_dict(jax.device_get(variables), sep="/")
        folder = make_folder(self.workdir / "arms")
        with replacing(folder / f"{arm}.npz") as partial, partial.open("wb") as file:
            np.savez(file, **flat)  # pyrefly: ignore[bad-argument-type]

    def kept(self, arm: str) -> dict:
        """What `keep` wrote. UserError where part "runs" has not."""
        path = self.workdir / "arms" / f"{arm}.npz"
        if not path.exists():
            raise UserError(f"{path}: no such file, is made by --parts=runs with --rates that have --base_rate")
        may_be = "delete it, and the rows of its arm's runs in --output"
        try:
            with np.load(io.BytesIO(read_bytes(path))) as arrays:
                found = dict(arrays)
        except (AttributeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: cannot be read ({one_line(error)}); {may_be}") from None
        start: dict[str, Any] = traverse_util.flatten_dict(self.start, sep="/")
        wanted = {name: np.shape(leaf) for name, leaf in start.items()}
        if {name: array.shape for name, array in found.items()} != wanted:
            raise UserError(f"{path}: not this model's arrays; {may_be}")
        return jax.device_put(traverse_util.unflatten_dict(found, sep="/"))

    def batches(self, seed: int, count: int) -> list[dict[str, np.ndarray]]:
        """The data of one seed: the same for every arm and rate."""
        found = make_train_iterator(
            [(self.train_data, 1.0)], self.setup.tokenizer, self.stage.row_length, self.stage.batch_size,
            self.stage.data_seed + seed, packing=self.stage.packing,
        )  # fmt: skip
        return [next(found) for _ in range(count)]


def check_numbers(numbers: dict[str, Any]) -> None:
    """Reads what an earlier command has measured as this one will."""
    for part, fields in PARTS.items():
        for row in numbers[part]:
            {name: row[name] for name in fields}
    for part, table in TABLES.items():
        if numbers[part]:
            table(numbers)


def main() -> None:
    cli.check_output(_OUTPUT.value)
    for name, known in (("parts", PARTS), ("arms", ARMS | MORE), ("at", ("checkpoint", "end"))):
        for one in flags.FLAGS[name].value or ():
            if one not in known:
                raise no_such(f"--{name}", one, known)
    learning_rates, draws = numbers("rates", float), numbers("draws", int)
    if len(draws) != 3:
        raise UserError(f"--draws: got {','.join(_DRAWS.value)!r}, may be three integers such as 16,4,4")
    study = Study()
    objectives = {name: (ARMS | MORE)[name] for name in _ARMS.value}
    measures: dict[str, Callable[[str, Objective], None]] = {
        "weights": lambda name, objective: weights(study, name, objective),
        "runs": lambda name, objective: runs(study, name, objective, learning_rates),
        "noise": lambda name, objective: noise(study, name, objective, draws),
        "decode": lambda name, objective: decode(study, name, objective),
    }
    for part in (part for part in measures if part in _PARTS.value):
        for name, objective in tqdm(objectives.items(), desc=part, unit="arm"):
            measures[part](name, objective)
    for part, table in TABLES.items():
        if study.numbers[part]:
            print(f"\n{part}\n{aligned(table(study.numbers))}", flush=True)
    if _FIGURES.value:
        for name, draw in FIGURES.items():
            with contextlib.suppress(MissingData):
                print(write(f"stability_{name}", draw(study.numbers), absolute(_FIGURES.value), "--figures"))


def numbers(flag: str, kind: Callable[[str], Any]) -> list[Any]:
    """A list flag's positive numbers. UserError, naming the flag, for anything else."""
    given: list[str] = flags.FLAGS[flag].value or []
    try:
        values = [kind(text) for text in given]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise UserError(f"--{flag}: got {','.join(given)!r}, may be positive numbers")
    return values


def weights(study: Study, name: str, objective: Objective) -> None:
    """Var(w) / E(w)^2 of a token's loss weight: measured, and in closed form."""
    if not objective.drafts or study.has("weights", arm=name):
        return
    found, error = relative_variance(*draw_weights(objective, WEIGHED, study.stage.row_length))
    study.add("weights", {
        "arm": name, "rows": WEIGHED, "measured": found, "error": error, "closed_form": weight_variance(objective)
    })  # fmt: skip


def noise(study: Study, name: str, objective: Objective, draws: list[int]) -> None:
    """Nested variance at the common checkpoint, and at the end of the arm's first run at the base rate."""
    terms = {"whole": objective}
    if objective.drafts and objective.alpha:
        terms["draft"] = dataclasses.replace(objective, alpha=0.0)
    batches = study.batches(seed=1_000, count=draws[0])  # read by no run
    for at in _AT.value:
        for term, each in terms.items():
            if study.has("noise", arm=name, at=at, term=term):
                continue
            variables = study.start if at == "checkpoint" else study.kept(name)
            found = draw_noise(study.model, variables, each, batches, *draws[1:])
            study.add("noise", {"arm": name, "at": at, "term": term, "draws": draws} | plain(found))


def plain(found: Noise) -> dict[str, Any]:
    def split(each: Any) -> dict[str, float]:
        return {field: float(value) for field, value in each._asdict().items()}

    return {
        "loss": split(found.loss),
        "gradient": {group: split(each) for group, each in found.gradient.items()},
        "relative": {measure: list(estimate) for measure, estimate in found.relative.items()},
    }


class Trained(NamedTuple):
    """What trainings of one arm left behind, one member each; leading axis: members."""

    variables: dict
    losses: np.ndarray  # float [member, step]
    norms: np.ndarray
    load: np.ndarray  # the busiest expert's share of the mask tokens (context tokens, of AR), mean of the last steps


def train(study: Study, objective: Objective, members: list[tuple[float, int]]) -> Trained:
    """Runs of an arm from the checkpoint, one after the other in one program; members are (rate, seed)."""
    phase = study.stage.phase
    optimizer = dataclasses.replace(phase.optimizer, learning_rate=1.0)  # times the share that a step is told
    step = make_train_step(study.model, objective, optimizer)
    kind = "expert_load_draft" if objective.drafts else "expert_load_clean"
    data = {seed: study.batches(seed, phase.steps) for _, seed in members}
    batches = {
        name: np.stack([[batch[name] for batch in data[seed]] for _, seed in members])
        for name in ("tokens", "document", "answer")
    }
    share = np.outer([rate for rate, _ in members], rates(phase.optimizer, phase.steps)[:-1]).astype(np.float32)

    @jax.jit
    def run(seeds, batches, share):
        def body(state, now):
            state, metrics = step(state, *now)
            return state, (metrics["loss"], metrics["grad_norm"], metrics[kind])

        def one(member):
            seed, *data = member
            state, told = jax.lax.scan(body, init_state(study.start, optimizer, seed), data)
            return state.variables, told

        return jax.lax.map(one, (seeds, batches, share))

    variables, told = run(np.array([seed for _, seed in members]), batches, share)
    losses, norms, load = (np.array(x, float) for x in told)
    return Trained(variables, losses, norms, load[:, -20:].mean(1))


def runs(study: Study, name: str, objective: Objective, learning_rates: list[float]) -> None:
    """Every rate and seed of an arm, with what each came to; the first at the base rate is kept in the workdir."""
    members = [(rate, seed) for rate in learning_rates for seed in range(_SEEDS.value)]
    members = [each for each in members if not study.has("runs", arm=name, rate=each[0], seed=each[1])]
    if not members:
        return
    done = train(study, objective, members)
    own, common = (held_out(study, each, done.variables) for each in (objective, ARMS["tidar"]))
    clip, rows = study.stage.phase.optimizer.clip_norm, []
    for i, (rate, seed) in enumerate(members):
        mine, means = jax.tree.map(lambda x, i=i: x[i], own), summarise(jax.tree.map(lambda x, i=i: x[i], common))
        row = {
            "arm": name, "rate": rate, "seed": seed, "loss": finite(objective.loss(mine, mine)),
            "ar_loss": finite(means["ar_loss"]), "draft_loss": finite(means["draft_loss"]),
            "draft_loss_by_slot": [finite(x) for x in means["draft_loss_by_slot"]],
            "spikes": int(spikes(done.losses[i], WINDOW).sum()), "load": finite(done.load[i]),
        }  # fmt: skip
        if np.isfinite(done.norms[i]).all() and len(done.norms[i]) >= WINDOW:
            row |= trajectory(done.norms[i], clip, WINDOW)._asdict()
        if rate == _BASE.value:
            row["norms"] = [finite(x, 4) for x in done.norms[i]]
        if (rate, seed) == (_BASE.value, 0):
            study.keep(name, jax.tree.map(lambda x, i=i: x[i], done.variables))
        rows.append(row)
    study.add("runs", *rows)


def held_out(study: Study, objective: Objective, variables: dict) -> dict[str, Any]:
    """Sums over the held-out batches of several models, with fixed draws."""
    step, (batches, index) = _eval_step(study.model, objective), study.numbered  # pyrefly: ignore[bad-argument-type]
    return jax.device_get(step(variables, batches, index))


@functools.lru_cache(maxsize=2)
def _eval_step(model: Zaya, objective: Objective):
    """(variables of models, batches, their numbers; each stacked) -> each model's sums, compiled."""
    step = make_eval_step(model, objective)

    @jax.jit
    def run(variables, batches, index):
        def of_model(variables):
            sums = jax.lax.map(lambda each: step(variables, *each), (batches, index))
            return jax.tree.map(lambda x: x.sum(0), sums)

        return jax.lax.map(of_model, variables)

    return run


def finite(value: Any, digits: int = 6) -> float | None:
    """JSON has neither NaN nor infinity."""
    return float(f"{float(value):.{digits}g}") if math.isfinite(float(value)) else None


def samplers(block_size: int, stop: tuple[int, ...]) -> Iterator[NamedSampler]:
    """Greedy and at temperature 1: AR, lossless drafting, and what verifies nothing."""
    unverified = {
        "one a forward": dict(target="threshold", threshold=1.0, reveal=1),
        "two a forward": dict(target="threshold", threshold=1.0, reveal=2),
        "confidence 0.9": dict(target="threshold", threshold=0.9),
        "confidence 0.7": dict(target="threshold", threshold=0.7),
        "entropy 0.1": dict(target="entropy_bounded", threshold=0.1),
        "entropy 0.35": dict(target="entropy_bounded", threshold=0.35),
    }
    modes = {"autoregressive": dict(mode="autoregressive"), "lossless": dict(mode="single_pass")}
    modes |= {name: dict(mode="block_diffusion", **fields) for name, fields in unverified.items()}
    for temperature in (0.0, 1.0):
        for name, fields in modes.items():
            given: dict[str, Any] = {
                "block_size": block_size, "stop_tokens": stop, "temperature": temperature, **fields,
            }  # fmt: skip
            yield NamedSampler(name, SamplerConfig(**given))


def decode(study: Study, name: str, objective: Objective) -> None:
    """An arm's model under every sampler, in blocks of TiDAR's size: not what drafts whole documents."""
    if objective.drafts and objective.row_layout != "tidar":
        return
    block_size, (task,) = ARMS["tidar"].block_size, study.setup.tasks
    chosen = [
        s for s in samplers(block_size, study.setup.tokenizer.eos_ids) if objective.drafts or s.name == "autoregressive"
    ]
    if all(study.has("decode", arm=name, sampler=s.name, temperature=s.config.temperature) for s in chosen):
        return
    variables, protocol = study.kept(name), study.setup.protocol
    problems = protocol.problems(task)
    results = [
        run_sampler(study.model, variables, study.setup.tokenizer, task, problems, sampler, protocol)
        for sampler in tqdm(chosen, desc=name, leave=False)
    ]
    for sampler, row in zip(chosen, task_rows(results, protocol), strict=True):
        kept = {key: value for key, value in row.items() if not key.startswith(("speedup", "seconds", "p_value"))}
        study.add("decode", {"arm": name, "lossless": sampler.config.lossless} | kept)


if __name__ == "__main__":
    cli.run(main)
