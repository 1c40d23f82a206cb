"""When each token was said: from the stops of monotonic heads, from CTC, or from the maps of cross-attention.

Where the times come from stands in the generation configuration, under `word_times`, so that it travels with a
checkpoint; `scripts/choose_word_times.py` chooses it on held-out data and writes it:

    {"source": "stops", "start": [layer, head], "end": [layer, head], "end_at": "next" or "same",
     "start_offset_ms": …, "end_offset_ms": …}
    {"source": "ctc", "start_offset_ms": …, "end_offset_ms": …}
    {"source": "cross_attention", "heads": [[layer, head], …], "start_offset_ms": …, "end_offset_ms": …}

A token starts where one chosen head stopped for it and ends where one chosen head stopped for it ("same") or for the
token behind it ("next"), each plus its offset; never at a mean over heads, of which some run ahead and some trail.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SOURCES = ("stops", "ctc", "cross_attention")
MEDIAN_WIDTH = 7  # positions, of the filter over maps of cross-attention, as in Whisper
SMALLEST_DEVIATION = 1e-6


@dataclass(frozen=True)
class TokenTimes:
    """Of N sequences: start, end (N, U) in seconds from the start of the audio, and confidence (N, U), the probability
    that the decoder gave each token. What is no text has times without meaning."""

    start: Tensor
    end: Tensor
    confidence: Tensor


@torch.no_grad()
def token_times(
    model: Any,
    sequences: Tensor,
    is_text: Tensor,
    encoder_outputs: Any,
    attention_mask: Tensor | None,
    seconds_per_position: float,
    settings: dict[str, Any] | None = None,
) -> TokenTimes:
    """Times of the tokens of finished sequences, by one more pass of the decoder.

    Args:
        model: an `EntmaxAsrForConditionalGeneration` in evaluation mode.
        sequences: (N, 1 + U) as `generate` returns them.
        is_text: (N, U) boolean, true where sequences[:, 1:] spell something.
        encoder_outputs: of the N utterances; attention_mask (N, T) of their feature frames.
        settings: see this module; by default the generation configuration's `word_times`, without which CTC is taken
            where the model has a CTC head, else cross-attention.

    Raises:
        ValueError: settings that do not fit the model.
    """
    settings = settings or getattr(model.generation_config, "word_times", None) or default_settings(model)
    check_settings(model, settings)
    source = settings["source"]
    outputs = model(
        encoder_outputs=encoder_outputs,
        attention_mask=attention_mask,
        decoder_input_ids=sequences[:, :-1],
        use_cache=False,
        output_boundaries=source == "stops",
        output_attentions=source == "cross_attention",
        return_dict=True,
    )
    tokens = sequences[:, 1:]
    confidence = outputs.logits.float().softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2)
    if source == "stops":
        start, end = _times_of_stops(model, outputs.boundaries, settings)
    else:
        states = encoder_outputs[0]
        mask = model.position_mask(attention_mask)
        lengths = [states.shape[1]] * len(states) if mask is None else mask.sum(1).tolist()
        if source == "ctc":
            scores = model.ctc_head(states).float().log_softmax(-1)
            aligned = [
                ctc_spans(scores[n, : lengths[n]].numpy(force=True), tokens[n][is_text[n]].tolist(), _blank(model))
                for n in range(len(tokens))
            ]
        else:
            heads = settings.get("heads") or alignment_heads(model)
            maps = torch.stack([outputs.cross_attentions[layer][:, head] for layer, head in heads], 1).float()
            aligned = [map_spans(maps[n, :, :, : lengths[n]], is_text[n]) for n in range(len(tokens))]
        start, end = _of_text(aligned, is_text)
    limit = seconds_per_position * (outputs.encoder_last_hidden_state.shape[1])
    start = (start * seconds_per_position + settings.get("start_offset_ms", 0) / 1000).clamp(0, limit)
    end = (end * seconds_per_position + settings.get("end_offset_ms", 0) / 1000).clamp(0, limit)
    return TokenTimes(start, end, confidence)


def default_settings(model: Any) -> dict[str, Any]:
    """Of a checkpoint for which nobody has chosen."""
    return {"source": "ctc" if hasattr(model, "ctc_head") else "cross_attention"}


def alignment_heads(model: Any) -> list[list[int]]:
    """The cross-attention heads [layer, head] whose maps follow the speech: those the generation configuration names,
    as Whisper's does, else all of the upper half of the layers."""
    known = getattr(model.generation_config, "alignment_heads", None)
    layers = model.config.decoder_layers
    upper = range(layers // 2, layers)
    return known or [[layer, head] for layer in upper for head in range(model.config.heads("cross", layer))]


def check_settings(model: Any, settings: dict[str, Any]) -> None:
    """Refuses settings that the model cannot follow."""
    config, source = model.config, settings.get("source")
    if source not in SOURCES:
        raise ValueError(f"the source of word_times is {source!r}; use one of: {', '.join(SOURCES)}.")
    if source == "ctc" and not hasattr(model, "ctc_head"):
        raise ValueError("word_times come from CTC, but this model has no CTC head (ctc_loss_weight is 0).")
    if source != "stops":
        return
    if config.cross_attention != "monotonic" or config.monotonic_decoding != "hard":
        raise ValueError(
            f"word_times come from the stops of heads, which there are none of with cross_attention = "
            f"{config.cross_attention!r} and monotonic_decoding = {config.monotonic_decoding!r}: decode hard, or take "
            "the times from 'ctc' or 'cross_attention'."
        )
    for name in ("start", "end"):
        layer, head = settings[name]
        if not (0 <= layer < config.decoder_layers and config.is_monotonic(layer)):
            raise ValueError(f"word_times names layer {layer} for {name!r}, which has no monotonic attention.")
        if not 0 <= head < config.heads("cross", layer):
            raise ValueError(
                f"word_times names head {head} of layer {layer}, which has {config.heads('cross', layer)}."
            )


def _times_of_stops(model: Any, boundaries: tuple[Tensor, ...], settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Start and end (N, U) in positions; the time of a position is its middle."""
    start, end = (
        boundaries[layer - model.config.first_monotonic_layer][:, head].double() + 0.5
        for layer, head in (settings["start"], settings["end"])
    )
    if settings.get("end_at", "same") == "next":
        end = torch.cat([end[:, 1:], end[:, -1:]], 1)
    return start, end


def _blank(model: Any) -> int:
    return int(model.config.pad_token_id)


def _of_text(spans: list[np.ndarray], is_text: Tensor) -> tuple[Tensor, Tensor]:
    """Spans (tokens of the text, 2) of each sequence, put where its text stands; 0 elsewhere."""
    times = torch.zeros(*is_text.shape, 2, dtype=torch.float64, device=is_text.device)
    for row, mask, span in zip(times, is_text, spans, strict=True):
        row[mask] = torch.from_numpy(span).to(row)
    return times[..., 0], times[..., 1]


def ctc_spans(log_probs: np.ndarray, tokens: list[int], blank: int) -> np.ndarray:
    """Forced alignment: log probabilities (S, V), U tokens -> (U, 2), first position of each and the one behind its
    last, of the likeliest path of CTC (Graves et al. 2006). Where no path fits, tokens are spread evenly."""
    states = np.full(2 * len(tokens) + 1, blank)
    states[1::2] = tokens
    repeats = sum(a == b for a, b in itertools.pairwise(tokens))
    if not tokens or len(tokens) + repeats > len(log_probs):
        return evenly(len(tokens), len(log_probs))
    may_skip = np.zeros(len(states), dtype=bool)  # the blank in front of it
    may_skip[3::2] = states[3::2] != states[1:-2:2]
    path = best_path(log_probs[:, states], may_skip)
    return _spans(path, range(1, len(states), 2))


def map_spans(maps: Tensor, is_text: Tensor) -> np.ndarray:
    """Maps (heads, U, S) of one utterance -> (tokens of the text, 2) positions, as `ctc_spans` gives them.

    As Whisper times words: each position against its mean over the tokens, smoothed over time by a median, mean over
    heads; then the best path that gives each token of the text, and the end, a run of positions.
    """
    texts = int(is_text.sum())
    rows = is_text.nonzero().flatten().tolist()
    if rows and rows[-1] + 1 < maps.shape[1]:
        rows.append(rows[-1] + 1)  # the end of the text takes the silence behind it
    if not rows or len(rows) > maps.shape[2]:
        return evenly(texts, maps.shape[2])
    weights = maps[:, rows]  # (heads, R, S)
    deviation, mean = torch.std_mean(weights, dim=1, keepdim=True, correction=0)
    weights = (weights - mean) / deviation.clamp(min=SMALLEST_DEVIATION)
    reach = min(MEDIAN_WIDTH // 2, maps.shape[2] - 1)
    padded = F.pad(weights, (reach, reach), mode="reflect") if reach else weights
    weights = padded.unfold(-1, 2 * reach + 1, 1).median(-1).values
    return _spans(best_path(weights.mean(0).T.double().numpy(force=True)), range(texts))


def evenly(tokens: int, positions: int) -> np.ndarray:
    """(U, 2) equal shares of the audio."""
    edges = np.linspace(0, positions, tokens + 1)
    return np.stack([edges[:-1], edges[1:]], 1)


def best_path(scores: np.ndarray, may_skip: np.ndarray | None = None) -> np.ndarray:
    """Scores (S, K) of K states in their order -> (S,) the state at each position, by the largest sum (Viterbi).

    Each position stays in a state or goes on by one, or by two into a state that `may_skip` (K,) the one before it.
    Paths run from the first state to the last; with `may_skip` the first and the last may be left out.
    """
    positions, count = scores.shape
    skips = None if may_skip is None else np.where(may_skip[2:], 0.0, -np.inf)
    best = np.full(count, -np.inf)
    best[0] = scores[0, 0]
    if may_skip is not None and count > 1:
        best[1] = scores[0, 1]
    moves = np.zeros((positions, count), dtype=np.int8)
    for position in range(1, positions):
        before, move = best, moves[position]
        best = before.copy()
        np.greater(before[:-1], before[1:], out=move[1:], casting="unsafe")
        np.maximum(before[:-1], before[1:], out=best[1:])
        if skips is not None:
            by_two = before[:-2] + skips
            move[2:][by_two > best[2:]] = 2
            np.maximum(best[2:], by_two, out=best[2:])
        best += scores[position]
    state = count - 1
    if may_skip is not None and count > 1 and best[count - 2] > best[count - 1]:
        state = count - 2
    path = np.empty(positions, dtype=np.int64)
    for position in range(positions - 1, -1, -1):
        path[position] = state
        state -= moves[position, state]
    return path


def _spans(path: np.ndarray, states: range) -> np.ndarray:
    """(states, 2): first position in each state, and the one behind its last."""
    first = np.searchsorted(path, np.array(states), side="left")
    return np.stack([first, np.searchsorted(path, np.array(states), side="right")], 1).astype(np.float64)
