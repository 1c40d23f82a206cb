"""Monotonic alignment as pure functions: expected, for training, and hard, for decoding.

A head walks over the audio positions j from where it stopped last; at each it stops with probability σ(energy). One
rule serves training and decoding: nobody passes the last real position, where the energy is +∞ (`preserve_mass`);
padding has energy −∞.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .entmax import check_sizes, softmax, wide_dtype

try:  # the native forms, where the package is installed; this file also travels alone
    from hf_entmax_asr.kernels import expected_alignment as native_expected_alignment
    from hf_entmax_asr.kernels import expected_soft_attention as native_expected_soft_attention
except ImportError:
    native_expected_alignment = None  # type: ignore[assignment]
    native_expected_soft_attention = None  # type: ignore[assignment]

WEIGHT_0_BELOW = 800.0  # e^−800 is 0 in float64
DIAGONALS_AT_ONCE = 32  # sigmoids taken together: few calls, and little memory in float64


def expected_alignment(energy: Tensor, source_mask: Tensor | None = None, previous: Tensor | None = None) -> Tensor:
    """Probability that a head which stops at each position with probability σ(energy) stops there for each token.

    The recurrence of Raffel et al. 2017 (arXiv 1704.00784, eq. 8-10), with p = σ(e):

        q_ij = q_{i,j−1} (1 − p_{i,j−1}) + α_{i−1,j},    α_ij = p_ij q_ij,

    taken along the anti-diagonals i + j, each of which depends only on the one before: U + S − 1 vector steps, stable
    for any energies. (The closed form with cumulative products, common in toolkits, loses alignment mass.)

    Args:
        energy: (B, H, U, S), any floating dtype; ±∞ allowed. Float32 or wider inside.
        source_mask: (B, S) boolean, true where real; elsewhere nothing stops.
        previous: (B, H, S) alignment of the token before the first; by default every head starts at position 0.

    Returns:
        (B, H, U, S) in the dtype of `energy`. Row sums are at most 1; what is missing passed the last position.

    Raises:
        ValueError: shapes that do not fit.
    """
    _check_energy("energy", energy)
    batch, heads, targets, positions = energy.shape
    _check_source_mask(energy, source_mask)
    if previous is not None and previous.shape != (batch, heads, positions):
        raise ValueError(f"previous has shape {tuple(previous.shape)}; it must be {(batch, heads, positions)}.")
    if previous is not None and not previous.is_floating_point():
        raise ValueError(f"previous has dtype {previous.dtype}; it must be floating point.")
    if not energy.numel():
        return energy.clone()
    if native_expected_alignment is not None:
        alignment = native_expected_alignment(energy, source_mask, previous)
        if alignment is not None:
            return alignment
    energy = mask_energy(energy, source_mask)
    if previous is None:
        previous = F.one_hot(energy.new_zeros(batch, heads, dtype=torch.long), positions).to(energy.dtype)
    flat = _expected_alignment(energy.reshape(-1, targets, positions), previous.reshape(-1, positions))
    return flat.view(batch, heads, targets, positions)


def mask_energy(energy: Tensor, source_mask: Tensor | None) -> Tensor:
    """`energy` (B, H, U, S) with −∞ where `source_mask` (B, S) is false."""
    _check_source_mask(energy, source_mask)
    if source_mask is None:
        return energy
    return energy.masked_fill(~source_mask[:, None, None, :], -torch.inf)


def _check_energy(name: str, energy: Tensor) -> None:
    if energy.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(energy.shape)}; it must be (batch, heads, targets, positions).")
    if not energy.is_floating_point():
        raise ValueError(f"{name} has dtype {energy.dtype}; it must be floating point.")
    check_sizes(name, energy)


def _check_source_mask(energy: Tensor, source_mask: Tensor | None) -> None:
    if source_mask is None:
        return
    if source_mask.shape != (energy.shape[0], energy.shape[-1]) or source_mask.dtype != torch.bool:
        raise ValueError(
            f"source_mask is {source_mask.dtype} of shape {tuple(source_mask.shape)}; for energies of shape "
            f"{tuple(energy.shape)} it must be boolean of shape {(energy.shape[0], energy.shape[-1])}, true where real."
        )


@torch.compiler.disable  # U + S − 1 small steps: a graph of them compiles slowly and gains nothing
def _expected_alignment(energy: Tensor, previous: Tensor) -> Tensor:
    return _ExpectedAlignment.apply(energy, previous)


class _ExpectedAlignment(torch.autograd.Function):
    """Anti-diagonal recurrence on energies (N, U, S); its backward runs the same lattice in reverse.

    Adjoints, g = ∂loss/∂α:  ā_ij = g_ij + q̄_{i+1,j},  q̄_ij = ā_ij σ(e) + q̄_{i,j+1} σ(−e),
    ē_ij = σ(e) σ(−e) q_ij (ā_ij − q̄_{i,j+1}).

    What is carried from step to step is float64: 1 − p, rounded to float32 two thousand times, loses 1e-4 of the mass.
    What is kept for the backward is not.
    """

    @staticmethod
    def forward(ctx: Any, energy: Tensor, previous: Tensor) -> Tensor:
        dtype = torch.float32 if energy.dtype in (torch.bfloat16, torch.float16) else energy.dtype
        wide = wide_dtype(energy.device)
        rows, targets, positions = energy.shape
        e = _skew(energy.to(dtype), fill=-torch.inf)  # (D, N, U), D = U + S − 1 diagonals; no stop outside the lattice
        entering = F.pad(previous.to(wide).T, (0, 0, 0, targets - 1))  # (D, N): what token −1 hands to token 0
        reached, alignment = torch.empty_like(e), torch.empty_like(e)  # q and α
        q = e.new_zeros(rows, targets, dtype=wide)
        a = e.new_zeros(rows, targets + 1, dtype=wide)  # α of the diagonal before, token −1 in front
        for start in range(0, len(e), DIAGONALS_AT_ONCE):
            stop, go = _stop_and_go(e[start : start + DIAGONALS_AT_ONCE], wide)
            for d, (stop_d, go_d) in enumerate(zip(stop, go, strict=True), start):
                a[:, 0] = entering[d]
                q += a[:, :-1]
                reached[d] = q
                torch.mul(q, stop_d, out=a[:, 1:])
                alignment[d] = a[:, 1:]
                q *= go_d
        ctx.save_for_backward(e, reached)
        ctx.positions, ctx.dtypes = positions, (energy.dtype, previous.dtype)
        return _unskew(alignment, positions).to(energy.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        e, reached = ctx.saved_tensors
        wide = wide_dtype(e.device)
        g = _skew(grad.to(e.dtype))
        q_bar = e.new_zeros(e.shape[1], e.shape[2] + 1, dtype=wide)  # of the diagonal behind: q̄_{i,j+1}, and shifted by
        entering = q_bar.new_empty(len(e), e.shape[1])  # one token q̄_{i+1,j}
        grad_e = torch.empty_like(e)
        for start in reversed(range(0, len(e), DIAGONALS_AT_ONCE)):
            block = slice(start, start + DIAGONALS_AT_ONCE)
            stop, go = _stop_and_go(e[block], wide)
            for d in reversed(range(start, start + len(stop))):
                a_bar = g[d] + q_bar[:, 1:]
                torch.sub(a_bar, q_bar[:, :-1], out=grad_e[d])
                q_bar[:, :-1] *= go[d - start]
                q_bar[:, :-1].addcmul_(a_bar, stop[d - start])
                entering[d] = q_bar[:, 0]
            grad_e[block] *= stop * go
        energy_dtype, previous_dtype = ctx.dtypes
        grad_energy = _unskew(grad_e * reached, ctx.positions).to(energy_dtype)
        return grad_energy, entering[: ctx.positions].T.to(previous_dtype)


def _stop_and_go(energy: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """σ(e) and σ(−e): never 1 − σ(e), which is 0 long before it should be."""
    energy = energy.to(dtype)
    return torch.sigmoid(energy), torch.sigmoid(-energy)


def _skew(x: Tensor, fill: float = 0.0) -> Tensor:
    """(N, U, S) -> (D, N, U) with out[i + j, n, i] = x[n, i, j] and `fill` outside the lattice."""
    rows, targets, positions = x.shape
    padded = F.pad(x, (0, targets), value=fill).reshape(rows, -1)  # rows of S + U, cut to S + U − 1: each shifts by one
    diagonals = targets + positions - 1
    return padded[:, : targets * diagonals].view(rows, targets, diagonals).permute(2, 0, 1).contiguous()


def _unskew(x: Tensor, positions: int) -> Tensor:
    """Inverse of `_skew`."""
    diagonals, rows, targets = x.shape
    flat = F.pad(x.permute(1, 2, 0).reshape(rows, targets * diagonals), (0, targets))
    return flat.view(rows, targets, positions + targets)[:, :, :positions].contiguous()


def expected_soft_attention(
    alignment: Tensor, energy: Tensor, chunk_size: int | None = None, source_mask: Tensor | None = None
) -> Tensor:
    """Expected attention weights when, from where a head stops, a soft window looks back.

        β_ij = Σ_k α_ik softmax(u_i over the window that ends at k)_j

    with a window of `chunk_size` positions (MoChA, Chiu and Raffel 2018, arXiv 1712.05382, eq. 7) or of everything up
    to k for None (MILK, Arivazhagan et al. 2019, arXiv 1906.05218, eq. 8).

    Args:
        alignment: (B, H, U, S) from `expected_alignment`.
        energy: (B, H, U, S) scores u of the soft window.
        chunk_size: window width w >= 1, or None.
        source_mask: (B, S) boolean, true where real.

    Returns:
        (B, H, U, S) weights with the row sums of `alignment`, in its dtype.

    Raises:
        ValueError: chunk_size below 1, or shapes that do not fit.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size = {chunk_size} must be at least 1, or None for infinite lookback.")
    if alignment.shape != energy.shape:
        raise ValueError(f"alignment {tuple(alignment.shape)} and energy {tuple(energy.shape)} differ in shape.")
    _check_energy("alignment", alignment)
    _check_energy("energy", energy)
    _check_source_mask(energy, source_mask)
    if chunk_size == 1 or not energy.numel():
        return alignment
    if native_expected_soft_attention is not None:
        weights = native_expected_soft_attention(alignment, energy, chunk_size, source_mask)
        if weights is not None:
            return weights
    u = mask_energy(energy, source_mask)
    if chunk_size is None:
        return _lookback(alignment, u)
    return _chunkwise(alignment, u, chunk_size)


def _chunkwise(alignment: Tensor, u: Tensor, width: int) -> Tensor:
    dtype = torch.promote_types(alignment.dtype, torch.float32)
    positions = u.shape[-1]
    # A finite stand-in for −∞ keeps a window of padding defined; windows do not reach in front of position 0.
    u = F.pad(u.to(dtype).clamp(min=-1e30), (width - 1, 0), value=-torch.inf)
    windows = u.unfold(-1, width, 1)  # (..., S, w), window k ends at k
    shares = torch.softmax(windows, -1) * alignment.to(dtype).unsqueeze(-1)  # what stopping at k sends over its window
    # Position j sits in window k at offset j − k + w − 1: move every offset into place and add.
    beta = shares[..., -1]
    for back in range(1, min(width, positions)):
        beta = beta + F.pad(shares[..., back:, width - 1 - back], (0, back))
    return beta.to(alignment.dtype)


def _lookback(alignment: Tensor, u: Tensor) -> Tensor:
    # Drawing j <= k from the softmax of u_0 … u_k is a walk back from k that stops at j with probability
    # e^(u_j) / Σ_{l<=j} e^(u_l) = σ(u_j − log Σ_{l<j} e^(u_l)): an expected alignment of one token, read backwards.
    u = _near(u.to(wide_dtype(u.device)).clamp(min=-1e30))
    before = F.pad(torch.logcumsumexp(u, -1)[..., :-1], (1, 0), value=-torch.inf)
    positions = u.shape[-1]
    energy = (u - before).flip(-1).reshape(-1, 1, positions)
    beta = _expected_alignment(energy, alignment.flip(-1).reshape(-1, positions).to(energy.dtype))
    return beta.view(alignment.shape).flip(-1).to(alignment.dtype)


def _near(u: Tensor) -> Tensor:
    """Scores (..., S) whose softmax over u_0 … u_k is, for every k, that of `u`, and in which a sum of exponentials can
    be told from its largest term: log(n e^u) = u + log n is u itself where u is huge, as among scores of padding.

    Of each rise of the maximum so far, and of each distance below it, no more is kept than makes a weight 0.
    """
    with torch.no_grad():
        top = u.cummax(-1).values
        rises = top.diff(dim=-1, prepend=top[..., :1]).clamp(max=WEIGHT_0_BELOW)
        near = rises.cumsum(-1) + (u - top).clamp(min=-WEIGHT_0_BELOW)
    return near + (u - u.detach())  # the gradient is that of u


def hard_alignment(
    energy_row: Tensor,
    start: Tensor,
    source_mask: Tensor | None = None,
    rule: str = "threshold",
    streaming: bool = False,
    probability: float = 0.5,
) -> Tensor:
    """Where each head stops for one token: the first position from `start` on that fires.

    Args:
        energy_row: (B, H, S) energies of one token.
        start: (B, H) integer, the position of the token before (staying there is allowed).
        source_mask: (B, S) boolean, true where real.
        rule: "threshold": fires at the first position where σ(e) reaches `probability`; for 1/2 that is the first
            energy >= 0. "cumulative": at the first position where 1 − Π(1 − σ(e)) since `start` reaches it; equal to
            the threshold where σ(e) is 0 or 1, and earlier where the probability is spread over several positions.
        streaming: what happens where no position fires: offline (default) the head stops at the last real position;
            streaming, the result is S, "wait for more audio".
        probability: between 0 and 1. Above 1/2, heads stop later than in half of the cases that the expected alignment
            is of.

    Returns:
        (B, H) integer, never left of `start`.

    Raises:
        ValueError: an unknown rule, a probability beyond its limits, or shapes that do not fit.
    """
    limit = firing_limit(rule, probability)
    if energy_row.dim() != 3 or start.shape != energy_row.shape[:2]:
        raise ValueError(
            f"energy_row has shape {tuple(energy_row.shape)} and start {tuple(start.shape)}; they must be (batch, "
            "heads, positions) and (batch, heads)."
        )
    positions = energy_row.shape[-1]
    energy = mask_energy(energy_row.unsqueeze(2), source_mask).squeeze(2)
    index = torch.arange(positions, device=energy.device)
    reachable = index >= start.unsqueeze(-1)
    if rule == "threshold":
        fires = energy >= limit
    else:
        passed = torch.where(reachable, F.logsigmoid(-energy.float()), 0.0).cumsum(-1)  # log Π(1 − p)
        fires = passed <= limit
    fires = fires & reachable
    if source_mask is not None:
        fires = fires & source_mask.unsqueeze(1)
    first = fires.int().argmax(-1)
    if streaming:
        exhausted = torch.full_like(first, positions)
    elif source_mask is None:
        exhausted = torch.full_like(first, positions - 1)
    else:
        exhausted = last_position(source_mask).unsqueeze(1).expand_as(first)
    stopped = torch.where(fires.any(-1), first, exhausted)
    return torch.maximum(stopped, start.to(stopped.dtype))


def firing_limit(rule: str, probability: float) -> float:
    """Of an energy, which fires from there on; of the logarithm of Π(1 − σ(e)), which fires down from there.

    Raises:
        ValueError: an unknown rule, or a probability beyond its limits.
    """
    if rule not in ("threshold", "cumulative"):
        raise ValueError(f"rule = {rule!r} is not known. Use 'threshold' or 'cumulative'.")
    if not 0 < probability < 1:
        raise ValueError(f"probability = {probability} must lie between 0 and 1, both excluded.")
    if rule == "threshold":
        return math.log(probability) - math.log1p(-probability)
    # Where p reaches the probability but for rounding the threshold fires; so does this.
    return math.log1p(-probability) * (1 - 1e-6)


def last_position(source_mask: Tensor) -> Tensor:
    """(B, S) boolean -> (B,) index of the last real position (0 where there is none)."""
    return source_mask.long().cumsum(-1).argmax(-1)  # the first of the largest


def preserve_mass(energy: Tensor, source_mask: Tensor | None = None) -> Tensor:
    """`energy` (B, H, U, S) with +∞ at the last real position, so that no head runs off the end of the audio."""
    index = torch.arange(energy.shape[-1], device=energy.device)
    last = index[-1:] if source_mask is None else last_position(source_mask).view(-1, 1, 1, 1)
    return energy.masked_fill(index == last, torch.inf)


def missing_mass(energy: Tensor, alignment: Tensor, source_mask: Tensor | None = None) -> Tensor:
    """How much of each token's alignment only `preserve_mass` holds: (B, H, U), 1 − its row sum without that.

    `alignment` (B, H, U, S) is preserved, `energy` is not. Of what reaches the last position with token i, 1 − σ(e)
    would have passed it, and what has passed does not come back: m_i = m_{i−1} + (1 − σ(e_i)) (a_i − m_{i−1}).
    """
    last = (
        energy.new_tensor(energy.shape[-1] - 1, dtype=torch.long) if source_mask is None else last_position(source_mask)
    )
    at_last = last.view(-1, 1, 1, 1).expand(*energy.shape[:3], 1)
    arrived = alignment.gather(-1, at_last).squeeze(-1)  # (B, H, U)
    passes = torch.sigmoid(-energy.gather(-1, at_last)).squeeze(-1)
    missing = torch.zeros_like(arrived[..., 0])
    rows = []
    for a, p in zip(arrived.unbind(-1), passes.unbind(-1), strict=True):
        missing = missing + p * (a - missing)
        rows.append(missing)
    return torch.stack(rows, -1)


def soft_window(energy: Tensor, boundary: Tensor, chunk_size: int | None, source_mask: Tensor | None = None) -> Tensor:
    """Weights (B, H, U, S) of heads that stopped at `boundary` (B, H, U): one-hot for width 1, else a softmax of
    `energy` over the window that ends there."""
    index = torch.arange(energy.shape[-1], device=energy.device)
    end = boundary.unsqueeze(-1)
    if chunk_size == 1:
        return (index == end).to(energy.dtype)
    inside = index <= end
    if chunk_size is not None:
        inside = inside & (index > end - chunk_size)
    if source_mask is not None:
        inside = inside & source_mask[:, None, None, :]
    return softmax(energy, mask=inside)
