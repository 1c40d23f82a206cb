"""The training objective: (1 − w) · cross entropy + w · CTC + λ · head penalty + price of density; proximal step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_entmax_asr import EntmaxAsrConfig

IGNORED_LABEL = -100  # padding among labels; torch and transformers leave it out of losses too


def recognition_losses(
    config: EntmaxAsrConfig,
    logits: Tensor,
    labels: Tensor,
    ctc_logits: Tensor | None = None,
    source_mask: Tensor | None = None,
    head_penalty: Tensor | None = None,
    density: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """`loss` and, detached, the parts it is made of.

    Every part is divided by the target tokens of the whole step, so that unequal batches of one step add up to what
    one batch would give.

    Args:
        config: for `ctc_loss_weight` w, `head_regularizer_weight` λ, `sparsity_weight` and the special tokens.
        logits: (B, U, V).
        labels: (B, U), −100 where padded.
        ctc_logits: (B, S, V) of the CTC head, or None for no CTC loss.
        source_mask: (B, S) boolean, true where real; None means that no position is padding.
        head_penalty: scalar, a mean over the batch.
        density: scalar, of the learned α (`mean_density`).
        num_items_in_batch: target tokens of the whole step, where it is made of several batches.
        label_smoothing: of the cross entropy.
    """
    tokens = (labels != IGNORED_LABEL).sum().clamp(min=1)
    step_tokens = tokens if num_items_in_batch is None else num_items_in_batch
    cross_entropy = F.cross_entropy(
        logits.float().flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    loss = cross_entropy = cross_entropy / step_tokens
    parts = {"cross_entropy_loss": cross_entropy.detach()}
    if ctc_logits is not None:
        ctc = summed_ctc_loss(config, ctc_logits, labels, source_mask) / step_tokens
        loss = (1 - config.ctc_loss_weight) * loss + config.ctc_loss_weight * ctc
        parts["ctc_loss"] = ctc.detach()
    if head_penalty is not None:
        head_penalty = head_penalty * (tokens / step_tokens)
        loss = loss + config.head_regularizer_weight * head_penalty
        parts["head_penalty"] = head_penalty.detach()
    if density is not None:
        loss = loss + config.sparsity_weight * density * (tokens / step_tokens)
    return {"loss": loss, **parts}


def summed_ctc_loss(
    config: EntmaxAsrConfig, ctc_logits: Tensor, labels: Tensor, source_mask: Tensor | None = None
) -> Tensor:
    """CTC loss of logits (B, S, V) summed over the batch; blank is the pad token, end-of-sentence is no target.

    An utterance whose audio is too short for its labels adds nothing.
    """
    is_target = _is_text(config, labels)
    if source_mask is None:
        source_mask = ctc_logits.new_ones(ctc_logits.shape[:2], dtype=torch.bool)
    return F.ctc_loss(
        ctc_logits.float().log_softmax(-1).transpose(0, 1),  # (S, B, V)
        labels[is_target],
        source_mask.sum(1),
        is_target.sum(1),
        blank=config.pad_token_id,
        reduction="sum",
        zero_infinity=True,
    )


def text_targets(config: EntmaxAsrConfig, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B, U) -> the tokens of each text without its end, first in (B, U′), padded with the pad token; and their
    numbers (B,)."""
    is_target = _is_text(config, labels)
    counts = is_target.sum(1)
    order = (~is_target).int().argsort(dim=1, stable=True)[:, : int(counts.max())]
    inside = torch.arange(order.shape[1], device=labels.device) < counts[:, None]
    return labels.gather(1, order).where(inside, config.pad_token_id), counts


def _is_text(config: EntmaxAsrConfig, labels: Tensor) -> Tensor:
    """(B, U) true at tokens that are neither padding nor an end."""
    eos = config.eos_token_id
    ends = torch.tensor([eos] if isinstance(eos, int) else eos or [], device=labels.device, dtype=labels.dtype)
    return (labels != IGNORED_LABEL) & ~torch.isin(labels, ends)


@torch.no_grad()
def shrink_gates(gates: set[nn.Parameter], optimizer: torch.optim.Optimizer, weight: float) -> None:
    """Soft threshold of head gates after an optimiser step, in place: g ← sign(g) max(|g| − s, 0).

    The gradient of λΣ|g| makes gates small; this makes them exactly 0. The threshold s is the optimiser's step for a
    gradient of λ: learning rate · λ, divided by √v̂ for an optimiser of Adam's kind.

    Args:
        gates: parameters of any shape; those that the optimiser does not hold stay as they are.
        optimizer: just after its `step()`.
        weight: λ.
    """
    for group in optimizer.param_groups:
        for gate in gates.intersection(group["params"]):
            threshold = torch.as_tensor(group["lr"] * weight, device=gate.device)
            state = optimizer.state.get(gate, {})
            if "exp_avg_sq" in state:
                correction = 1 - group["betas"][1] ** float(state["step"])
                threshold = threshold / ((state["exp_avg_sq"] / correction).sqrt() + group["eps"])
            gate.copy_(gate.sign() * (gate.abs() - threshold).clamp(min=0))
