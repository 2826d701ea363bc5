"""Many devices give one device's numbers: gradients in float64 here, whole runs in processes of their own."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.helpers import random_variables, small_config
from zaya_jax.architecture import Execution, Zaya
from zaya_jax.architecture.moe.router import BALANCING
from zaya_jax.architecture.sharding import logical_axes
from zaya_jax.parallel import MeshConfig, make_placement
from zaya_jax.training.drafter_objective import DrafterObjective
from zaya_jax.training.gradients import make_gradients, make_sums
from zaya_jax.training.objective import Objective
from zaya_jax.training.optimizer import OptimizerConfig
from zaya_jax.training.state import init_state

ROWS, LENGTH, BLOCK = 2, 32, 4


@pytest.fixture(scope="module")
def one_device():
    """A model with every parameter random, a packed batch and the gradients of one device, all in float64."""
    with jax.enable_x64(True):
        sliding = dict(layer_types=("hybrid", "hybrid_sliding"), sliding_window=7)
        config = small_config(dtype="float64", param_dtype="float64", cca_time0=3, **sliding)
        variables = random_variables(config)
        rng = np.random.default_rng(1)
        document = np.sort(rng.integers(0, 5, (ROWS, LENGTH)), axis=1).astype(np.int32)
        document[0, LENGTH // 2 - 1 :] = 9  # a document starts one token before the second half
        document[1, -3:] = -1
        tokens = rng.integers(0, config.vocab_size, (ROWS, LENGTH)).astype(np.int32)
        batch = {"tokens": tokens, "document": document, "answer": np.ones_like(tokens)}
        objective = Objective("tidar", BLOCK, distill=0.3, masking="random")
        drawn = objective.draw(jax.random.key(2), ROWS, LENGTH)
        whole = jax.jit(make_gradients(Zaya(config), objective, None))
        return (
            config,
            variables,
            batch,
            objective,
            drawn,
            whole(variables["params"], variables[BALANCING], batch, drawn),
        )


@pytest.mark.parametrize(
    "mesh", [{"data": 2}, pytest.param({"fsdp": 2}, marks=pytest.mark.slow), {"expert": 2}, {"context": 2}]
)
def test_two_devices_give_the_gradients_of_one(one_device, mesh, x64):
    config, variables, batch, objective, drawn, (gradients, sums) = one_device
    placement = make_placement(MeshConfig(**mesh), config, ROWS, LENGTH, BLOCK)
    assert placement is not None and placement.mesh.size == 2
    params = placement.put(variables["params"])
    mapped = jax.jit(make_gradients(Zaya(config), objective, placement))
    theirs, their_sums = mapped(params, variables[BALANCING], placement.put_batch(batch), drawn)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-12 * max(1.0, float(np.abs(a).max())), rtol=0)
    for name, value in sums.items():
        np.testing.assert_allclose(their_sums[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("mesh", [{"data": 2}, pytest.param({"fsdp": 2}, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [pytest.param("dflash", marks=pytest.mark.slow), "eagle3"])
def test_a_drafter_is_trained_alike_on_two_devices(kind, mesh, x64):
    objective = DrafterObjective(kind, BLOCK, alpha=0.5)
    config = small_config(dtype="float64", param_dtype="float64", drafter=objective.drafter)
    variables, drawn = random_variables(config), objective.draw(jax.random.key(2), ROWS, LENGTH)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (ROWS, LENGTH)).astype(np.int32)
    batch = {"tokens": tokens, "document": np.zeros_like(tokens), "answer": np.ones_like(tokens)}
    placement = make_placement(MeshConfig(**mesh), config, ROWS, LENGTH)
    found = []
    for place in (None, placement):
        gradients = jax.jit(make_gradients(Zaya(config), objective, place))
        params = variables["params"] if place is None else place.put(variables["params"])
        rows = batch if place is None else place.put_batch(batch)
        found.append(gradients(params, variables[BALANCING], rows, drawn))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-12), *found)


def test_a_leak_between_parts_would_show(one_device, x64):
    """The test above has power: without the halo the gradients of a split row are others."""
    config, variables, batch, objective, drawn, (gradients, _) = one_device
    placement = make_placement(MeshConfig(context=2), config, ROWS, LENGTH, BLOCK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "zaya_jax.architecture.attention.cca.before_stretches", lambda newest, axis: [0 * x for x in newest]
        )
        mapped = jax.jit(make_gradients(Zaya(config), objective, placement))
        theirs, _ = mapped(placement.put(variables["params"]), variables[BALANCING], placement.put_batch(batch), drawn)
    different = [
        not np.allclose(a, b, rtol=1e-6)
        for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(theirs), strict=True)
    ]
    assert any(different)


def test_sums_of_evaluation_are_those_of_one_device(one_device, x64):
    config, variables, batch, objective, drawn, (_, sums) = one_device
    placement = make_placement(MeshConfig(context=2), config, ROWS, LENGTH, BLOCK)
    laid = {"params": placement.put(variables["params"]), BALANCING: variables[BALANCING]}
    theirs = jax.jit(make_sums(Zaya(config), objective, placement))(laid, placement.put_batch(batch), drawn)
    for name, value in sums.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-6, err_msg=name)


def test_optimizer_state_lies_as_its_weights_do():
    config = small_config()
    placement = make_placement(MeshConfig(expert=2), config, ROWS, LENGTH)
    state = init_state(random_variables(config), OptimizerConfig(name="muon"), 0)
    specs = jax.tree_util.tree_leaves_with_path(placement.specs(state), is_leaf=lambda x: isinstance(x, PartitionSpec))
    split = {jax.tree_util.keystr(path) for path, spec in specs if "expert" in spec}
    for name in ("gate_up_proj", "down_proj"):
        of_name = {path for path in split if path.endswith(f"['mlp']['{name}']")}
        assert len(of_name) == 2, split  # the weight and Muon's momentum
    assert len(split) == 4


def test_every_matrix_has_logical_axes():
    dense = small_config(feed_forward="dense", tie_word_embeddings=False)
    for config in (small_config(), dense, small_config(attention="gqa")):
        for path, leaf in jax.tree_util.tree_leaves_with_path(random_variables(config)["params"]):
            keys = tuple(key.key for key in path)
            axes = logical_axes(keys, leaf.ndim)
            assert len(axes) == leaf.ndim
            if keys[-1] in ("kernel", "embed_tokens", "gate_up_proj", "down_proj"):
                assert any(axes), keys
            if "expert" in axes:
                assert leaf.shape[axes.index("expert")] == config.num_experts


@pytest.mark.parametrize(
    ("mesh", "changes", "line"),
    [
        ({"fsdp": 0}, {}, "fsdp: got 0, may be an integer of at least 1"),
        ({"data": 3}, {}, "mesh: got .*3 devices, may be at most the 2"),
        ({"expert": 2}, {"num_experts": 3}, "model.num_experts: got 3, may be a multiple of 2"),
        ({"expert": 2}, {"feed_forward": "dense"}, "mesh.expert: may be 1"),
        ({"expert": 2}, {"execution": Execution("ragged_dot")}, "execution.expert_backend: got 'ragged_dot', may be"),
        ({"context": 2}, {"succession": "row"}, "mesh.context: may be 1"),
        ({"context": 2}, {"execution": Execution(attention_backend="dense")}, "mesh.context: may be 1"),
        ({"rules": (("embd", ("fsdp",)),)}, {}, "rules: got 'embd', may be one of"),
        ({"rules": (("embed", ("fdsp",)),)}, {}, "rules.embed: got 'fdsp', may be some of"),
        ({"rules": (("batch", ("data",)),)}, {}, "rules: batch and sequence got"),
        ({"rules": (("embed", ("fsdp", "fsdp")),)}, {}, "rules.embed: got .*, each once"),
    ],
)
def test_meshes_that_cannot_be_are_one_line(mesh, changes, line):
    changes = dict(changes)
    execution = changes.pop("execution", Execution())
    with pytest.raises(ValueError, match=line) as error:
        make_placement(MeshConfig(**mesh), small_config(**changes), ROWS, LENGTH, BLOCK, execution=execution)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch", "row", "line"),
    [(3, 24, "batch_size: got 3"), (2, 22, "row_length: got 22"), (2, 20, "row_length / block")],
)
def test_batches_that_do_not_fit_are_one_line(batch, row, line):
    mesh = MeshConfig(fsdp=2) if batch == 3 else MeshConfig(context=2)
    with pytest.raises(ValueError, match=line):
        make_placement(mesh, small_config(), batch, row, BLOCK)


def test_rows_go_to_as_many_devices_as_divide_them():
    assert make_placement(MeshConfig(), small_config(), 3, 8) is None
    assert make_placement(MeshConfig(), small_config(), 4, 8).split("batch") == 2
