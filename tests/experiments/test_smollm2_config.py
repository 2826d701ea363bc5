"""configs/smollm2*.py without the model: what each choice trains, and what it starts from."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs import smollm2, smollm2_rivals, smollm2_tasks
from tests.experiments.test_generate_command import CHATML
from tests.text.published import SPELLED, byte_level, publish
from zaya_jax.architecture import Zaya
from zaya_jax.interop.formats.names import abstract_variables
from zaya_jax.runs.configuration import settings
from zaya_jax.text.templates import load_template
from zaya_jax.training.optimizer import frozen_parameters

SMOLLM2 = 134_515_008  # parameters as published


def trained(stage: settings.Stage) -> tuple[int, int]:
    """(parameters that train, all parameters)"""
    params = traverse_util.unflatten_dict(abstract_variables(stage.model))["params"]
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    held = np.array([mask is True for mask in jax.tree.leaves(frozen_parameters(stage.phase.optimizer, params))])
    return int(np.array(sizes)[~held].sum()), sum(sizes)


@pytest.mark.parametrize(
    ("arg", "alpha", "distill", "rows"),
    [("", 1.0, 0.0, "all"), (",lora", 1.0, 0.0, "all"), (",drafts,smoke,block_size=4", 0.0, 1.0, "drafts")],
)
def test_what_is_trained(arg, alpha, distill, rows, tmp_path):
    folder = publish(tmp_path, byte_level(), tokenizer_config=SPELLED | {"chat_template": CHATML})
    setup = settings.read(smollm2.get_config(f"start={folder}{arg}"))
    stage = setup.stages["convert"]
    count, total = trained(stage)
    layers, hidden, inner, kv, rank = 30, 576, 1536, 192, 32
    ends = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden), (hidden, 2 * inner), (inner, hidden)]
    adapters = layers * rank * sum(a + b for a, b in ends) + hidden
    assert (count, total) == (
        (SMOLLM2 + hidden,) * 2 if not arg else (adapters, SMOLLM2 + hidden + adapters)
    )  # the mask token's row is new
    assert (stage.phase.objective.alpha, stage.phase.objective.distill, stage.model.lora_rows) == (alpha, distill, rows)
    assert str(stage.start) == str(folder) and stage.model.mask_token_id == 49_152
    assert {source.template for source in stage.mixture} == {None, load_template(CHATML, setup.tokenizer)}


@pytest.mark.parametrize("arg", ["lora", "drafts"])
def test_a_smoke_run_evaluates_in_seconds(arg, tmp_path):
    """Of 135 million parameters a CPU computes a forward in a fifth of a second, and every program takes seconds."""
    folder = publish(tmp_path, byte_level(), tokenizer_config=SPELLED | {"chat_template": CHATML})
    setup = settings.read(smollm2.get_config(f"start={folder},{arg},smoke"))
    assert setup.protocol.prompts * setup.protocol.max_new_tokens <= 16
    assert [(s.name, s.config.temperature) for s in setup.samplers] == [("autoregressive", 0), ("lossless", 0)]
    assert not setup.measures_cost and not setup.anchor_budget and setup.validation_batches == 1
    assert [task.name for task in setup.tasks] == ["addition"] and not setup.texts


def test_contradictions_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where README's commands have written no folder "smollm2"
    with pytest.raises(ValueError, match="config argument drafts: contradicts lora"):
        smollm2.get_config("lora,drafts")
    with pytest.raises(FileNotFoundError, match="tokenizer: got 'smollm2', must be"):
        settings.read(smollm2.get_config())
    publish(tmp_path, byte_level(), tokenizer_config=SPELLED)
    with pytest.raises(ValueError, match="chat_template: got 'tokenizer', but there is none beside"):
        settings.read(smollm2.get_config(f"start={tmp_path}"))


def test_the_tasks_forms_train_what_they_say(tmp_path):
    folder = publish(tmp_path / "model", byte_level(), tokenizer_config=SPELLED | {"chat_template": CHATML})
    chats = tmp_path / "answers.jsonl"
    chat = [{"role": "user", "content": "1+1="}, {"role": "assistant", "content": "2"}]
    chats.write_text(json.dumps({"messages": chat}) + "\n")
    for form, rows, constant in (("joint", "all", False), ("control", "all", False), ("drafts", "drafts", True)):
        answers = f",answers={chats}" if form == "drafts" else ""
        setup = settings.read(smollm2_tasks.get_config(f"start={folder},form={form}{answers}"))
        stage = setup.stages["convert"]
        params = traverse_util.unflatten_dict(abstract_variables(stage.model))["params"]
        frozen = frozen_parameters(stage.phase.optimizer, params)
        assert stage.phase.objective.context_is_constant(Zaya(stage.model), frozen) == constant
        assert stage.model.lora_rows == rows and trained(stage)[0] < trained(stage)[1] / 10
        assert setup.protocol.batch == 1 and [task.name for task in setup.tasks] == ["gsm_symbolic", "addition"]
    with pytest.raises(ValueError, match="config argument form: got 'both', may be one of control, drafts, joint"):
        smollm2_tasks.get_config("form=both")
    for arg in ("form=drafts", f"answers={chats}"):
        with pytest.raises(ValueError, match=r"config argument answers: got '.*', may be"):
            smollm2_tasks.get_config(arg)
    with pytest.raises(FileNotFoundError, match=r"adapters .*: holds no adapters\.json"):
        settings.read(smollm2_tasks.get_config(f"start={folder},adapters={tmp_path}"))


def test_a_rival_trains_its_drafter_alone_on_the_committed_answers(tmp_path):
    folder = publish(tmp_path / "model", byte_level(), tokenizer_config=SPELLED | {"chat_template": CHATML})
    for method in smollm2_rivals.METHODS:
        setup = settings.read(smollm2_rivals.get_config(f"start={folder},method={method}"))
        stage = setup.stages["convert"]
        objective = stage.phase.objective
        assert objective.drafter is not None and method.startswith(objective.drafter.kind)
        assert objective.drafter.drafts == 3 and objective.alpha == 0
        assert trained(stage)[1] - trained(stage)[0] == SMOLLM2 - 49_152 * 576 + stage.model.vocab_size * 576
        assert {"autoregressive", "ngram"} < {sampler.name for sampler in setup.samplers}
        assert {s.config.draft_length for s in setup.samplers if s.config.mode == "drafter"} == {3}
    with pytest.raises(ValueError, match="config argument method: got 'medusa', may be one of"):
        smollm2_rivals.get_config("method=medusa")
