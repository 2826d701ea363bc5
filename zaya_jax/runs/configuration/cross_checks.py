"""One part of a config against another: what no field shows by itself."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
from flax import traverse_util

from zaya_jax.checks import shown
from zaya_jax.data.contents import of_tokenizer
from zaya_jax.data.packed import read_manifest
from zaya_jax.errors import UserError
from zaya_jax.evaluation.samplers import check_samplers
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.rollouts.objective import KIND, PolicyObjective
from zaya_jax.runs.configuration.mixture import MixtureSource
from zaya_jax.runs.configuration.reader import named
from zaya_jax.runs.configuration.stage import Stage
from zaya_jax.runs.configuration.tree import FROZEN_TARGET, PhaseSection, RunConfig
from zaya_jax.text.templates import ChatTemplate
from zaya_jax.text.tokenizers import Tokenizer, UntrainedBPE, ids_in_texts, may_be_mask
from zaya_jax.training.optimizer import OptimizerConfig, frozen_parameters
from zaya_jax.training.state import init_state


@dataclasses.dataclass(frozen=True)
class Found:
    """A config, and what it names."""

    run: RunConfig
    tokenizer: Tokenizer  # as it was loaded
    template: ChatTemplate
    sources: dict[str, MixtureSource]
    stages: dict[str, Stage]
    sampled: str

    @property
    def phases(self) -> Iterator[tuple[str, PhaseSection, Stage]]:
        """Those that have steps: their names, sections and stages."""
        return ((each.name, each, self.stages[each.name]) for each in self.run.phases if each.name in self.stages)


def vocabulary(found: Found) -> None:
    """Every text can be read, and what marks a draft is none."""
    model, tokenizer = found.run.model, found.tokenizer
    if ids_in_texts(tokenizer) > model.vocab_size:
        ids = ids_in_texts(tokenizer)
        raise UserError(f"model.vocab_size: got {model.vocab_size}, may be at least the tokenizer's {ids}")
    assert model.mask_token_id is not None  # ZayaConfig fills it in
    if not may_be_mask(tokenizer, model.mask_token_id):
        own = "" if tokenizer.mask_id is None else f"{tokenizer.mask_id}, or "
        raise UserError(
            f"model.mask_token_id: got {model.mask_token_id}, may be an id that is no text of the tokenizer's: "
            f"{own}{tokenizer.vocab_size} and above"
        )


def chat_date(found: Found) -> None:
    """No chat is another text when the run resumes on another day."""
    chats = found.run.evaluate.chat or any(source.template is not None for source in found.sources.values())
    if chats and found.template.asks_date and found.template.date is None:
        raise UserError(
            "data.chat_date: got None, may be a date such as '2026-11-28': the chat template writes the day's date, "
            "and a run that resumes on another day would train on other text"
        )


def row_length(found: Found) -> None:
    """Rows fit the model, and blocks fit rows."""
    for name, section, stage in found.phases:
        (where, length), most = found.run.of_phase(section, "row_length"), stage.model.max_position_embeddings
        if length > most:
            raise UserError(f"{where}: got {length}, may be at most model.max_position_embeddings ({most})")
        objective = stage.phase.objective
        if objective.drafts and objective.block_size > length:
            got = f"got {objective.block_size}, may be at most {where} ({length})"
            raise UserError(f"{name}.objective.block_size: {got}")


def packed_rows(found: Found) -> None:
    """Rows that were packed beforehand are as long as a phase's, and of the run's tokenizer."""
    mine = None
    for name, _, stage in found.phases:
        for source in stage.mixture:
            if source.packed is None:
                continue
            manifest, where = read_manifest(source.packed), f"{name}: {source.packed}"
            for field, value in (("row_length", stage.row_length), ("packing", stage.packing)):
                if manifest[field] != value:
                    got = f"holds rows of {field} {manifest[field]!r}"
                    raise UserError(f"{where}: {got}, may be of the phase's {value!r} (experiments.prepare --{field})")
            untrained = isinstance(found.tokenizer, UntrainedBPE)  # which will not be what the rows are of
            mine = None if untrained else mine or of_tokenizer(found.tokenizer)
            if manifest["tokenizer"] != mine:
                got = f"holds rows of the tokenizer {manifest['tokenizer_name']}"
                raise UserError(f"{where}: {got}, may be of {found.run.tokenizer} (experiments.prepare --tokenizer)")


def accumulation(found: Found) -> None:
    """A batch is cut into equal pieces."""
    for name, _, stage in found.phases:
        pieces = stage.phase.optimizer.accumulate
        if stage.batch_size % pieces:
            may_be = f"a divisor of batch_size ({stage.batch_size})"
            raise UserError(f"{name}.optimizer.accumulate: got {pieces}, may be {may_be}")


def freezing(found: Found) -> None:
    """Patterns match parameters, and what is frozen is not balanced."""
    for name, _, stage in found.phases:
        model, optimizer = stage.model, stage.phase.optimizer
        frozen = model.lora_rank and model.lora_rows == "drafts" and "*" in optimizer.freeze
        if frozen and model.feed_forward == "moe" and optimizer.balancing_rate:
            may_be = "0 where the context tokens' model is frozen: its balancing biases are part of it"
            raise UserError(f"{name}.optimizer.balancing_rate: got {optimizer.balancing_rate}, may be {may_be}")
        if optimizer.freeze:
            params = traverse_util.unflatten_dict(abstract_variables(model))["params"]
            try:
                frozen_parameters(optimizer, params)
            except UserError as error:
                raise UserError(named(error, OptimizerConfig, f"{name}.optimizer")) from error


def frozen_targets(found: Found) -> None:
    """A drafter that is trained alone changes nothing of its target."""
    for name, _, stage in found.phases:
        objective, optimizer = stage.phase.objective, stage.phase.optimizer
        if objective.drafter is None or objective.alpha:
            continue
        if optimizer.freeze != FROZEN_TARGET:
            may_be = f"{FROZEN_TARGET} where objective.alpha is 0: the drafter alone is trained"
            raise UserError(f"{name}.optimizer.freeze: got {optimizer.freeze}, may be {may_be}")
        if stage.model.feed_forward == "moe" and optimizer.balancing_rate:
            may_be = "0 where the target is frozen: its balancing biases are part of it"
            raise UserError(f"{name}.optimizer.balancing_rate: got {optimizer.balancing_rate}, may be {may_be}")


def continuing(found: Found) -> None:
    """An optimizer's state that comes over has the structure of its new owner's."""
    for name, section, stage in found.phases:
        if section.optimizer_state != "continue":
            continue
        field = f"{name}.optimizer_state"
        if not isinstance(stage.start, str):
            raise UserError(f"{field}: got 'continue', may be 'fresh' where a phase does not start from another")
        parent = found.stages[stage.start]
        variables = traverse_util.unflatten_dict(abstract_variables(stage.model))
        mine, theirs = (
            jax.eval_shape(functools.partial(init_state, optimizer=each.phase.optimizer, seed=0), variables)
            for each in (stage, parent)
        )
        if jax.tree.structure(mine) != jax.tree.structure(theirs):
            may_be = f"'fresh': the optimizer keeps other state than that of {parent.phase.name}"
            raise UserError(f"{field}: got 'continue', may be {may_be}")


def policies(found: Found) -> None:
    """A policy makes rollouts of tasks, in groups; nothing else does."""
    for name, section, stage in found.phases:
        objective, rollouts = stage.phase.objective, stage.rollouts
        if not isinstance(objective, PolicyObjective):
            if rollouts is not None:
                raise UserError(f"{name}.rollouts: may be None where objective.kind is not {KIND!r}")
            continue
        if rollouts is None:
            raise UserError(f"{name}.rollouts: missing, may be a section where objective.kind is {KIND!r}")
        if stage.batch_size % rollouts.group:
            may_be = f"a divisor of batch_size ({stage.batch_size}: problems x group)"
            raise UserError(f"{name}.rollouts.group: got {rollouts.group}, may be {may_be}")
        where, length = found.run.of_phase(section, "row_length")
        if rollouts.max_new_tokens >= length:
            got = f"got {rollouts.max_new_tokens}, may be below {where} ({length}): a prompt has to fit, too"
            raise UserError(f"{name}.rollouts.max_new_tokens: {got}")
        if texts := [source.name for source in stage.mixture if source.task is None]:
            where = found.run.of_phase(section, "mixture")[0]
            raise UserError(f"{where}: got {texts[0]!r}, may be tasks alone: a policy's answers must be judged")
        if stage.phase.spike_factor:
            may_be = "0: a policy's loss is about 0, whatever it learns"
            raise UserError(f"{name}.spike_factor: got {stage.phase.spike_factor}, may be {may_be}")
        if stage.mesh.context > 1:
            raise UserError(f"{name}.mesh.context: got {stage.mesh.context}, may be 1: devices cannot share rollouts")
        try:
            rollouts.check_policy(objective)
        except UserError as error:
            raise UserError(f"{name}.{error}") from error


def answers(found: Found) -> None:
    """What is sampled fits the model, and has what it is compared with."""
    evaluate, most = found.run.evaluate, found.run.model.max_position_embeddings
    if evaluate.max_new_tokens >= most:
        may_be = f"below model.max_position_embeddings ({most})"
        raise UserError(f"evaluate.max_new_tokens: got {evaluate.max_new_tokens}, may be {may_be}")
    check_samplers("evaluate.samplers", evaluate.samplers)
    if "autoregressive" not in evaluate.samplers:
        got = shown(tuple(evaluate.samplers))
        raise UserError(f"evaluate.samplers: got {got}, may be 'autoregressive' and any others")
    size = found.stages[found.sampled].phase.objective.block_size
    if evaluate.anchor_budget > size:
        may_be = f"0 (all anchors) .. block_size ({size})"
        raise UserError(f"evaluate.anchor_budget: got {evaluate.anchor_budget}, may be {may_be}")


CHECKS: tuple[Callable[[Found], None], ...] = (
    vocabulary,
    chat_date,
    row_length,
    packed_rows,
    accumulation,
    freezing,
    frozen_targets,
    continuing,
    policies,
    answers,
)


def cross_check(found: Found) -> None:
    """UserError, in one line that names the field, for the first of `CHECKS` that does not hold."""
    for check in CHECKS:
        check(found)
