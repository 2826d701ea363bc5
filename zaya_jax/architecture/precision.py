"""Where a computation in bfloat16 may round: when a result is kept, once.

Weights, activations and the cache are stored in the compute dtype. Whatever is computed from them is computed in at
least float32, and rounded when it is stored; scores, logits and probabilities, which an exponential or an argmax reads,
are not rounded at all. In float32 and float64 nothing here changes anything.

Why it matters: rounding to bfloat16 has a relative error of up to u = 2^-8, 0.4%. A score s rounded before the softmax
multiplies its weight by up to exp(u s): 1.28 at s = 64. Two logits near 20 are a multiple of 1/8 apart or equal. A sum
kept in bfloat16 stops growing at 256 times its terms.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
LEAST_ROWS = 8  # of a matrix product on a GPU


def wide_dtype(dtype: Any) -> Any:
    """float32, or the dtype itself if that is wider."""
    return jnp.promote_types(dtype, jnp.float32)


def product(equation: str, a: Array, b: Array) -> Array:
    """jnp.einsum(equation, a, b), or a @ b for "@", of two arrays of one dtype, in `wide_dtype` of it.

    Accumulated in that dtype, and not rounded.

    On a GPU no factor is copied into float32, nor in the backward pass: the result's cotangent is rounded to the
    factors' dtype first. (JAX's own rule would multiply a float32 cotangent by a float32 copy of each factor, which for
    the head are all of the vocabulary's weights.) So forward-mode differentiation needs float32.
    """
    if a.dtype == wide_dtype(a.dtype):
        return _contract(equation, a, b)
    return _product(equation, a, b)


def on_rows(x: Array, table: Array) -> Array:
    """x [..., width] on every row of table [n, width]: `product("@", x, table.T)`, [..., n].

    On a CPU as table @ x.T, and so that XLA leaves it there: it would copy the table into another order first.
    """

    def by_table(x: Array, table: Array) -> Array:
        columns = jax.lax.optimization_barrier(x.T)
        return jax.lax.optimization_barrier(product("@", table, columns)).T

    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.platform_dependent(rows, table, cpu=by_table, default=lambda x, table: product("@", x, table.T))
    return out.reshape(*x.shape[:-1], table.shape[0])


def matmul(x: Array, weights: Array, dtype: Any = None) -> Array:
    """jnp.matmul(x, weights, preferred_element_type=dtype) that copies no weights: x [..., in], weights [in, out].

    XLA's GPU backends take a product of one row apart, into a kernel that writes every element's product (in float32,
    twice the weights' bytes) and one that adds them up. There few rows are padded to `LEAST_ROWS`.
    """
    plain = functools.partial(jnp.matmul, preferred_element_type=dtype)
    if weights.ndim != 2 or not 0 < math.prod(x.shape[:-1]) < LEAST_ROWS:
        return plain(x, weights)
    padded = functools.partial(_padded_matmul, dtype=dtype)
    return jax.lax.platform_dependent(x, weights, cpu=plain, default=padded)


@functools.partial(jax.jit, static_argnames="dtype")  # traced once for all programs: a CPU's never run it
def _padded_matmul(x: Array, weights: Array, dtype: Any) -> Array:
    count = math.prod(x.shape[:-1])
    rows = jnp.pad(x.reshape(count, x.shape[-1]), ((0, LEAST_ROWS - count), (0, 0)))
    # the barrier keeps XLA from choosing the rows before it multiplies, which undoes the padding
    out = jnp.matmul(jax.lax.optimization_barrier(rows), weights, preferred_element_type=dtype)
    return out[:count].reshape(*x.shape[:-1], weights.shape[1])


def _contract(equation: str, a: Array, b: Array, dtype: Any = None) -> Array:
    if equation == "@":
        return matmul(a, b, dtype)
    return jnp.einsum(equation, a, b, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(equation: str, a: Array, b: Array) -> Array:
    wide = wide_dtype(a.dtype)

    def widened(a: Array, b: Array) -> Array:
        # XLA's CPU widens the factors of every product in bfloat16 by itself, and of some (in loops) it refuses to
        # run one whose result is wider: "Unsupported element type for DotThunk: BF16 x BF16 = F32"
        return _contract(equation, a.astype(wide), b.astype(wide))

    def accumulated(a: Array, b: Array) -> Array:
        return _contract(equation, a, b, wide)

    return jax.lax.platform_dependent(a, b, cpu=widened, default=accumulated)


def _product_forward(equation: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(equation, a, b), (a, b)


def _product_backward(equation: str, factors: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    _, pull = jax.vjp(functools.partial(_contract, equation), *factors)
    return pull(gradient.astype(factors[0].dtype))


_product.defvjp(_product_forward, _product_backward)


def rounded_once(f: Callable[..., Array], *args: Array) -> Array:
    """f(*args), computed in `wide_dtype` of the first argument's dtype and rounded to that dtype.

    The backward pass keeps the arguments as they are, not float32 copies of them, and computes f again.
    """
    dtype = args[0].dtype
    if dtype == wide_dtype(dtype):
        return f(*args)

    def computed(*args: Array) -> Array:
        return f(*(x.astype(wide_dtype(dtype)) for x in args)).astype(dtype)

    return jax.checkpoint(computed)(*args)


def lookup(table: Array, ids: Array, dtype: Any) -> Array:
    """table[ids] in `dtype`: [V, width] at int [...] -> [..., width].

    The table's gradient is added up in `wide_dtype`: in bfloat16 a row that is looked up 4,096 times, as a mask token's
    is, would get the sum of no more than a few hundred.
    """
    if table.dtype == wide_dtype(table.dtype):  # looked up before it is rounded, so that the sum is not
        return table[ids].astype(dtype)
    return _lookup(table.shape, table, ids).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(shape: tuple[int, ...], table: Array, ids: Array) -> Array:
    del shape
    return table[ids]


def _lookup_forward(shape: tuple[int, ...], table: Array, ids: Array) -> tuple[Array, Array]:
    return _lookup(shape, table, ids), ids


def _lookup_backward(shape: tuple[int, ...], ids: Array, gradient: Array) -> tuple[Array, None]:
    total = jnp.zeros(shape, wide_dtype(gradient.dtype)).at[ids].add(gradient.astype(wide_dtype(gradient.dtype)))
    return total.astype(gradient.dtype), None


_lookup.defvjp(_lookup_forward, _lookup_backward)
