"""Figures of monotonic heads: where they stopped in one utterance, and who waits for whom over a data set."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_entmax_asr.analysis.document import AnalysisDocument, tensor_of
from hf_entmax_asr.analysis.figures.style import BLUE, GREY, SKY, VERMILION, new_figure
from hf_entmax_asr.analysis.word_ends import Head, position_seconds, token_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TALLEST_STACK = 8  # characters written above one position, if each token is one
WIDEST_INCHES = 44.0  # 2.6 a second, less for recordings longer than 17 s
LONGEST_PIECES = 24  # characters of the tokens written above one position, if they are longer
TOKEN_WIDTH = 0.09  # inches; boundaries nearer than this share a stack
SYMBOLS = {"▁": "␣", "</s>": "∎", "<unk>": "?", "<s>": ""}
CHINESE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "SimHei")


def plot_boundaries(
    features: Tensor,
    boundaries: Sequence[Tensor],
    tokens: Sequence[str],
    head: Head,
    seconds_per_position: float,
    *,
    seconds_per_frame: float = 0.01,
    words: Sequence[str] | None = None,
    word_ends: Sequence[float] | None = None,
    first_layer: int = 0,
    word_boundary: str | None = "▁",
    title: str = "Where each head stopped to write",
) -> "Figure":
    """Head boundaries over the log-mel spectrogram of one utterance.

    Above, the spectrogram with the tokens at the boundaries of the chosen head; below, the boundaries of every head,
    with a dot where the token that ends a word was written.

    Args:
        features: (T, F) log-mel features.
        boundaries: one (H, U) tensor of encoder positions per monotonic layer.
        tokens: up to U tokens, drawn up to the end of the sentence.
        head: (layer, head) whose boundaries carry the tokens.
        words, word_ends: reference words and their true ends in seconds, drawn as dashed lines.
        first_layer: number of the first monotonic decoder layer.
        word_boundary: see `token_words`.

    Raises:
        ValueError: sizes that do not agree, or a head that does not exist.
    """
    tokens = tokens[: list(tokens).index("</s>") + 1] if "</s>" in tokens else tokens
    times = _boundary_times(boundaries, tokens, seconds_per_position, first_layer)
    if head not in times:
        raise ValueError(f"(layer, head) = {head} does not exist; there are {list(times)}.")
    if words is not None and (word_ends is None or len(words) != len(word_ends)):
        raise ValueError(f"{len(words)} words need as many word_ends; got {0 if not word_ends else len(word_ends)}.")
    duration = len(features) * seconds_per_frame
    width = min(WIDEST_INCHES, max(9.0, 2.6 * duration))
    figure = new_figure(title, width, 4.6 + 0.17 * len(times))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2.6, 0.6 + 0.17 * len(times)])
    _draw_spectrogram(upper, features, duration)
    _write_tokens(upper, times[head], tokens, width / duration)
    after = [word.after for word in token_words(tokens, word_boundary) if word.after is not None]
    _draw_head_rows(lower, times, head, after)
    _draw_word_ends(upper, lower, word_ends or (), words)
    latest = max((stop for stops in times.values() for stop in stops), default=0.0)
    lower.set_xlim(0, max(duration, latest + seconds_per_position / 2))
    lower.set_xlabel("time in the recording (s)")
    if word_ends:
        upper.plot([], [], color=VERMILION, linestyle=(0, (4, 2)), label="true word end")
    upper.plot([], [], color=BLUE, label=f"boundary of layer {head[0]}, head {head[1]}")
    lower.plot([], [], "|", color=GREY, markersize=9, label="boundary of a head")
    lower.plot([], [], "o", color=GREY, label="boundary that ends a word (␣, the last ∎)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=9, frameon=False, columnspacing=1.2)
    return figure


def plot_waiting(document: AnalysisDocument) -> "Figure":
    """Which monotonic head waits for which, and how often each is the last.

    Raises:
        ValueError: the document has no monotonic heads.
    """
    monotonic = document.monotonic
    if monotonic is None:
        raise ValueError("the model has no monotonic heads, so nobody waits.")
    names = [f"L{layer} H{head}" for layer, head in monotonic.heads]
    cell, font = (0.36, 8) if len(names) <= 24 else (0.15, 6)  # inches, points
    figure = new_figure("Who waits for whom", 1.2 * cell * len(names) + 6.0, cell * len(names) + 2.4)
    left, right = figure.subplots(1, 2, width_ratios=[2, 1], sharey=True)
    waiting = tensor_of(monotonic.waiting_seconds)
    image = left.imshow(waiting.numpy(), cmap="viridis_r", vmin=0, interpolation="nearest", aspect="auto")
    left.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    left.set_yticks(range(len(names)), names, fontsize=font)
    left.set_xlabel("… for this head (L layer, H head)")
    left.set_ylabel("this head waits …")
    bar = figure.colorbar(image, ax=left, fraction=0.05, pad=0.02)
    bar.set_label("waiting (s), mean over tokens")
    last = [100 * (share or 0) for share in monotonic.last_share]
    right.barh(range(len(names)), last, color=BLUE)
    for row, share in enumerate(last):
        right.text(share, row, f" {share:.0f}", va="center", fontsize=font)
    right.tick_params(axis="y", length=0)
    right.set_xlim(0, max(1.0, *last) * 1.18)
    right.set_xlabel("last to stop (% of tokens)")
    right.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_spectrogram(axes: Any, features: Tensor, duration: float) -> None:
    values = features.detach().float().cpu()
    low, high = torch.quantile(values.flatten()[:: max(1, values.numel() // 100_000)], torch.tensor([0.05, 0.995]))
    axes.imshow(
        values.T.numpy(),
        origin="lower",
        cmap="Greys",
        vmin=float(low),
        vmax=float(high),
        extent=(0, duration, 0, values.shape[1]),
        aspect="auto",
    )
    axes.set_ylabel("mel channel")


def _write_tokens(axes: Any, times: list[float], tokens: Sequence[str], inches_per_second: float) -> None:
    """Blue lines at the boundaries, with the tokens written there above the picture: single characters in a stack, the
    first on top; longer pieces from bottom to top, so that neighbours do not run into each other."""
    stacks: dict[float, list[str]] = {}
    written = -math.inf  # where the last stack stands
    for time, token in zip(times, tokens, strict=True):
        axes.axvline(time, color=BLUE, linewidth=0.9, alpha=0.8)
        if (time - written) * inches_per_second > TOKEN_WIDTH:
            written = time
        stacks.setdefault(written, []).append(SYMBOLS.get(token, token.replace("▁", "␣")))
    style = {"color": BLUE, "fontsize": 9, "fontfamily": _fonts(), "ha": "center", "va": "bottom", "linespacing": 0.95}
    pieces = any(len(token) > 1 for stack in stacks.values() for token in stack)
    for time, stack in stacks.items():
        text = " ".join(_shortened(stack, 1)) if pieces else "\n".join(_shortened(stack, 0))
        axes.text(time, 1.01, text, rotation=90 if pieces else 0, transform=axes.get_xaxis_transform(), **style)


def _shortened(stack: list[str], gap: int) -> list[str]:
    """As many tokens as fit into LONGEST_PIECES characters, or TALLEST_STACK without gaps; then how many are left."""
    room = LONGEST_PIECES if gap else TALLEST_STACK
    ends = list(accumulate(len(token) + gap for token in stack))
    if ends[-1] - gap <= room:
        return stack
    shown = max(1, sum(end <= room - 1 for end in ends))
    return [*stack[:shown], f"+{len(stack) - shown}"] if shown < len(stack) else stack


def _draw_word_ends(upper: Any, lower: Any, word_ends: Sequence[float], words: Sequence[str] | None) -> None:
    """Dashed lines in both panels, with the words at the bottom of the upper one."""
    from matplotlib.patheffects import withStroke

    for axes in (upper, lower):
        for end in word_ends:
            axes.axvline(end, color=VERMILION, linestyle=(0, (4, 2)), linewidth=1.3)
    style = {"color": VERMILION, "fontsize": 10, "fontfamily": _fonts(), "ha": "right", "va": "bottom"}
    halo = [withStroke(linewidth=3, foreground="white")]
    for end, word in zip(word_ends, words or (), strict=False):
        upper.text(end - 0.015, 1, word, path_effects=halo, **style)


def _draw_head_rows(axes: Any, times: Mapping[Head, list[float]], chosen: Head, after: Sequence[int]) -> None:
    """One row of ticks for each head, dots at the tokens `after` a word; the chosen head in blue on a shaded row."""
    for row, (head, stops) in enumerate(times.items()):
        colour = BLUE if head == chosen else GREY
        axes.eventplot(stops, lineoffsets=row, linelengths=0.75, linewidths=1.1, colors=colour)
        axes.plot([stops[u] for u in after], [row] * len(after), "o", color=colour, markersize=5)
        if head == chosen:
            axes.axhspan(row - 0.5, row + 0.5, color=SKY, alpha=0.25, zorder=0, linewidth=0)
        if row and head[1] == 0:
            axes.axhline(row - 0.5, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(times)), [f"layer {layer}, head {head}" for layer, head in times], fontsize=8)
    axes.set_ylim(len(times) - 0.5, -0.5)


def _boundary_times(
    boundaries: Sequence[Tensor], tokens: Sequence[str], seconds_per_position: float, first_layer: int
) -> dict[Head, list[float]]:
    times = {}
    for index, stops in enumerate(boundaries):
        if stops.dim() != 2 or stops.shape[1] < len(tokens):
            raise ValueError(
                f"boundaries[{index}] has shape {tuple(stops.shape)}; (heads, tokens) of one utterance is needed, "
                f"with at least {len(tokens)} tokens."
            )
        for head, row in enumerate(stops[:, : len(tokens)].cpu()):
            times[first_layer + index, head] = position_seconds(row, seconds_per_position).tolist()
    return times


def _fonts() -> list[str]:
    """The usual font, and behind it the first installed one that has Chinese characters."""
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return ["DejaVu Sans", *[name for name in CHINESE_FONTS if name in installed][:1]]
