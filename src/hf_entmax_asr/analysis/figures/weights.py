"""Figures of how attention weights are distributed: how many are exactly zero, and how large the others are."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from hf_entmax_asr.analysis.document import AnalysisDocument, tensor_of
from hf_entmax_asr.analysis.figures.style import LINES, new_figure, zeros_text
from hf_entmax_asr.analysis.sparsity import ScoreHistogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_scores(
    histograms: Mapping[str, ScoreHistogram], *, title: str = "Final attention weights: how many are exactly zero"
) -> "Figure":
    """Distribution of attention weights (paper, Figure 4b): left the share of exact zeros, right all other weights.

    Args:
        histograms: by name, such as the transform, with equal bins.

    Raises:
        ValueError: nothing was counted under a name, or bins differ.
    """
    if not histograms:
        raise ValueError("histograms is empty; there is nothing to draw.")
    edges = next(iter(histograms.values())).edges
    for name, histogram in histograms.items():
        if histogram.total == 0:
            raise ValueError(f"the histogram {name!r} holds no weights yet.")
        if not torch.equal(histogram.edges, edges):
            raise ValueError(f"the histogram {name!r} has other bins than the first one.")
    figure = new_figure(title, 10.5, max(3.6, 2.6 + 0.3 * len(histograms)))
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.8])
    for index, (name, histogram) in enumerate(histograms.items()):
        colour = LINES[index % len(LINES)]
        zero, below = 100 * histogram.zero_share, 100 * histogram.below / histogram.total
        left.barh(index, zero, color=colour)
        left.barh(index, below, left=zero, color="white", edgecolor=colour, hatch="///")
        shares = 100 * histogram.counts.double() / histogram.total
        right.stairs(shares.numpy(), edges.numpy(), color=colour, linewidth=1.8, label=name)
    labels = [f"{name}\n{zeros_text(histogram.zero_share)}" for name, histogram in histograms.items()]
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set_xlim(0, 100)
    left.set_xlabel(f"share of all weights (%)\nfilled: exactly 0; hatched: above 0, below {float(edges[0]):g}")
    right.set_xscale("log")
    right.set_xlim(float(edges[0]), 1)
    right.set_ylim(bottom=0)
    right.set_xlabel("attention weight (logarithmic)")
    per_decade = round(1 / math.log10(float(edges[1] / edges[0])))
    right.set_ylabel(f"share of all weights (%)\nin each step of 1/{per_decade} decade")
    right.legend(fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_score_histograms(document: AnalysisDocument) -> "Figure":
    """`plot_scores` of the encoder's and the decoder's self-attention."""
    histograms = {}
    sides = (
        (f"encoder, {document.model.encoder_transform}", document.histogram.encoder),
        (f"decoder, {document.model.decoder_transform}", document.histogram.decoder),
    )
    for name, stored in sides:
        histogram = ScoreHistogram()
        histogram.edges, histogram.counts = tensor_of(stored.edges), torch.tensor(stored.counts)
        histogram.zeros, histogram.below, histogram.total = stored.zeros, stored.below, stored.total
        histograms[name] = histogram
    return plot_scores(histograms, title="Self-attention weights: how many are exactly zero")
