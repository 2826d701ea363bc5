"""Checkpoints that are written while training goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.interop.formats.native import CheckpointError
from zaya_jax.training.checkpoints import Checkpoints


@jax.jit
def fresh(seed):
    return {str(i): jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), (1 << 18,)) for i in range(8)}


def test_what_is_written_is_the_state_that_was_given_though_later_steps_take_its_buffers(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda x: 2 * x + 1, state), donate_argnums=0)
    state, given = fresh(0), {}
    with Checkpoints(tmp_path / "steps", keep=10) as checkpoints:
        for number in range(1, 5):
            given[number] = jax.tree.map(np.array, state)
            checkpoints.save(number, state, {"at": number}, wait=False)
            for _ in range(3):
                state = step(state)
        assert checkpoints.latest == 4
        for number, expected in given.items():
            loaded, extra = checkpoints.load(state, number)
            assert extra == {"at": number}
            jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_a_refused_background_save_is_said_by_whatever_comes_next(tmp_path, monkeypatch):
    with Checkpoints(tmp_path / "steps") as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(3)}, {})

        class Refused:
            def result(self):
                (tmp_path / "steps" / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints._orbax, "save_async", lambda *_, **__: Refused())
        checkpoints.save(2, {"x": jnp.ones(3)}, {}, wait=False)
        with pytest.raises(CheckpointError, match=r"steps/2: cannot be written: .*No space left"):
            checkpoints.wait()
        assert checkpoints.latest == 1
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["1"]  # what is unfinished would keep a disk full
