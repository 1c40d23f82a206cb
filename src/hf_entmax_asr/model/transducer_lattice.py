"""The transducer (Graves 2012, arXiv 1211.3711): the probability of a text as a sum over all its alignments.

At frame t, with u labels written, the model either writes a blank ∅ and goes to frame t + 1, or writes label u and
stays. With log probabilities ∅(t, u) and y(t, u), the sum over all paths from (0, 0) through (T, U) is

    α(t, u) = logaddexp(α(t−1, u) + ∅(t−1, u), α(t, u−1) + y(t, u−1)),   log P = α(T, U): the last step is a blank.

β mirrors it, and the gradient of log P is how probable each step is: γ_∅(t, u) = exp(α(t, u) + ∅(t, u) + β(t+1, u) −
log P), γ_y(t, u) likewise with β(t, u+1). Everything is in log space and float64, and goes along anti-diagonals t + u,
on each of which all places are independent. The monotonic attention of the recogniser is the special case ∅ = log
σ(−e), y = log σ(e).

Logits of all (t, u, v) would be the largest tensor of a training by far: `streamed_emissions` makes them for a few
frames at a time, keeps two numbers of each V, and makes them again in the backward pass.

Axes: B batch, T frames, U labels, W = U + 1, V vocabulary, D = T + W anti-diagonals.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from .entmax import wide_dtype

NEVER = float("-inf")


def emissions(logits: Tensor, labels: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Logits (B, T, W, V) and labels (B, U), any token where padded -> log probabilities of the blank (B, T, W) and of
    the
    label that comes next (B, T, U)."""
    found: tuple[Tensor, Tensor] = _Emissions.apply(logits, labels, blank)
    return found


class _Emissions(torch.autograd.Function):
    """∂/∂logit_v = γ_∅ [v = ∅] + γ_y [v = y] − (γ_∅ + γ_y) softmax_v, in one tensor of the size of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, blank: int) -> tuple[Tensor, Tensor]:
        whole = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        norm = whole.logsumexp(-1)  # (B, T, W)
        ctx.save_for_backward(logits, norm, labels)
        ctx.blank = blank
        index = labels[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        return whole[..., blank] - norm, whole[:, :, :-1].gather(3, index).squeeze(3) - norm[:, :, :-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_blank: Tensor, to_label: Tensor) -> tuple[Tensor, None, None]:
        logits, norm, labels = ctx.saved_tensors
        grad = (logits - norm[..., None]).exp_().mul_(-(to_blank + F.pad(to_label, (0, 1)))[..., None])
        grad[..., ctx.blank] += to_blank
        index = labels[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
        grad[:, :, :-1].scatter_add_(3, index, to_label[..., None].to(grad.dtype))
        return grad.to(logits.dtype), None, None


def streamed_emissions(
    logits_of: Callable[[Tensor], Tensor], frames: Tensor, labels: Tensor, blank: int, frames_at_once: int
) -> tuple[Tensor, Tensor]:
    """As `emissions` of `logits_of(frames)`, for `frames_at_once` frames at a time: no (B, T, W, V) is made.

    Args:
        logits_of: some of the frames (B, t, …) -> their logits (B, t, W, V); what else it uses may need gradients too.
        frames: (B, T, …) of the encoder.
    """

    def some(part: Tensor) -> tuple[Tensor, Tensor]:
        return emissions(logits_of(part), labels, blank)

    parts = [
        checkpoint(some, part, use_reentrant=False) if torch.is_grad_enabled() else some(part)
        for part in frames.split(frames_at_once, 1)
    ]
    return torch.cat([p[0] for p in parts], 1), torch.cat([p[1] for p in parts], 1)


def transducer_log_probability(blank: Tensor, label: Tensor, frames: Tensor, tokens: Tensor) -> Tensor:
    """log P (B,) of each text, summed over its alignments; −∞ with zero gradients where there is none.

    Args:
        blank, label: (B, T, W) and (B, T, U) of `emissions`; what lies beyond an utterance is not read.
        frames, tokens: (B,) frames and labels of each utterance.
    """
    found: Tensor = _LogProbability.apply(blank, label, frames, tokens)
    return found


class _LogProbability(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blank: Tensor, label: Tensor, frames: Tensor, tokens: Tensor) -> Tensor:
        stay, move = _diagonals(blank, label, frames, tokens)  # (D, B, W)
        alpha = _sums(stay, move, torch.logaddexp)
        rows = torch.arange(len(frames), device=blank.device)
        found = alpha[frames + tokens, rows, tokens]
        if any(ctx.needs_input_grad):
            ends = torch.full_like(alpha, NEVER)
            ends[frames + tokens, rows, tokens] = 0.0
            beta = _sums_to(ends, stay, move)  # (D + 1, B, W), of the next diagonal from index 1 on
            possible = torch.isfinite(found)[:, None]
            norm = found.where(torch.isfinite(found), 0.0)[:, None]
            of_stay = (alpha + stay + beta[1:] - norm).exp().where(possible, 0.0)
            of_move = (alpha + move + F.pad(beta[1:, :, 1:], (0, 1), value=NEVER) - norm).exp().where(possible, 0.0)
            ctx.save_for_backward(
                _straight(of_stay, blank.shape[1]).to(blank.dtype),
                _straight(of_move, blank.shape[1])[:, :, :-1].to(label.dtype),
            )
        return found.to(blank.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_blank, of_label = ctx.saved_tensors
        return of_blank * grad[:, None, None], of_label * grad[:, None, None], None, None


def forward_variables(blank: Tensor, label: Tensor) -> Tensor:
    """α (B, T, W) for t < T, of `emissions` without padding. Not differentiable."""
    frames, tokens = (torch.full((len(blank),), n, device=blank.device) for n in label.shape[1:])
    stay, move = _diagonals(blank.detach(), label.detach(), frames, tokens)
    return _straight(_sums(stay, move, torch.logaddexp), blank.shape[1])


@torch.no_grad()
def best_alignment(blank: Tensor, label: Tensor, frames: Tensor, tokens: Tensor) -> Tensor:
    """(B, U) frame at which each label is written on the likeliest path; T where padded. Arguments as above."""
    stay, move = _diagonals(blank, label, frames, tokens)
    best = _sums(stay, move, torch.maximum)
    batch, last = torch.arange(len(frames), device=blank.device), frames + tokens
    written = torch.full((len(frames), label.shape[2] + 1), blank.shape[1], device=blank.device)
    u = tokens.clone()
    for d in range(len(best) - 1, 0, -1):
        before = (u - 1).clamp(min=0)
        by_label = (best[d - 1] + move[d - 1])[batch, before] > (best[d - 1] + stay[d - 1])[batch, u]
        step = (d <= last) & (u > 0) & by_label
        written[batch, torch.where(step, before, label.shape[2])] = d - u  # the last column takes what is no step
        u = torch.where(step, before, u)
    return written[:, :-1]


def alignment_log_probability(blank: Tensor, label: Tensor, frames: Tensor, written: Tensor) -> Tensor:
    """log p (B,) of one alignment, `written` (B, U) as of `best_alignment`: its labels and all blanks;
    differentiable."""
    positions = torch.arange(blank.shape[1], device=blank.device)
    before = (written[:, None, :] <= positions[:, None]).sum(2)  # (B, T) labels written when a frame ends
    blanks = blank.gather(2, before[..., None]).squeeze(2).where(positions < frames[:, None], 0.0)
    real = written < blank.shape[1]
    labels = label.gather(1, written.clamp(max=blank.shape[1] - 1)[:, None]).squeeze(1)
    return blanks.sum(1) + labels.where(real, 0.0).sum(1)


def _diagonals(blank: Tensor, label: Tensor, frames: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Both on anti-diagonals, (D, B, W) in float64; −∞ beyond the utterances, so that no path leaves them."""
    batch, length, width = blank.shape
    inside = torch.arange(length, device=blank.device) < frames[:, None]  # (B, T)
    unwritten = torch.arange(width, device=blank.device) < tokens[:, None]  # (B, W)
    found = []
    for scores, allowed in (
        (blank, inside[..., None]),
        (F.pad(label, (0, 1)), inside[..., None] & unwritten[:, None]),
    ):
        scores = scores.to(wide_dtype(blank.device)).masked_fill(~allowed, NEVER)
        rows = F.pad(scores.transpose(1, 2), (0, 1 + width), value=NEVER)  # (B, W, T + 1 + W)
        skewed = rows.flatten(1)[:, :-width].view(batch, width, length + width)  # row u moved by u
        found.append(skewed.permute(2, 0, 1).contiguous())
    return found[0], found[1]


def _straight(skewed: Tensor, length: int) -> Tensor:
    """(D, B, W) on anti-diagonals -> (B, T, W)."""
    rows = skewed.permute(1, 2, 0)  # (B, W, D)
    width = rows.shape[1]
    rows = F.pad(rows.flatten(1), (0, width)).view(len(rows), width, -1)  # (B, W, D + 1)
    return rows[..., :length].transpose(1, 2)


def _sums(stay: Tensor, move: Tensor, add: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """α (D, B, W) of steps on anti-diagonals."""
    alpha = torch.full_like(stay, NEVER)
    alpha[0, :, 0] = 0.0
    for d in range(1, len(alpha)):
        before = alpha[d - 1]
        alpha[d] = add(before + stay[d - 1], F.pad((before + move[d - 1])[:, :-1], (1, 0), value=NEVER))
    return alpha


def _sums_to(ends: Tensor, stay: Tensor, move: Tensor) -> Tensor:
    """β (D + 1, B, W): the sum over all paths from each place to the end, where `ends` (D, B, W) is 0."""
    beta = torch.full((len(ends) + 1, *ends.shape[1:]), NEVER, dtype=ends.dtype, device=ends.device)
    for d in range(len(ends) - 1, -1, -1):
        onward = torch.logaddexp(stay[d] + beta[d + 1], move[d] + F.pad(beta[d + 1, :, 1:], (0, 1), value=NEVER))
        beta[d] = torch.logaddexp(onward, ends[d])
    return beta
