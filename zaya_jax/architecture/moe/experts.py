"""Dropless top-1 expert dispatch: nine exact ways to compute the same thing.

Each takes x [token, M], choice int32 [token] in 0 .. num_experts (num_experts itself = skip), gate_up
[E, M, 2 * F] (gate first) and down [E, F, M], and returns each token's expert output [token, M], zero for skip. None
drops a token or lets one token's result depend on another's.

`dense` is the reference implementation: every expert on every token. `block_padded` sorts tokens into blocks of one
expert each, padded to a static count, and is 5 times faster on CPU at 1024 tokens (results/bench/cpu.json;
`jax.lax.ragged_dot` is dense there). `gather` copies each token's expert: best for a handful of tokens, where a block
would be mostly padding. `sequential` makes the same blocks but visits them one after the other; it cannot be
differentiated and serves forwards with a cache (`dispatch_cached`). `sequential_vjp` does so with a backward pass, for
experts that are spread over devices (`moe.across`). `ragged_dot` sorts tokens by expert and leaves the rest to
`jax.lax.ragged_dot`: on gfx942 in bfloat16 or float16 one grouped product of hipBLASLt, without padding; on gfx950 in
bfloat16, on CUDA and on CPU XLA computes every expert for every token (docs/hardware.md#compiling-ahead-of-time).

For forwards with a cache, which read each weight once if they can: `in_place` and `rounds` on a GPU
(`cheapest_cached` chooses), `of_own_arrays` on a CPU.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from zaya_jax.architecture.precision import matmul, rounded_once, wide_dtype

Array = jax.Array

CACHED_GATHER_LIMIT, CACHED_GATHER_BYTES = 8, 8 * 2**20  # tokens and copied bytes up to which it beats `sequential`
PARTS = 8  # sums that a row's product is made of where its weights are read in place and rows are fewer than that
RIDGE = 250  # rows of a bfloat16 matrix whose arithmetic takes a GPU as long as reading it (docs/hardware.md#peaks)
GATHER_LIMIT = 16  # tokens up to which `gather` beats `block_padded` (docs/hardware.md#experts-on-a-cpu)


def swiglu(x: Array, gate_up: Array, down: Array) -> Array:
    """silu(x gate) * (x up), projected down; leading axes of the three are batched alike. x: [..., token, M]."""
    return matmul(gated(matmul(x, gate_up)), down)


def gated(gate_up: Array) -> Array:
    """silu(gate) * up of [gate | up], [..., 2 * F] -> [..., F]."""
    return rounded_once(_gated, *jnp.split(gate_up, 2, axis=-1))


def _gated(gate: Array, up: Array) -> Array:
    return jax.nn.silu(gate) * up


def dense(x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """Every expert on every token, then one is kept."""
    everything = swiglu(x[None], gate_up, down)  # [E, token, M]
    keep = jax.nn.one_hot(choice, gate_up.shape[0], axis=0, dtype=x.dtype)  # [E, token]
    return jnp.einsum("et,etd->td", keep, everything)


def gather(x: Array, choice: Array, gate_up: Array, down: Array, layer: Array | None = None) -> Array:
    """Each token against a copy of its own expert's weights (out of all layers' if `layer` is given: `sequential`)."""
    num_experts = gate_up.shape[-3]
    mine = jnp.minimum(choice, num_experts - 1)
    gate_up, down = (weights[mine if layer is None else (layer, mine)].astype(x.dtype) for weights in (gate_up, down))
    out = swiglu(x[:, None], gate_up, down)[:, 0]
    return jnp.where((choice < num_experts)[:, None], out, 0)


def block_padded(x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """Tokens sorted into blocks of one expert each; one batched product over the blocks."""
    size = _block_rows(x.shape[0], gate_up.shape[0])
    padded, slot, block_expert = _into_blocks(x, choice, gate_up.shape[0], size)
    gate_up, down = (_of_blocks(weights, block_expert) for weights in (gate_up, down))  # one copy a block
    out = swiglu(padded.reshape(-1, size, x.shape[1]), gate_up, down).reshape(padded.shape)
    return out.at[slot].get(mode="fill", fill_value=0)


def _of_blocks(weights: Array, block_expert: Array) -> Array:
    """weights[block_expert], [block, in, out], whose gradient adds up blocks by a matrix product.

    The gather's own transpose is a scatter-add of whole weight matrices, which XLA runs one by one on CPU: it took as
    long as all of the backward pass's products together.
    """

    def add_up(block_expert: Array, gradient: Array) -> Array:
        mine = jax.nn.one_hot(block_expert, weights.shape[0], axis=0, dtype=gradient.dtype)  # [E, block]
        return jnp.einsum("eb,bio->eio", mine, jax.lax.optimization_barrier(gradient))

    return jax.custom_derivatives.linear_call(lambda index, w: w[index], add_up, block_expert, weights)


def _block_rows(tokens: int, experts: int) -> int:
    """Rows a block: whole vector registers, at most an expert's fair share, and for many tokens an eighth of it.

    Every block has a copy of its expert's weights: an eighth bounds them, however long the rows, to the weights of
    17 blocks an expert, and padding to an eighth of the tokens.
    """
    size = 8
    while (size < 64 and 2 * size * experts <= tokens) or 16 * size * experts <= tokens:
        size *= 2
    return size


def blocks_of(tokens: int, experts: int) -> int:
    """How many blocks `block_padded` makes: enough for any choice, so never less than the sum of ceil(count / size)."""
    return _blocks(tokens, experts, _block_rows(tokens, experts))


def _blocks(tokens: int, experts: int, size: int) -> int:
    return min(tokens, (tokens + experts * (size - 1)) // size)


def _into_blocks(x: Array, choice: Array, experts: int, size: int) -> tuple[Array, Array, Array]:
    """Tokens sorted into blocks of `size` rows of one expert each; blocks without a token come last.

    Returns:
      (x by slot [blocks * size, M], zero where there is no token; `_block_slots`).
    """
    tokens = x.shape[0]
    num_blocks = _blocks(tokens, experts, size)
    slot, block_expert = _block_slots(choice, experts, size, num_blocks)
    source = (
        jnp.full((num_blocks * size,), tokens, jnp.int32).at[slot].set(jnp.arange(tokens, dtype=jnp.int32), mode="drop")
    )
    return jnp.concatenate([x, jnp.zeros_like(x[:1])])[source], slot, block_expert


def _block_slots(choice: Array, experts: int, size: int, num_blocks: int) -> tuple[Array, Array]:
    """Each token's slot in the blocks (num_blocks * size for skip), and each block's expert."""
    rank, counts = _ranks(choice, experts)
    last_block = jnp.cumsum(-(-counts // size))  # exclusive end of each expert's blocks
    first_block = jnp.concatenate([jnp.zeros((1,), last_block.dtype), last_block[:-1]])
    slot = first_block[jnp.minimum(choice, experts - 1)] * size + rank
    slot = jnp.where(choice < experts, slot, num_blocks * size).astype(jnp.int32)
    block_expert = jnp.searchsorted(last_block, jnp.arange(num_blocks), side="right", method="compare_all")
    return slot, jnp.minimum(block_expert, experts - 1).astype(jnp.int32)


def _ranks(choice: Array, experts: int) -> tuple[Array, Array]:
    """How many tokens before each chose the same expert (int32 [token]), and how many chose each (int32 [E])."""
    chosen = (choice[:, None] == jnp.arange(experts, dtype=choice.dtype)).astype(jnp.int32)  # [token, E]
    rank = jnp.take_along_axis(jnp.cumsum(chosen, axis=0), jnp.minimum(choice, experts - 1)[:, None], axis=1)[:, 0] - 1
    return rank, chosen.sum(axis=0)


def sequential(x: Array, choice: Array, gate_up: Array, down: Array, layer: Array | int) -> Array:
    """`block_padded` as a loop over the blocks that exist, each reading its expert out of all layers' weights.

    Where few tokens meet many experts, reading weights is all the time there is. Here one expert at a time is copied
    into the processor's cache and multiplied from there; experts that nobody chose are never read. `block_padded`
    writes a copy of every block's weights to memory, empty blocks' included. The weights stay in the whole stack
    because a loop's operands must exist: a layer's slice would be copied, all experts of it, before the loop starts.

    Args:
      gate_up, down: with a leading axis of layers, in the parameters' dtype.
      layer: which layer to use, int32 [].
    """
    experts = gate_up.shape[1]
    size = _turn_rows(x.shape[0], experts)
    padded, slot, block_expert = _into_blocks(x, choice, experts, size)

    def by_expert(rows: Array, block: Array) -> Array:
        return swiglu(rows, *(weights[layer, block_expert[block]].astype(x.dtype) for weights in (gate_up, down)))

    return _block_by_block(padded, choice, slot, experts, size, by_expert)


def _block_by_block(padded: Array, choice: Array, slot: Array, experts: int, size: int, f: Callable) -> Array:
    """f(rows [size, M], block int32 []) of each block that exists; each token's result [token, M], zero for skip."""

    def one_block(block: Array, rows: Array) -> Array:
        mine = jax.lax.dynamic_slice_in_dim(rows, block * size, size)
        return jax.lax.dynamic_update_slice_in_dim(rows, f(mine, block), block * size, axis=0)  # each is read once

    used = jnp.max(jnp.where(choice < experts, slot // size + 1, 0))
    return jax.lax.fori_loop(0, used, one_block, padded).at[slot].get(mode="fill", fill_value=0)


def _turn_rows(tokens: int, experts: int) -> int:
    """Rows a block of `sequential`: an expert's fair share or more, for a second block reads its weights again."""
    size = 4
    while size < 64 and 2 * size * experts < 3 * tokens:
        size *= 2
    return size


def ragged_dot(x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """Tokens sorted by expert, and each expert's run of them against its weights.

    Skip tokens come last and ride with the last expert, whose output they do not keep: rows that belong to no group
    are zero in JAX's definition, but a library need not write them.
    """
    tokens, experts = x.shape[0], gate_up.shape[0]
    # Split over devices they are fetched as they come: without the barrier XLA fetches the backward pass's in float32
    # and rounds them then: more bytes between devices.
    gate_up, down = jax.lax.optimization_barrier((gate_up, down))
    order = jnp.argsort(choice, stable=True)
    place = jnp.zeros((tokens,), jnp.int32).at[order].set(jnp.arange(tokens, dtype=jnp.int32), unique_indices=True)
    mine = jnp.minimum(choice, experts - 1)
    sizes = jnp.zeros((experts,), jnp.int32).at[mine].add(1)
    out = jax.lax.ragged_dot(gated(jax.lax.ragged_dot(x[order], gate_up, sizes)), down, sizes)[place]
    return jnp.where((choice < experts)[:, None], out, 0)


def sequential_vjp(x: Array, choice: Array, gate_up: Array, down: Array, everywhere: int | None = None) -> Array:
    """`block_padded` as a loop over the blocks that exist, in the backward pass too.

    The work follows the tokens that are here, whatever the static worst case: where experts are spread over devices
    (`moe.across`), most of the tokens that a device sees are for others.

    Args:
      everywhere: experts on all devices, which share the tokens out; None: these are all.
    """
    x, choice, gate_up, down = map(jnp.asarray, (x, choice, gate_up, down))
    return _sequential_blocks(x, choice, gate_up, down, _block_rows(x.shape[0], everywhere or gate_up.shape[0]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sequential_blocks(x: Array, choice: Array, gate_up: Array, down: Array, size: int) -> Array:
    return _sequential_vjp(x, choice, gate_up, down, size)[0]


def _sequential_vjp(x: Array, choice: Array, gate_up: Array, down: Array, size: int):
    tokens, experts = x.shape[0], gate_up.shape[0]
    num_blocks = _blocks(tokens, experts, size)
    slot, block_expert = _block_slots(choice, experts, size, num_blocks)
    source = jnp.full((num_blocks * size,), tokens, jnp.int32)  # of each slot the token in it; `tokens` for none
    source = source.at[slot].set(jnp.arange(tokens, dtype=jnp.int32), mode="drop").reshape(num_blocks, size)
    used = jnp.max(jnp.where(choice < experts, slot // size + 1, 0))

    def one_block(block: Array, out: Array) -> Array:
        rows, expert = source[block], block_expert[block]
        mine = x.at[rows].get(mode="fill", fill_value=0)
        return out.at[rows].set(swiglu(mine, gate_up[expert], down[expert]), mode="drop", unique_indices=True)

    out = jax.lax.fori_loop(0, used, one_block, jnp.zeros_like(x))
    return out, (x, gate_up, down, source, block_expert, used)


def _sequential_backward(size: int, kept, gradient: Array):
    del size  # the blocks have it
    x, gate_up, down, source, block_expert, used = kept

    def one_block(block: Array, sums):
        rows, expert = source[block], block_expert[block]
        mine, outer = (z.at[rows].get(mode="fill", fill_value=0) for z in (x, gradient))
        _, backward = jax.vjp(swiglu, mine, gate_up[expert], down[expert])
        of_x, *of_weights = backward(outer)
        sums_x = sums[0].at[rows].set(of_x, mode="drop", unique_indices=True)
        return (sums_x, *(total.at[expert].add(part) for total, part in zip(sums[1:], of_weights, strict=True)))

    # an expert's blocks are many: its gradient is rounded when all of them are in it
    totals = (jnp.zeros(w.shape, wide_dtype(w.dtype)) for w in (gate_up, down))
    of_x, *of_weights = jax.lax.fori_loop(0, used, one_block, (jnp.zeros_like(x), *totals))
    return of_x, None, *(total.astype(w.dtype) for total, w in zip(of_weights, (gate_up, down), strict=True))


_sequential_blocks.defvjp(_sequential_vjp, _sequential_backward)


BACKENDS = {
    "dense": dense,
    "gather": gather,
    "block_padded": block_padded,
    "sequential_vjp": sequential_vjp,
    "ragged_dot": ragged_dot,
}


def dispatch(backend: str, x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """One of `BACKENDS` by name, or by the static number of tokens ("auto")."""
    if backend == "auto":
        backend = "gather" if x.shape[0] <= GATHER_LIMIT else "block_padded"
    return BACKENDS[backend](x, choice, gate_up, down)


def dispatch_cached(x: Array, choice: Array, gate_up: Array, down: Array, layer: Array) -> Array:
    """ "auto" for a forward with a cache, which nobody differentiates; weights as `sequential` takes them.

    Reading weights is most of the time there is: a GPU takes the form that `cheapest_cached` names, a CPU `sequential`,
    but `gather` for as few tokens as keep their copies in its cache.
    """

    def on_cpu(x: Array, choice: Array, gate_up: Array, down: Array, layer: Array) -> Array:
        expert = (gate_up.size + down.size) // (gate_up.shape[0] * gate_up.shape[1])
        copies = x.shape[0] * expert * x.dtype.itemsize
        if x.shape[0] == 1 or (x.shape[0] <= CACHED_GATHER_LIMIT and copies <= CACHED_GATHER_BYTES):
            return gather(x, choice, gate_up, down, layer)
        return sequential(x, choice, gate_up, down, layer)

    return jax.lax.platform_dependent(x, choice, gate_up, down, layer, cpu=on_cpu, default=_cached_elsewhere)


@jax.jit  # so that it is traced once for all programs that ask for these shapes: a CPU's never run it
def _cached_elsewhere(x: Array, choice: Array, gate_up: Array, down: Array, layer: Array) -> Array:
    """`dispatch_cached` for a GPU."""
    form = cheapest_cached(x.shape[0], gate_up.shape[1])
    if form == "in_place":
        return in_place(x, choice, gate_up, down, layer)
    weights = (weights[layer].astype(x.dtype) for weights in (gate_up, down))
    return {"rounds": rounds, "block_padded": block_padded}[form](x, choice, *weights)


def of_own_arrays(x: Array, choice: Array, gate_up: Sequence[Array], down: Sequence[Array]) -> Array:
    """`sequential` for experts in arrays of their own (`architecture.separate`), which a CPU multiplies by in place.

    Of each product only the chosen expert's branch runs; all else stands outside the branches, which compile fast so.

    Args:
      gate_up, down: an array an expert, in the parameters' dtype.
    """
    tokens, experts = x.shape[0], len(gate_up)

    def by_expert(rows: Array, expert: Array) -> Array:
        mixed = gated(_times_one_of(rows, gate_up, expert))
        return _times_one_of(mixed, down, expert)

    if tokens == 1:
        out = by_expert(x, jnp.minimum(choice[0], experts - 1))
        return jnp.where((choice < experts)[:, None], out, 0)
    size = _turn_rows(tokens, experts)
    padded, slot, block_expert = _into_blocks(x, choice, experts, size)
    return _block_by_block(
        padded, choice, slot, experts, size, lambda rows, block: by_expert(rows, block_expert[block])
    )


def _times_one_of(rows: Array, weights: Sequence[Array], index: Array) -> Array:
    """rows @ weights[index], of which no more is read."""
    return jax.lax.switch(index, [lambda rows, w=w: rows @ w.astype(rows.dtype) for w in weights], rows)


def cheapest_cached(tokens: int, experts: int) -> str:
    """The dispatch that takes a GPU the least time, as the larger of what it moves and what it computes.

    In units of the time to read one expert's weights, in bfloat16; arithmetic on `n` rows of an expert takes
    n / RIDGE of it. All of them are exact, and so is the worst case, an expert that everybody chose.

    - "in_place": each token reads its own expert: `tokens`. Not on matrix cores, hence for few tokens.
    - "rounds": every expert on `_capacity` rows, as long as the fullest has rows left: max(1, capacity / RIDGE) an
      expert and round, with one round where no expert has more than twice its share.
    - "block_padded": each block reads, writes and reads a copy of its expert: max(3, size / RIDGE) a block.
    """
    blocks = blocks_of(tokens, experts)
    cost = {
        "in_place": tokens if tokens <= experts else float("inf"),
        "rounds": experts * max(1.0, _capacity(tokens, experts) / RIDGE),
        "block_padded": blocks * max(3.0, _block_rows(tokens, experts) / RIDGE),
    }
    return min(cost, key=lambda form: cost[form])


def in_place(x: Array, choice: Array, gate_up: Array, down: Array, layer: Array | int) -> Array:
    """`gather` for a GPU: products that XLA fuses with the choice of their weights, so that none are copied.

    Weights as `sequential` takes them.
    """
    experts = gate_up.shape[1]
    mine = jnp.minimum(choice, experts - 1)
    out = _rows_times_chosen(gated(_rows_times_chosen(x, gate_up, layer, mine)), down, layer, mine)
    return jnp.where((choice < experts)[:, None], out, 0)


def _rows_times_chosen(x: Array, weights: Array, layer: Array | int, mine: Array) -> Array:
    """x[t] @ weights[layer, mine[t]] of x [token, in]: [token, out].

    As products that are added up, for a general matrix product would want a copy of what was chosen; for few tokens in
    several sums whose addition XLA cannot move into the first kernel, so that the reduction runs in enough threads at
    once to be worth fusing with the multiplication and the choice (its cost model else writes all products to memory).
    """
    wide, parts = wide_dtype(x.dtype), math.gcd(x.shape[1], PARTS if x.shape[0] < PARTS else 1)
    chosen = weights[layer, mine].astype(x.dtype)  # [token, in, out]
    products = x.astype(wide)[:, :, None] * chosen.astype(wide)
    sums = products.reshape(x.shape[0], parts, -1, weights.shape[-1]).sum(axis=2)
    return jax.lax.optimization_barrier(sums).sum(axis=1).astype(x.dtype)


def rounds(x: Array, choice: Array, gate_up: Array, down: Array) -> Array:
    """Every expert on as many rows as every other, each round the next `_capacity` of those that chose it.

    Each weight is read once a round, where it lies. If all tokens fit an expert, each is given all of them: one round,
    without a loop, which would make a GPU's host wait.
    """
    tokens, experts = x.shape[0], gate_up.shape[0]
    capacity = _capacity(tokens, experts)
    mine = jnp.minimum(choice, experts - 1)
    if capacity >= tokens:

        def by_all(x: Array, weights: Array) -> Array:
            everything = matmul(jnp.broadcast_to(x, (experts, *x.shape)), weights)  # [E, token, out]
            return everything[mine, jnp.arange(tokens)]

        return jnp.where((choice < experts)[:, None], by_all(gated(by_all(x, gate_up)), down), 0)
    rank, counts = _ranks(choice, experts)

    def one_round(index: Array, out: Array) -> Array:
        here = (choice < experts) & (rank // capacity == index)
        slot = jnp.where(here, mine * capacity + rank % capacity, experts * capacity)
        source = jnp.full((experts * capacity,), tokens, jnp.int32)  # of each slot the token in it; `tokens` for none
        source = source.at[slot].set(jnp.arange(tokens, dtype=jnp.int32), mode="drop")
        rows = x.at[source].get(mode="fill", fill_value=0).reshape(experts, capacity, -1)
        done = swiglu(rows, gate_up, down).reshape(experts * capacity, -1)
        return jnp.where(here[:, None], done.at[slot].get(mode="clip"), out)

    return jax.lax.fori_loop(0, jnp.max(-(-counts // capacity)), one_round, jnp.zeros_like(x))


def _capacity(tokens: int, experts: int) -> int:
    """Rows an expert and round of `rounds`: twice a fair share, and what a matrix core takes at once or more."""
    return min(tokens, max(64, 2 * -(-tokens // experts)))
