"""Dropless top-1 expert dispatch: three exact ways to compute the same thing.

Each takes x [token, hidden], choice int32 [token] in 0 .. num_experts (num_experts itself = skip), gate_up
[expert, hidden, 2 * intermediate] (gate first) and down [expert, intermediate, hidden], and returns each token's expert
output [token, hidden], zero for skip. None drops a token or lets one token's result depend on another's.

`dense` is the slow twin: every expert on every token. `block_padded` sorts tokens into blocks of one expert each,
padded to a static count, and is 5 times faster on CPU at 1024 tokens (results/bench/cpu.json;
`jax.lax.ragged_dot` is dense there). `gather` copies each token's expert: best for a handful of rows, where a block
would be mostly padding.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

GATHER_LIMIT = 16  # tokens up to which `gather` beats `block_padded` (rocm_and_speed.md section 4a)


def swiglu(x: Array, gate_up: Array, down: Array) -> Array:
    """silu(x gate) * (x up), projected down; leading axes of the three are batched alike. x: [..., token, hidden]."""
    gate, up = jnp.split(x @ gate_up, 2, axis=-1)
    return (jax.nn.silu(gate) * up) @ down


def dense(x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """Every expert on every token, then one is kept."""
    everything = swiglu(x[None], gate_up, down)  # [expert, token, hidden]
    keep = jax.nn.one_hot(choice, gate_up.shape[0], axis=0, dtype=x.dtype)
    return jnp.einsum("et,etd->td", keep, everything)


def gather(x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """Each token against a copy of its own expert's weights."""
    num_experts = gate_up.shape[0]
    mine = jnp.minimum(choice, num_experts - 1)
    out = swiglu(x[:, None], gate_up[mine], down[mine])[:, 0]
    return jnp.where((choice < num_experts)[:, None], out, 0)


def block_padded(x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """Tokens sorted into blocks of one expert each; one batched product over the blocks."""
    tokens, experts = x.shape[0], gate_up.shape[0]
    size = _block_rows(tokens, experts)
    num_blocks = (tokens + experts * (size - 1)) // size  # sum over experts of ceil(count / size) is never above this
    slot, block_expert = _block_slots(choice, experts, size, num_blocks)
    source = (
        jnp.full((num_blocks * size,), tokens, jnp.int32).at[slot].set(jnp.arange(tokens, dtype=jnp.int32), mode="drop")
    )
    padded = jnp.concatenate([x, jnp.zeros_like(x[:1])])[source].reshape(num_blocks, size, -1)
    gate_up, down = (_of_blocks(weights, block_expert) for weights in (gate_up, down))
    out = swiglu(padded, gate_up, down).reshape(num_blocks * size, -1)
    return out.at[slot].get(mode="fill", fill_value=0)


def _of_blocks(weights: Array, block_expert: Array) -> Array:
    """weights[block_expert], [block, in, out], whose gradient adds up blocks by a matrix product.

    The gather's own transpose is a scatter-add of whole weight matrices, which XLA runs one by one on CPU: it took as
    long as all of the backward pass's products together.
    """

    def add_up(block_expert: Array, gradient: Array) -> Array:
        mine = jax.nn.one_hot(block_expert, weights.shape[0], axis=0, dtype=gradient.dtype)
        return jnp.einsum("eb,bio->eio", mine, jax.lax.optimization_barrier(gradient))

    return jax.custom_derivatives.linear_call(lambda index, w: w[index], add_up, block_expert, weights)


def _block_rows(tokens: int, experts: int) -> int:
    """Rows a block: about a quarter of an expert's fair share, so padding stays small, but whole vector registers."""
    size = 8
    while size < 64 and 4 * size * experts <= 2 * tokens:
        size *= 2
    return size


def _block_slots(choice: Array, experts: int, size: int, num_blocks: int) -> tuple[Array, Array]:
    """Each token's slot in the blocks (num_blocks * size for skip), and each block's expert."""
    chosen = (choice[:, None] == jnp.arange(experts, dtype=choice.dtype)).astype(jnp.int32)  # [token, expert]
    rank = jnp.take_along_axis(jnp.cumsum(chosen, axis=0), jnp.minimum(choice, experts - 1)[:, None], axis=1)[:, 0] - 1
    last_block = jnp.cumsum(-(-chosen.sum(axis=0) // size))  # exclusive end of each expert's blocks
    first_block = jnp.concatenate([jnp.zeros((1,), last_block.dtype), last_block[:-1]])
    slot = first_block[jnp.minimum(choice, experts - 1)] * size + rank
    slot = jnp.where(choice < experts, slot, num_blocks * size).astype(jnp.int32)
    block_expert = jnp.searchsorted(last_block, jnp.arange(num_blocks), side="right", method="compare_all")
    return slot, jnp.minimum(block_expert, experts - 1).astype(jnp.int32)


BACKENDS = {"dense": dense, "gather": gather, "block_padded": block_padded}


def dispatch(backend: str, x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """One of `BACKENDS` by name, or by the static number of tokens ("auto")."""
    if backend == "auto":
        backend = "gather" if x.shape[0] <= GATHER_LIMIT else "block_padded"
    return BACKENDS[backend](x, choice, gate_up, down)
