"""The kernels of `triton_attention`: scores live in tiles on the chip, T × S is never stored.

Forward, one program per block of queries of one head. Pass 1 over the keys keeps the elementwise maximum of all score
tiles; these are entries of the rows, so the threshold of those entries is a lower bound of the threshold of all. Newton
passes climb from there, computing Q Kᵀ anew. Weights that are zero stay zero while the threshold rises, so a tile of
zeros is struck off the list and never computed again: neither by later passes, nor for P V, nor in the backward.

Backward, with u = p^(2−α) and g = dO Vᵀ as in `hf_entmax_asr.model.entmax`: one kernel by blocks of queries (two passes
over the live tiles: ḡ = Σ u g / Σ u, then dQ, dα and the gradient of the bias), one by blocks of keys (dK, dV).

Throughout, `strides` are those of query, key, value, α, mask, bias and then, forward, of the output, backward, of the
gradients of output, bias, query, key and value; `where` is (queries, keys, scale, batch, head, mask, bias, strides of
mask, strides of bias, chunk size, chunks before); `noise` is (seed, batch-head pair, dropout probability).
"""

from typing import NamedTuple

import triton
import triton.language as tl

from hf_entmax_asr.kernels.triton_math import (
    MAX_NEWTON_STEPS,
    alpha_weights,
    climb,
    lifted_weights_and_slopes,
    load_eps,
    newton_step,
    relative,
    unsettled,
    weights_and_slopes,
)

# The interpreter (Triton 3.9) multiplies bfloat16 matrices as the integers that hold them.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


class Plan(NamedTuple):
    """What a kernel is compiled for."""

    causal: bool
    chunked: bool  # queries read their own chunk of keys and some before it
    width: int  # of queries and keys, D
    value_width: int
    block_width: int  # the same as powers of two
    block_value: int
    block_t: int  # queries in a tile
    block_s: int  # keys in a tile
    precision: str  # of float32 products: "ieee" or "tf32"
    bias_per_key: bool  # the bias has one value for all queries
    warps: int  # per program


@triton.jit
def _dot(a, b, P: tl.constexpr):
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=P.precision)


@triton.jit
def _locate(blocks, heads):
    """Batch-head pair, block, and the pair as batch and head, of programs numbered along one axis."""
    pair = tl.program_id(0) // blocks
    return pair, tl.program_id(0) % blocks, (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)


@triton.jit
def _of_head(tensor, strides, b, h):
    """Pointer to the matrix of one head."""
    return tensor + b * strides[0] + h * strides[1]


@triton.jit
def _load(matrix, index, stride, limit, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Rows `index` of a matrix (limit, WIDTH), zeros outside."""
    d = tl.arange(0, BLOCK_WIDTH)
    valid = (index < limit)[:, None] & (d < WIDTH)[None, :]
    return tl.load(matrix + index[:, None] * stride + d[None, :], mask=valid, other=0.0)


@triton.jit
def _store(matrix, index, stride, x, limit, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Rows `index` of a matrix (limit, WIDTH)."""
    d = tl.arange(0, BLOCK_WIDTH)
    valid = (index < limit)[:, None] & (d < WIDTH)[None, :]
    tl.store(matrix + index[:, None] * stride + d[None, :], x.to(matrix.dtype.element_ty), mask=valid)


@triton.jit
def _scores(left, right, rows, cols, where, P: tl.constexpr):
    """A tile of masked scores. `rows` and `cols` broadcast to its shape, whichever of queries and keys is `left`."""
    queries, keys, scale, b, h, mask, bias, mask_strides, bias_strides, chunk_size, left_chunks = where
    s = _dot(left, tl.trans(right), P) * scale
    valid = (rows < queries) & (cols < keys)
    if bias is not None:
        at = _of_head(bias, bias_strides, b, h) + rows * bias_strides[2] + cols * bias_strides[3]
        s += tl.load(at, mask=valid, other=0.0).to(tl.float32)
    if P.causal:
        valid = valid & (cols <= rows)
    if P.chunked:
        ahead = cols // chunk_size - rows // chunk_size
        valid = valid & (ahead <= 0)
        if left_chunks >= 0:
            valid = valid & (ahead >= -left_chunks)
    if mask is not None:
        at = _of_head(mask, mask_strides, b, h) + rows * mask_strides[2] + cols * mask_strides[3]
        valid = valid & (tl.load(at, mask=valid, other=0) != 0)
    return tl.where(valid, s, float("-inf"))


@triton.jit
def _mix(x):
    """A bijection of 32-bit numbers that leaves no visible order (the finalizer of MurmurHash3)."""
    x ^= x >> 16
    x *= 0x85EBCA6B
    x ^= x >> 13
    x *= 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _kept(noise, rows, cols, keys):
    """What dropout multiplies weights with; the same for the same entry in every pass. (A hash of the entry's number:
    Triton's own generator takes more registers than there are.)"""
    seed, pair, dropout = noise
    seed = tl.load(seed)
    first, second = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    number = (rows * keys + cols).to(tl.uint32)
    drawn = _mix(_mix(_mix(number ^ first) ^ second) ^ pair.to(tl.uint32))
    uniform = (drawn >> 8).to(tl.float32) * (1.0 / (1 << 24))
    return tl.where(uniform >= dropout, 1.0 / tl.maximum(1.0 - dropout, 1e-30), 0.0)


@triton.jit
def _list_live(flags, stride, count, live):
    """Writes the indices of those of `count` flags that are set to `live`, in order. Returns how many they are."""
    tl.debug_barrier()  # one thread writes a flag or an index, all read it
    listed = 0
    for start in range(0, count, 64):
        index = start + tl.arange(0, 64)
        is_set = tl.load(flags + index * stride, mask=index < count, other=0).to(tl.int32)
        tl.store(live + listed + tl.cumsum(is_set, 0) - is_set, index, mask=is_set > 0)
        listed += tl.sum(is_set, 0)
    tl.debug_barrier()
    return listed


@triton.jit
def _key_tile(q, key, stride, block, rows, where, P: tl.constexpr):
    """One block of keys: the keys, their indices (1, BLOCK_S) and the scores of all rows against them."""
    cols = block * P.block_s + tl.arange(0, P.block_s)
    k = _load(key, cols, stride, where[1], P.width, P.block_width)
    return k, cols[None, :], _scores(q, k, rows[:, None], cols[None, :], where, P)


@triton.jit
def _row_maxima(q, key, stride, rows, flags, first, blocks, where, P: tl.constexpr):
    """Elementwise maximum of the score tiles from `first` on; each of them is marked as live."""
    maxima = tl.full((P.block_t, P.block_s), float("-inf"), tl.float32)
    for j in range(first, blocks):
        _, _, s = _key_tile(q, key, stride, j, rows, where, P)
        maxima = tl.maximum(maxima, s)
        tl.store(flags + j, 1)
    return maxima


@triton.jit
def _climb_tiles(q, key, stride, rows, top, t, eps, flags, live, blocks, where, P: tl.constexpr):
    """Thresholds by Newton's method from a lower bound `t`, the lift of the weights that stands for its last step, and
    how many tiles `live` lists in the end."""
    lowest = -1.0 / tl.maximum(eps, 1e-29)  # a weight is zero where a − t is not above it
    listed = _list_live(flags, 1, blocks, live)
    lift = tl.zeros_like(t)
    left = MAX_NEWTON_STEPS
    moving = 1
    while moving > 0:
        total = tl.zeros_like(t).to(tl.float64)
        slopes = tl.zeros_like(t)
        for n in range(listed):
            j = tl.load(live + n)
            _, _, s = _key_tile(q, key, stride, j, rows, where, P)
            x = relative(s, top[:, None]) - t[:, None]
            alive = tl.max(tl.max(x, 1), 0) > lowest
            tl.store(flags + j, alive.to(tl.uint8))
            if alive:
                p, slope = weights_and_slopes(x, eps)
                total += tl.sum(p, 1).to(tl.float64)
                slopes += tl.sum(slope, 1)
        listed = _list_live(flags, 1, blocks, live)
        step = newton_step(total.to(tl.float32), slopes, eps)
        lift = (1.0 - total).to(tl.float32) / tl.maximum(slopes, 1e-30)
        left -= 1
        moving = tl.minimum(unsettled(step, t, eps), left)
        t = tl.where(moving > 0, t + step, t)
    return t, lift, listed


@triton.jit
def forward(
    query, key, value, alpha, mask, bias, seed, out, stats, flags, live,
    strides, sizes, scale, dropout, P: tl.constexpr,
):  # fmt: skip
    """Output; for the backward maximum, threshold and lift of each row, and a flag for every tile that is not zero."""
    heads, queries, keys, chunk_size, left_chunks = sizes
    key_blocks = tl.cdiv(keys, P.block_s)
    pair, block, b, h = _locate(tl.cdiv(queries, P.block_t), heads)
    eps = load_eps(alpha + b * strides[3][0] + h * strides[3][1])
    where = (queries, keys, scale, b, h, mask, bias, strides[4], strides[5], chunk_size, left_chunks)
    flags += tl.program_id(0).to(tl.int64) * key_blocks
    live += tl.program_id(0).to(tl.int64) * key_blocks
    rows = block * P.block_t + tl.arange(0, P.block_t)
    q = _load(_of_head(query, strides[0], b, h), rows, strides[0][2], queries, P.width, P.block_width)
    key = _of_head(key, strides[1], b, h)
    value = _of_head(value, strides[2], b, h)
    blocks = key_blocks
    if P.causal:
        blocks = tl.minimum(key_blocks, tl.cdiv((block + 1) * P.block_t, P.block_s))
    first = 0
    if P.chunked:
        last_row = (block + 1) * P.block_t - 1
        blocks = tl.minimum(blocks, tl.cdiv((last_row // chunk_size + 1) * chunk_size, P.block_s))
        if left_chunks >= 0:
            first = tl.maximum(block * P.block_t // chunk_size - left_chunks, 0) * chunk_size // P.block_s

    maxima = _row_maxima(q, key, strides[1][2], rows, flags, first, blocks, where, P)
    top = tl.max(maxima, 1)
    t = climb(relative(maxima, top[:, None]), eps)
    t, lift, listed = _climb_tiles(q, key, strides[1][2], rows, top, t, eps, flags, live, blocks, where, P)

    o = tl.full((P.block_t, P.block_value), 0.0, tl.float32)
    for n in range(listed):
        j = tl.load(live + n)
        _k, cols, s = _key_tile(q, key, strides[1][2], j, rows, where, P)
        v = _load(value, j * P.block_s + tl.arange(0, P.block_s), strides[2][2], keys, P.value_width, P.block_value)
        p, _ = lifted_weights_and_slopes(relative(s, top[:, None]) - t[:, None], lift[:, None], eps)
        tl.store(flags + j, (tl.max(tl.max(p, 1), 0) > 0.0).to(tl.uint8))
        if seed is not None:
            p *= _kept((seed, pair, dropout), rows[:, None], cols, keys)
        o += _dot(p.to(v.dtype), v, P)
    _store(_of_head(out, strides[6], b, h), rows, strides[6][2], o, queries, P.value_width, P.block_value)
    stats += (pair.to(tl.int64) * queries + rows) * 3
    tl.store(stats, top, mask=rows < queries)
    tl.store(stats + 1, t, mask=rows < queries)
    tl.store(stats + 2, lift, mask=rows < queries)


@triton.jit
def _load_stats(stats, rows, valid):
    """Maximum, threshold and lift of rows."""
    stats += rows * 3
    top = tl.load(stats, mask=valid, other=0.0)
    return top, tl.load(stats + 1, mask=valid, other=0.0), tl.load(stats + 2, mask=valid, other=0.0)


@triton.jit
def _gradient_tile(q, do, key, value, strides, j, rows, row_stats, eps, noise, where, P: tl.constexpr):
    """One live tile in the backward: keys, their indices, p, u, and g, the gradient of the weights."""
    k, cols, s = _key_tile(q, key, strides[1][2], j, rows, where, P)
    v = _load(value, j * P.block_s + tl.arange(0, P.block_s), strides[2][2], where[1], P.value_width, P.block_value)
    top, t, lift = row_stats
    p, slope = lifted_weights_and_slopes(relative(s, top[:, None]) - t[:, None], lift[:, None], eps)
    g = _dot(do, tl.trans(v), P)
    if noise[0] is not None:
        g *= _kept(noise, rows[:, None], cols, where[1])
    return k, cols, p, slope, g


@triton.jit
def _mean_gradient(q, do, key, value, strides, live, listed, rows, row_stats, eps, noise, where, P: tl.constexpr):
    """Σu and ḡ = Σ u g / Σu of each row."""
    slopes = tl.zeros_like(row_stats[0])
    weighted = tl.zeros_like(row_stats[0])
    for n in range(listed):
        j = tl.load(live + n)
        _, _, _, slope, g = _gradient_tile(q, do, key, value, strides, j, rows, row_stats, eps, noise, where, P)
        slopes += tl.sum(slope, 1)
        weighted += tl.sum(slope * g, 1)
    slopes = tl.maximum(slopes, 1e-30)
    return slopes, weighted / slopes


@triton.jit
def _add_bias_gradient(grad_bias, strides, ds, rows, cols, queries, keys, P: tl.constexpr):
    if P.bias_per_key:
        tl.atomic_add(grad_bias + cols * strides[3], tl.sum(ds, 0)[None, :], mask=cols < keys)
    else:
        inside = (rows < queries) & (cols < keys)
        tl.atomic_add(grad_bias + rows * strides[2] + cols * strides[3], ds, mask=inside)


@triton.jit
def backward_queries(
    grad, query, key, value, alpha, mask, bias, seed, stats, flags, live, means, grad_query, grad_alpha,
    grad_bias, strides, sizes, scale, dropout, P: tl.constexpr,
):  # fmt: skip
    """Gradients by blocks of queries: of Q, of α (one value per program), of the bias (added up); and ḡ of each row."""
    heads, queries, keys, chunk_size, left_chunks = sizes
    key_blocks = tl.cdiv(keys, P.block_s)
    pair, block, b, h = _locate(tl.cdiv(queries, P.block_t), heads)
    eps = load_eps(alpha + b * strides[3][0] + h * strides[3][1])
    where = (queries, keys, scale, b, h, mask, bias, strides[4], strides[5], chunk_size, left_chunks)
    noise = (seed, pair, dropout)
    live += tl.program_id(0).to(tl.int64) * key_blocks
    listed = _list_live(flags + tl.program_id(0).to(tl.int64) * key_blocks, 1, key_blocks, live)
    rows = block * P.block_t + tl.arange(0, P.block_t)
    first = pair.to(tl.int64) * queries
    q = _load(_of_head(query, strides[0], b, h), rows, strides[0][2], queries, P.width, P.block_width)
    do = _load(_of_head(grad, strides[6], b, h), rows, strides[6][2], queries, P.value_width, P.block_value)
    key = _of_head(key, strides[1], b, h)
    value = _of_head(value, strides[2], b, h)
    row_stats = _load_stats(stats, first + rows, rows < queries)

    slopes, mean = _mean_gradient(q, do, key, value, strides, live, listed, rows, row_stats, eps, noise, where, P)
    tl.store(means + first + rows, mean, mask=rows < queries)

    dq = tl.full((P.block_t, P.block_width), 0.0, tl.float32)
    # Σ u (g − ḡ) is 0 but for rounding in ḡ, which Σw would blow up in dα: it is measured and taken out.
    rest = tl.zeros_like(mean)
    w_sum = tl.zeros_like(mean)
    w_centred = tl.zeros_like(mean)
    for n in range(listed):
        j = tl.load(live + n)
        k, cols, p, slope, g = _gradient_tile(q, do, key, value, strides, j, rows, row_stats, eps, noise, where, P)
        centred = g - mean[:, None]
        ds = slope * centred
        dq += _dot(ds.to(k.dtype), k, P)
        if grad_alpha is not None:
            w = alpha_weights(p, slope, eps)
            rest += tl.sum(ds, 1)
            w_sum += tl.sum(w, 1)
            w_centred += tl.sum(w * centred, 1)
        if grad_bias is not None:
            target = _of_head(grad_bias, strides[7], b, h)
            _add_bias_gradient(target, strides[7], ds, rows[:, None], cols, queries, keys, P)
    if grad_alpha is not None:
        tl.store(grad_alpha + tl.program_id(0), tl.sum(w_sum * rest / slopes - w_centred, 0))
    out = _of_head(grad_query, strides[8], b, h)
    _store(out, rows, strides[8][2], dq * scale, queries, P.width, P.block_width)


@triton.jit
def backward_keys(
    grad, query, key, value, alpha, mask, bias, seed, stats, flags, live, means, grad_key, grad_value,
    strides, sizes, scale, dropout, P: tl.constexpr,
):  # fmt: skip
    """Gradients by blocks of keys: of K and V. Tiles are (keys, queries) here."""
    heads, queries, keys, chunk_size, left_chunks = sizes
    row_blocks = tl.cdiv(queries, P.block_t)
    key_blocks = tl.cdiv(keys, P.block_s)
    pair, block, b, h = _locate(key_blocks, heads)
    eps = load_eps(alpha + b * strides[3][0] + h * strides[3][1])
    where = (queries, keys, scale, b, h, mask, bias, strides[4], strides[5], chunk_size, left_chunks)
    live += tl.program_id(0).to(tl.int64) * row_blocks
    column = flags + pair.to(tl.int64) * row_blocks * key_blocks + block
    listed = _list_live(column, key_blocks, row_blocks, live)
    cols = block * P.block_s + tl.arange(0, P.block_s)
    k = _load(_of_head(key, strides[1], b, h), cols, strides[1][2], keys, P.width, P.block_width)
    v = _load(_of_head(value, strides[2], b, h), cols, strides[2][2], keys, P.value_width, P.block_value)
    query = _of_head(query, strides[0], b, h)
    grad = _of_head(grad, strides[6], b, h)
    dk = tl.full((P.block_s, P.block_width), 0.0, tl.float32)
    dv = tl.full((P.block_s, P.block_value), 0.0, tl.float32)
    for n in range(listed):
        rows = tl.load(live + n) * P.block_t + tl.arange(0, P.block_t)
        flat = pair.to(tl.int64) * queries + rows
        q = _load(query, rows, strides[0][2], queries, P.width, P.block_width)
        do = _load(grad, rows, strides[6][2], queries, P.value_width, P.block_value)
        top, t, lift = _load_stats(stats, flat, rows < queries)
        mean = tl.load(means + flat, mask=rows < queries, other=0.0)[None, :]
        s = _scores(k, q, rows[None, :], cols[:, None], where, P)
        p, slope = lifted_weights_and_slopes(relative(s, top[None, :]) - t[None, :], lift[None, :], eps)
        g = _dot(v, tl.trans(do), P)
        if seed is not None:
            kept = _kept((seed, pair, dropout), rows[None, :], cols[:, None], keys)
            p *= kept
            g *= kept
        dv += _dot(p.to(do.dtype), do, P)
        dk += _dot((slope * (g - mean)).to(q.dtype), q, P)
    out = _of_head(grad_key, strides[9], b, h)
    _store(out, cols, strides[9][2], dk * scale, keys, P.width, P.block_width)
    out = _of_head(grad_value, strides[10], b, h)
    _store(out, cols, strides[10][2], dv, keys, P.value_width, P.block_value)
