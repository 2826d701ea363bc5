"""Small layers against their reference implementations, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from zaya_jax.architecture.layers import (
    Linear,
    inverse_frequencies,
    project,
    rotate,
    rotate_by_product,
    rotation,
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rotary_dim", [2, 4, 8])
def test_rotation_by_a_product_is_the_rotation(dtype, rotary_dim):
    """Bit for bit, and so is its gradient: each of the product's sums has one term."""
    x, cotangent = jax.random.normal(jax.random.key(0), (2, 2, 5, 3, 8)).astype(dtype)
    angle = rotation(jnp.array([[0, 1, 2, 7, 900], [3, 3, 0, 1, 2]]), inverse_frequencies(100.0, rotary_dim))
    (out, pull), (twin, twin_pull) = (jax.vjp(lambda z, f=f: f(z, angle), x) for f in (rotate, rotate_by_product))
    np.testing.assert_array_equal(out, twin)
    np.testing.assert_array_equal(pull(cotangent)[0], twin_pull(cotangent)[0])


class Together(nn.Module):
    """Three projections of unequal widths, as one product or separately."""

    together: bool

    @nn.compact
    def __call__(self, x):
        linears = [
            Linear(n, True, 0.5, jnp.dtype("float32"), jnp.dtype("float32"), name=f"linear_{n}") for n in (1, 3, 4)
        ]
        return project(x, linears) if self.together else [linear(x) for linear in linears]


def test_projections_together_are_projections_apart():
    x = jax.random.normal(jax.random.key(1), (2, 5, 6))
    params = Together(True).init(jax.random.key(2), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, Together(False).init(jax.random.key(2), x))
    params = jax.tree.map(lambda z: z + 0.1, params)  # so that biases count
    for one, apart in zip(Together(True).apply(params, x), Together(False).apply(params, x), strict=True):
        np.testing.assert_allclose(one, apart, rtol=1e-6, atol=1e-6)


def test_a_projection_of_no_rows_is_no_rows():
    """A forward that verifies nothing has no slots to draft, and its head meets none."""
    x = jnp.zeros((2, 0, 6))
    assert [y.shape for y in Together(True).apply(Together(True).init(jax.random.key(0), x), x)] == [
        (2, 0, 1), (2, 0, 3), (2, 0, 4),
    ]  # fmt: skip
