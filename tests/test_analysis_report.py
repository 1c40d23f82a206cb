"""Findings and page of an analysis: what stands in them, and that the page needs nothing else."""

import base64
import io
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from hf_entmax_asr.analysis.document import AnalysisDocument
from hf_entmax_asr.analysis.findings import findings
from hf_entmax_asr.analysis.report import Example, write_report
from support.analysis_document import document, document_json

read = AnalysisDocument.from_dict

# findings


def test_the_expected_pattern_is_found():
    found = findings(document())
    assert found[0] == (
        "Roles: 2 of 6 encoder heads are linguistic (diagonal) (layer 2), 4 phonetic (layers 0, 1). The expected "
        "pattern, phonetic below and linguistic above, is there."
    )
    assert any("60%" not in line and "80% of 1,000 frames of speakers" in line for line in found)
    assert any("no head ever stepped to the left; the most waited for is layer 0 head 1" in line for line in found)


def encoder(given: dict) -> list[dict]:
    return [module for module in given["modules"].values() if module["kind"] == "encoder"]


def test_where_the_pattern_is_missing_it_is_said_why():
    given = document_json()
    for module in encoder(given):
        module["role"] = ["phonetic", "neither"]
    assert "no head is diagonal (highest relative CAD 0.90, the rule asks for 0.5)" in findings(read(given))[0]
    for module in encoder(given):
        module["role"] = ["linguistic", "neither"]
    assert "no head finds equal phonemes (highest lift 4.0, the rule asks for 1.5)" in findings(read(given))[0]
    for layer, module in enumerate(encoder(given)):
        module["role"] = ["linguistic" if layer == 0 else "phonetic"] * 2
    assert "phonetic heads lie no lower than linguistic ones" in findings(read(given))[0]
    assert "phoneme labels are needed to tell" in findings(document(labels=False))[0]
    given["monotonic"]["order_violations"] = [0, 3]
    assert any("3 steps went to the left, which is an error" in line for line in findings(read(given)))


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
    given = document_json(layers=2, heads=3)
    given["modules"]["encoder.layers.1.self_attn"] |= {
        key: value[:1]
        for key, value in given["modules"]["encoder.layers.1.self_attn"].items()
        if isinstance(value, list)
    } | {"heads": 1}
    given["agreement"]["heads"] = given["agreement"]["heads"][:4]
    given["agreement"]["js_bits"] = [row[:4] for row in given["agreement"]["js_bits"][:4]]
    content = write_report(read(given), tmp_path).read_text(encoding="utf-8")
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
