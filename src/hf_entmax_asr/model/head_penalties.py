"""Penalties on where monotonic heads stop, in training: functions of the expected alignment alone."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .alignment import missing_mass
from .configuration_entmax_asr import EntmaxAsrConfig


def head_penalty(
    config: EntmaxAsrConfig,
    energy: Tensor,
    alignment: Tensor,
    source_mask: Tensor | None = None,
    target_mask: Tensor | None = None,
    reference: Tensor | None = None,
) -> Tensor:
    """The penalty `config.head_regularizer` of one layer: a mean over tokens and utterances, summed over heads.

    Args:
        config: which penalty, and `reference_window`.
        energy: (B, H, U, S) of the heads.
        alignment: (B, H, U, S) expected alignment of these energies.
        source_mask: (B, S) boolean, true where real.
        target_mask: (B, U) boolean, true where a token is real.
        reference: (B, U) encoder positions at which the tokens' sounds end, NaN where unknown; "reference" needs it.

    Raises:
        ValueError: "reference" is asked for and no reference is given.
    """
    if target_mask is None:
        target_mask = torch.ones_like(alignment[:, 0, :, 0], dtype=torch.bool)
    if config.head_regularizer == "quantity":
        return _mean_over_tokens(missing_mass(energy, alignment, source_mask), target_mask)
    index = torch.arange(energy.shape[-1], device=energy.device, dtype=alignment.dtype)
    stop = (alignment * index).sum(-1)  # (B, H, U) expected, in positions
    match config.head_regularizer:
        case "boundary_consensus":
            return _mean_over_tokens((stop - stop.mean(1, keepdim=True)).abs(), target_mask)
        case "delay":
            lengths = energy.new_full((len(energy),), energy.shape[-1]) if source_mask is None else source_mask.sum(1)
            return _mean_over_tokens(delay_behind_pace(stop, lengths, target_mask), target_mask)
    if reference is None:
        raise ValueError(
            "head_regularizer = 'reference' needs token_frames beside the labels: the frame at which each token ends. "
            "Training takes them from data.word_times of the recipe."
        )
    known = target_mask & reference.isfinite()
    return _mean_over_tokens(distance_from_window(stop, reference, config.reference_window), known)


def delay_behind_pace(stop: Tensor, source_lengths: Tensor, target_mask: Tensor) -> Tensor:
    """How far stops (B, H, U) lie behind an even pace through the audio, as shares of it.

    Args:
        stop: in positions.
        source_lengths: (B,) positions of the audio.
        target_mask: (B, U) boolean, true where a token is real.
    """
    real = target_mask.unsqueeze(1).to(stop.dtype)  # (B, 1, U)
    due = real.cumsum(2) / real.sum(2, keepdim=True).clamp(min=1)  # share of the tokens so far
    return ((stop + 1) / source_lengths[:, None, None] - due).clamp(min=0)


def distance_from_window(stop: Tensor, reference: Tensor, window: Sequence[float | None]) -> Tensor:
    """How far stops (B, H, U) lie outside [reference − before, reference + after], in positions; references (B, U).

    Args:
        window: before and after, in positions; None where there is no bound on that side.
    """
    before, after = window
    due = reference.nan_to_num().to(stop.dtype).unsqueeze(1)  # (B, 1, U)
    distance = torch.zeros_like(stop)
    if before is not None:
        distance = distance + (due - before - stop).clamp(min=0)
    if after is not None:
        distance = distance + (stop - due - after).clamp(min=0)
    return distance


def reference_positions(config: EntmaxAsrConfig, token_frames: Tensor | None) -> Tensor | None:
    """Frames (B, U) at which labels end -> encoder positions (B, P + U) for the decoder's inputs, which begin with the
    P tokens of the prompt; NaN where nothing is known."""
    if token_frames is None:
        return None
    return F.pad(token_frames / config.frames_per_position, (len(config.decoder_prompt_ids), 0), value=math.nan)


def _mean_over_tokens(per_token: Tensor, counted: Tensor) -> Tensor:
    """(B, H, U) and the tokens that count (B, U) -> mean over these and over utterances, summed over heads."""
    weight = counted.unsqueeze(1).to(per_token.dtype)
    return ((per_token * weight).sum(2) / weight.sum(2).clamp(min=1)).mean(0).sum()
