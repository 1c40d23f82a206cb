"""Pictures, findings and page of an analysis: what stands in them, and that the page needs nothing else."""

import base64
import io
import re
import wave
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from hf_entmax_asr.analysis.findings import findings
from hf_entmax_asr.analysis.head_agreement import average_linkage, leaf_order, plot_agreement
from hf_entmax_asr.analysis.phoneme_pictures import plot_phoneme_attention, plot_phoneme_overview
from hf_entmax_asr.analysis.pictures import (
    plot_decoder_heads,
    plot_diagonality_curves,
    plot_encoder_heads,
    plot_gates,
    plot_probe,
    plot_score_histograms,
    plot_waiting,
)
from hf_entmax_asr.analysis.report import Example, write_report
from support.analysis_document import CLASSES, document

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


# pictures


@pytest.mark.parametrize("plot", ALL)
@pytest.mark.parametrize(("layers", "heads"), [(3, 2), (1, 1), (12, 8)])
def test_pictures_are_drawn_for_any_number_of_heads(plot, layers, heads):
    figure = plot(document(layers, heads))
    figure.canvas.draw()  # whatever matplotlib has to complain about is an error here
    assert figure.axes


def test_matrices_hold_the_values():
    given = document()
    given["modules"]["encoder.layers.0.self_attn"]["verticality"] = [None, 0.25]
    given["modules"]["encoder.layers.0.self_attn"]["relative_cad"] = [-0.001, 0.0]
    found = panels(plot_encoder_heads(given))
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
    decoder = panels(plot_decoder_heads(given))
    assert decoder["monotonic heads: lag behind the first head (s)"] == ["0.00", "0.10"]
    assert decoder["monotonic heads: last to stop (% of tokens)"] == ["33", "67"]
    assert decoder["monotonic heads: gate (0: the head is gone)"] == ["1.00", "1.00"]


def test_without_alpha_labels_and_monotonic_heads_their_panels_are_missing():
    given = document(monotonic=False, labels=False)
    for module in given["modules"].values():
        del module["alpha"]
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
        plot_probe({**given, "probe": {"error": "one speaker"}})


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
    waiting = document()["monotonic"]["waiting_seconds"]
    assert axes.images[0].get_array().tolist() == waiting  # row waits for column


def test_what_was_not_measured_is_hatched_and_missing_heads_are_blank():
    given = document()
    first, last = (given["modules"][f"encoder.layers.{layer}.self_attn"] for layer in (0, 2))
    for key, value in last.items():  # as after pruning
        last[key] = value[:1] if isinstance(value, list) else value
    last["heads"] = 1
    assert "not measured" not in texts(plot_encoder_heads(given))
    assert "blank: the layer has no such head" in texts(plot_encoder_heads(given))
    first["cad"] = first["relative_cad"] = [None, None]
    first["curve"] = [[None] * 101] * 2
    figure = plot_encoder_heads(given)
    assert "not measured" in texts(figure)
    cad = next(axes for axes in figure.axes if axes.get_title().startswith("CAD"))
    hatched = [patch.get_xy() for patch in cad.patches if patch.get_hatch()]
    assert hatched == [(-0.5, -0.5), (0.5, -0.5)]
    assert len(cad.texts) == 3
    assert "layer 0: CAD not measured" in texts(plot_diagonality_curves(given))
    given["probe"]["accuracy"][1] = None
    assert "not\nmeasured" in texts(plot_probe(given))
    assert "nan" not in texts(plot_probe(given))


@pytest.mark.parametrize("plot", [plot_encoder_heads, plot_decoder_heads, plot_diagonality_curves])
def test_utterances_of_one_position_have_pictures(plot):
    given = document()
    for module in given["modules"].values():  # as measured where each utterance is one position long
        module["entropy_nats"] = [0.0] * module["heads"]
        module["verticality"] = [None] * module["heads"]
        module["uniform"] |= {"entropy_nats": 0.0, "verticality": None, "cad": None, "curve": [None] * 101}
        module["relative_cad"] = [None] * module["heads"]
    figure = plot(given)
    figure.canvas.draw()
    assert "not measured" in texts(figure) or plot is plot_decoder_heads


def test_rows_are_named_by_their_layers():
    given = document()
    given["modules"]["decoder.layers.2.encoder_attn"] = {
        **given["modules"].pop("decoder.layers.0.encoder_attn"),
        "layer": 2,
    }
    given["monotonic"]["heads"] = [[2, 0], [2, 1]]
    given["monotonic"]["lag_seconds"] = [None, 0.25]
    figure = plot_decoder_heads(given)
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


# findings


def test_the_expected_pattern_is_found():
    found = findings(document())
    assert found[0] == (
        "Roles: 2 of 6 encoder heads are linguistic (diagonal) (layer 2), 4 phonetic (layers 0, 1). The expected "
        "pattern, phonetic below and linguistic above, is there."
    )
    assert any("60%" not in line and "80% of 1,000 frames of speakers" in line for line in found)
    assert any("no head ever stepped to the left; the most waited for is layer 0 head 1" in line for line in found)


def encoder(given):
    return [module for module in given["modules"].values() if module["kind"] == "encoder"]


def test_where_the_pattern_is_missing_it_is_said_why():
    given = document()
    for module in encoder(given):
        module["role"] = ["phonetic", "neither"]
    assert "no head is diagonal (highest relative CAD 0.90, the rule asks for 0.5)" in findings(given)[0]
    for module in encoder(given):
        module["role"] = ["linguistic", "neither"]
    assert "no head finds equal phonemes (highest lift 4.0, the rule asks for 1.5)" in findings(given)[0]
    for layer, module in enumerate(encoder(given)):
        module["role"] = ["linguistic" if layer == 0 else "phonetic"] * 2
    assert "phonetic heads lie no lower than linguistic ones" in findings(given)[0]
    assert "phoneme labels are needed to tell" in findings(document(labels=False))[0]
    given["monotonic"]["order_violations"] = [0, 3]
    assert any("3 steps went to the left, which is an error" in line for line in findings(given))


# the page


class Page(HTMLParser):
    """Collects the sources of a page, and checks that its tags match."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data


def example(monotonic: bool = True) -> Example:
    maps = torch.eye(25).expand(2, 25, 25)
    stops = torch.tensor([[3, 9, 20], [2, 8, 24]])
    return Example(
        name="speaker/utt <1>",
        reference="a & b",
        hypothesis="ab",
        waveform=np.sin(np.arange(16000) / 20),
        sampling_rate=16000,
        features=torch.randn(100, 20, generator=torch.Generator().manual_seed(0)),
        maps=[maps] * 3,
        alphas=[torch.tensor([1.5, 1.2])] * 3,
        tokens=["a", "b", "</s>"],
        boundaries=[stops] if monotonic else None,
    )


def test_page_holds_everything(tmp_path):
    history = [{"step": 1, "loss": 2.0, "alpha": {"encoder.layers.0.self_attn": [1.5, 1.5]}}, {"step": 2, "wer": 1.0}]
    path = write_report(document(), tmp_path / "report", examples=[example()], history=history)
    assert path == tmp_path / "report" / "index.html"
    pictures = sorted(file.name for file in path.parent.glob("*.png"))
    assert len(pictures) == 12
    assert {"boundaries_speaker_utt__1_.png", "maps_speaker_utt__1_.png", "alphas.png"} <= set(pictures)
    assert not list(path.parent.glob(".*"))
    content = path.read_text(encoding="utf-8")
    page = Page(content)
    assert all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?:|url\(|@import", content)
    images = [source for source in page.sources if source.startswith("data:image/png;base64,")]
    assert {base64.b64decode(source.partition(",")[2]) for source in images} == {
        file.read_bytes() for file in path.parent.glob("*.png")
    }
    assert "runs/<best>" in page.text  # escaped in the source
    assert "“a & b”, recognised as “ab”" in page.text
    assert "longer than 30 s" in page.text
    assert findings(document())[0] in page.text
    assert "prefers-color-scheme: dark" in content


def test_page_lets_wide_pictures_scroll_and_counts_the_heads_that_are_left(tmp_path):
    given = document(layers=2, heads=3)
    given["modules"]["encoder.layers.1.self_attn"] |= {
        key: value[:1]
        for key, value in given["modules"]["encoder.layers.1.self_attn"].items()
        if isinstance(value, list)
    } | {"heads": 1}
    given["agreement"]["heads"] = given["agreement"]["heads"][:4]
    given["agreement"]["js_bits"] = [row[:4] for row in given["agreement"]["js_bits"][:4]]
    content = write_report(given, tmp_path).read_text(encoding="utf-8")
    assert "2 layers of 3 and 1 heads, entmax" in content
    sizes = re.findall(r'min-width:(\d+)px;max-width:(\d+)px"><img src="[^"]+" width="(\d+)"', content)
    assert len(sizes) == len(list(tmp_path.glob("*.png")))
    for least, most, width in sizes:
        assert int(most) == int(width)
        assert int(least) == round(0.8 * int(width))


def test_player_plays_the_recording_and_knows_where_time_runs(tmp_path):
    content = write_report(document(), tmp_path, examples=[example()]).read_text(encoding="utf-8")
    audio = re.search(r"data:audio/wav;base64,([^\"]+)", content).group(1)
    with wave.open(io.BytesIO(base64.b64decode(audio))) as file:
        assert (file.getframerate(), file.getnframes(), file.getnchannels()) == (16000, 16000, 1)
        samples = np.frombuffer(file.readframes(16000), "<i2") / 32767
    assert samples == pytest.approx(example().waveform, abs=1e-4)
    left, right, start, end = (
        float(re.search(f'data-{name}="([^"]+)"', content).group(1)) for name in ("left", "right", "start", "end")
    )
    assert (start, end) == (0, pytest.approx(1.0, abs=0.05))
    from matplotlib.image import imread

    picture = imread(tmp_path / "boundaries_speaker_utt__1_.png")[:, :, :3]
    dark = (picture.sum(-1) < 0.3).mean(0)  # the frames of the axes are vertical black lines at both ends
    for share in (left, right):
        column = round(share * picture.shape[1])
        assert dark[max(0, column - 2) : column + 3].max() > 0.5


def test_page_without_labels_monotonic_heads_and_examples(tmp_path):
    page = Page(write_report(document(monotonic=False, labels=False), tmp_path).read_text(encoding="utf-8"))
    assert "Phonemes" not in page.text
    assert "Examples" not in page.text
    shown = write_report(document(monotonic=False), tmp_path, examples=[example(monotonic=False)])
    assert "<audio" not in shown.read_text(encoding="utf-8")
