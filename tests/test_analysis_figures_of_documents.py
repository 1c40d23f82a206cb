"""Figures of a whole analysis: what stands in them, for any number of heads, and where something is missing."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from hf_entmax_asr.analysis.document import AnalysisDocument, ProbeFailure
from hf_entmax_asr.analysis.figures.agreement import average_linkage, leaf_order, plot_agreement
from hf_entmax_asr.analysis.figures.heads import plot_decoder_heads, plot_diagonality_curves, plot_encoder_heads
from hf_entmax_asr.analysis.figures.monotonic_heads import plot_waiting
from hf_entmax_asr.analysis.figures.phonemes import plot_phoneme_attention, plot_phoneme_overview, plot_probe
from hf_entmax_asr.analysis.figures.training import plot_gates
from hf_entmax_asr.analysis.figures.weights import plot_score_histograms
from support.analysis_document import CLASSES, document, document_json

read = AnalysisDocument.from_dict
ALL = (
    plot_encoder_heads,
    plot_decoder_heads,
    plot_diagonality_curves,
    plot_score_histograms,
    plot_agreement,
    plot_phoneme_attention,
    plot_phoneme_overview,
    plot_probe,
    plot_waiting,
)


def texts(figure) -> str:
    """Everything written in a figure."""
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def panels(figure) -> dict[str, list[str]]:
    """What is written into each panel, by its title without line breaks."""
    return {axes.get_title().replace("\n", " "): [text.get_text() for text in axes.texts] for axes in figure.axes}


@pytest.mark.parametrize("plot", ALL)
@pytest.mark.parametrize(("layers", "heads"), [(3, 2), (1, 1), (12, 8)])
def test_pictures_are_drawn_for_any_number_of_heads(plot, layers, heads):
    figure = plot(document(layers, heads))
    figure.canvas.draw()  # whatever matplotlib has to complain about is an error here
    assert figure.axes


def test_matrices_hold_the_values():
    given = document_json()
    given["modules"]["encoder.layers.0.self_attn"]["verticality"] = [None, 0.25]
    given["modules"]["encoder.layers.0.self_attn"]["relative_cad"] = [-0.001, 0.0]
    found = panels(plot_encoder_heads(read(given)))
    assert found["role"] == ["P", "P", "P", "P", "L", "L"]
    assert found["relative CAD (0: as uniform attention, 1: diagonal)"] == [
        "0.00",
        "0.00",
        "0.45",
        "0.45",
        "0.90",
        "0.90",
    ]
    assert found["verticality (uniform 0.00, all on one key 1)"][0] == "0.25"  # nothing where nothing was measured
    assert found["same-phoneme lift (1: as by chance)"] == ["4.0", "4.0", "3.0", "3.0", "2.0", "2.0"]
    zeros = [
        value for layer in range(3) for value in given["modules"][f"encoder.layers.{layer}.self_attn"]["zero_share"]
    ]
    assert found["weights that are exactly 0 (%)"] == [f"{100 * value:.0f}" for value in zeros]
    decoder = panels(plot_decoder_heads(read(given)))
    assert decoder["monotonic heads: lag behind the first head (s)"] == ["0.00", "0.10"]
    assert decoder["monotonic heads: last to stop (% of tokens)"] == ["33", "67"]
    assert decoder["monotonic heads: gate (0: the head is gone)"] == ["1.00", "1.00"]


def test_without_alpha_labels_and_monotonic_heads_their_panels_are_missing():
    changed = document_json(monotonic=False, labels=False)
    for module in changed["modules"].values():
        del module["alpha"]
    given = read(changed)
    found = panels(plot_encoder_heads(given))
    assert not [title for title in found if "α" in title or "lift" in title]
    assert found["role"] == ["?", "?", "?", "?", "L", "L"]
    assert "cross-attention: entropy (nats) (uniform 4.0)" in panels(plot_decoder_heads(given))
    for plot, message in (
        (plot_phoneme_attention, "without phoneme labels"),
        (plot_phoneme_overview, "without phoneme labels"),
        (plot_probe, "no labels"),
        (plot_waiting, "no monotonic heads"),
    ):
        with pytest.raises(ValueError, match=message):
            plot(given)
    with pytest.raises(ValueError, match="one speaker"):
        plot_probe(dataclasses.replace(given, probe=ProbeFailure(error="one speaker")))


def test_phoneme_matrices_are_labelled_and_leave_out_what_is_not_there():
    figure = plot_phoneme_attention(document(layers=6))
    assert [axes.get_title().split("\n")[0] for axes in figure.axes[:4]] == [
        f"layer {layer}, head 0" for layer in (0, 2, 3, 5)
    ]
    axes = figure.axes[0]
    shown = [name for k, name in enumerate(CLASSES) if k != 2]  # no frame of that one
    assert [label.get_text() for label in axes.get_yticklabels()] == shown
    assert {"labial", "velar", "front vowel", "silence"} <= {text.get_text() for text in axes.texts}
    values = axes.images[0].get_array()
    drawn = np.ma.getmaskarray(values)
    assert drawn[:, 1].all()  # no pair
    assert drawn[:, 2].all()  # fewer than 30 pairs
    assert not drawn[:, 3:].any()
    with pytest.raises(ValueError, match=r"\(layer, head\) = \(0, 9\) does not exist"):
        plot_phoneme_attention(document(), heads=[(0, 9)])


def test_curves_name_their_cad():
    found = texts(plot_diagonality_curves(document()))
    assert "layer 2: CAD 0.970" in found
    assert "uniform: CAD 0.700" in found


def test_probe_and_waiting_name_their_units():
    found = texts(plot_probe(document()))
    assert "frames recognised (%), of other speakers" in found
    assert "always the most frequent phoneme: 10 %" in found
    found = texts(plot_waiting(document()))
    assert "waiting (s), mean over tokens" in found
    axes = plot_waiting(document()).axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("this head waits …", "… for this head (L layer, H head)")
    waiting = document().monotonic.waiting_seconds
    assert axes.images[0].get_array().tolist() == waiting  # row waits for column


def test_what_was_not_measured_is_hatched_and_missing_heads_are_blank():
    given = document_json()
    first, last = (given["modules"][f"encoder.layers.{layer}.self_attn"] for layer in (0, 2))
    for key, value in last.items():  # as after pruning
        last[key] = value[:1] if isinstance(value, list) else value
    last["heads"] = 1
    given["agreement"]["heads"] = given["agreement"]["heads"][:-1]
    given["agreement"]["js_bits"] = [row[:-1] for row in given["agreement"]["js_bits"][:-1]]
    assert "not measured" not in texts(plot_encoder_heads(read(given)))
    assert "blank: the layer has no such head" in texts(plot_encoder_heads(read(given)))
    first["cad"] = first["relative_cad"] = [None, None]
    first["curve"] = [[None] * 101] * 2
    figure = plot_encoder_heads(read(given))
    assert "not measured" in texts(figure)
    cad = next(axes for axes in figure.axes if axes.get_title().startswith("CAD"))
    hatched = [patch.get_xy() for patch in cad.patches if patch.get_hatch()]
    assert hatched == [(-0.5, -0.5), (0.5, -0.5)]
    assert len(cad.texts) == 3
    assert "layer 0: CAD not measured" in texts(plot_diagonality_curves(read(given)))
    given["probe"]["accuracy"][1] = None
    assert "not\nmeasured" in texts(plot_probe(read(given)))
    assert "nan" not in texts(plot_probe(read(given)))


@pytest.mark.parametrize("plot", [plot_encoder_heads, plot_decoder_heads, plot_diagonality_curves])
def test_utterances_of_one_position_have_pictures(plot):
    given = document_json()
    for module in given["modules"].values():  # as measured where each utterance is one position long
        module["entropy_nats"] = [0.0] * module["heads"]
        module["verticality"] = [None] * module["heads"]
        module["uniform"] |= {"entropy_nats": 0.0, "verticality": None, "cad": None, "curve": [None] * 101}
        module["relative_cad"] = [None] * module["heads"]
    figure = plot(read(given))
    figure.canvas.draw()
    assert "not measured" in texts(figure) or plot is plot_decoder_heads


def test_rows_are_named_by_their_layers():
    given = document_json()
    given["modules"]["decoder.layers.2.encoder_attn"] = {
        **given["modules"].pop("decoder.layers.0.encoder_attn"),
        "layer": 2,
    }
    given["monotonic"]["heads"] = [[2, 0], [2, 1]]
    given["monotonic"]["lag_seconds"] = [None, 0.25]
    figure = plot_decoder_heads(read(given))
    lag, gate = (next(a for a in figure.axes if word in a.get_title()) for word in ("lag", "gate"))
    assert [label.get_text() for label in lag.get_yticklabels()] == ["2"]
    assert [label.get_text() for label in gate.get_yticklabels()] == ["2"]
    assert [text.get_text() for text in lag.texts] == ["0.25"]
    own = figure.axes[0]
    assert [label.get_text() for label in own.get_yticklabels()] == ["0"]


@pytest.mark.parametrize(("layers", "heads"), [(4, 4), (6, 8), (12, 8), (12, 16)])
def test_matrices_of_many_heads_stay_readable(layers, heads):
    figure = plot_encoder_heads(document(layers, heads))
    assert figure.get_figwidth() <= 14.2  # or the page would shrink the numbers
    figure.canvas.draw()
    axes = next(axes for axes in figure.axes if axes.get_title().startswith("CAD"))
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_gates_run_down_to_zero():
    steps = range(0, 500, 100)
    history = [
        {"step": step, "gate": {"decoder.layers.0.encoder_attn": [1.2 - step / 1000, max(0.0, 1 - step / 300)]}}
        for step in steps
    ]
    axes = plot_gates(history).axes[0]
    low, high = axes.get_ylim()
    assert low < 0 < 1.2 < high
    assert axes.get_ylabel() == "gate   (0: the head is gone)"
    assert [line.get_ydata().tolist()[-1] for line in axes.lines[:2]] == pytest.approx([0.8, 0.0])


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_clusters_equal_scipys(size):
    distance = torch.rand(size, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    distance = (distance + distance.T) * (1 - torch.eye(size))
    merges = average_linkage(distance)
    assert sorted(leaf_order(merges, size)) == list(range(size))
    if size > 1:
        expected = linkage(squareform(distance.numpy()), "average")
        assert [height for *_, height in merges] == pytest.approx(expected[:, 2].tolist())
        assert [sorted(merge[:2]) for merge in merges] == expected[:, :2].astype(int).tolist()


def test_branches_of_the_dendrogram_do_not_cross():
    distance = torch.tensor([[0, 0.9, 0.1, 0.8], [0.9, 0, 0.7, 0.2], [0.1, 0.7, 0, 0.9], [0.8, 0.2, 0.9, 0]])
    assert leaf_order(average_linkage(distance), 4) in ([0, 2, 1, 3], [1, 3, 0, 2])
