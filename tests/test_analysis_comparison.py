"""Several checkpoints side by side: their names, their numbers, and the maps of one utterance."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

from hf_entmax_asr.analysis.comparison import (
    Compared,
    Comparison,
    ComparisonRow,
    comparison_rows,
    middle_head,
    save_comparison,
    short_names,
)
from hf_entmax_asr.analysis.document import AnalysisDocument
from hf_entmax_asr.analysis.figures.maps import plot_maps_by_checkpoint
from hf_entmax_asr.analysis.report import write_report
from support.analysis_document import document, document_json


def compared(
    name: str, transform: str, layers: int = 3, heads: int = 2, positions: int = 25, change=lambda json: None
) -> Compared:
    """Maps whose zeros say which head they are of: head h of layer l has (l + 1)(h + 1) zeros in its first row.

    `change` may alter the JSON of the analysis.
    """
    given = document_json(layers, heads)
    given["model"]["encoder_transform"] = transform
    maps = []
    for layer in range(layers):
        weights = torch.full((heads, positions, positions), 1 / positions)
        for head in range(heads):
            weights[head, 0, : (layer + 1) * (head + 1)] = 0
        maps.append(weights)
    for module in given["modules"].values():
        if transform != "entmax":
            del module["alpha"]
    alphas = [torch.full((heads,), 1.25)] * layers if transform == "entmax" else None
    change(given)
    return Compared(name, AnalysisDocument.from_dict(given), 1000, maps, alphas)


@pytest.mark.parametrize(
    ("checkpoints", "names"),
    [
        (["runs/softmax/best", "runs/entmax/checkpoints/step-00001475"], ["softmax", "entmax"]),
        (["demo_output/run/best", "you/model"], ["demo_output", "model"]),
        (["a/run/best", "a/run/last"], ["run/best", "run/last"]),
        (["a/x", "b/x", "c"], ["a/x", "b/x", "c"]),
        (["best"], ["best"]),
    ],
)
def test_names_are_short_and_different(checkpoints, names):
    assert short_names(checkpoints) == names


def test_the_same_checkpoint_twice_is_refused(tmp_path):
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "best").symlink_to("step-00000001")
    twice = [str(tmp_path / "best"), "other", str(tmp_path / "step-00000001")]
    with pytest.raises(ValueError, match=f"{twice[2]} is the same checkpoint as {twice[0]}; name each once"):
        short_names(twice)
    with pytest.raises(ValueError, match="you/model is the same checkpoint as you/model"):
        short_names(["you/model", "you/model"])


@pytest.mark.parametrize(
    ("entropies", "head"),
    [([3.0], 0), ([3.0, 1.0, 2.0], 2), ([4.0, 1.0, 2.0, 3.0], 2), ([None, 2.0, 1.0], 1), ([0.0, 0.0], 0), ([None], 0)],
)
def test_the_middle_head(entropies, head):
    module = dataclasses.replace(document().encoder[0], entropy_nats=entropies)
    assert middle_head(module) == head


def test_rows_are_means_over_all_heads():
    def change(given: dict) -> None:
        modules = [given["modules"][f"encoder.layers.{layer}.self_attn"] for layer in range(3)]
        for module, zeros in zip(modules, ([0.1, 0.2], [0.3, None], [0.5, 0.9]), strict=True):
            module |= {"zero_share": zeros, "cad": [None, None]}
        modules[0]["alpha"] = [1.1, 1.9]

    one = compared("a", "entmax", change=change)
    (row,) = comparison_rows([one])
    assert row.zero_share == pytest.approx(0.4)  # of the five that were measured
    assert row.cad is None
    assert row.relative_cad == pytest.approx(0.45)
    assert row.entropy_nats == pytest.approx(np.mean([m.entropy_nats for m in one.document.encoder]))
    assert (row.uniform_cad, row.uniform_entropy_nats) == (0.7, 4.0)
    assert (row.name, row.checkpoint, row.encoder_transform) == ("a", "runs/<best>", "entmax")
    assert (row.alpha, row.parameters, row.layers) == ((1.1, 1.9), 1000, 3)
    transforms = ("softmax", "entmax15", "sparsemax", "topk")
    rows = comparison_rows([compared(name, name) for name in transforms])
    assert [row.alpha for row in rows] == [(1, 1), (1.5, 1.5), (2, 2), None]


def test_rows_as_json(tmp_path):
    rows = comparison_rows([compared("a", "topk"), compared("b", "softmax")])
    path = save_comparison(rows, tmp_path / "comparison.json")
    stored = json.loads(path.read_text(encoding="utf-8"))["checkpoints"]
    assert [list(row) for row in stored] == [[each.name for each in dataclasses.fields(ComparisonRow)]] * 2
    assert (stored[0]["alpha"], stored[1]["alpha"], stored[1]["cad"]) == (None, [1.0, 1.0], rows[1].cad)


def test_one_row_of_maps_for_each_checkpoint():
    def change(given: dict) -> None:
        given["modules"]["encoder.layers.4.self_attn"]["entropy_nats"] = [2.0, 1.0]

    deep = compared("deep", "entmax", layers=12, change=change)
    fine = compared("fine", "softmax", layers=2, positions=51, change=lambda g: g.update(seconds_per_position=0.02))
    top = compared("top", "topk", layers=1)
    figure = plot_maps_by_checkpoint(Comparison([deep, fine, top], "utt-7", 0.99))
    figure.canvas.draw()
    rows = np.array(figure.axes[:18]).reshape(3, 6)
    assert [panel.axison for panel in rows.flat] == [True] * 6 + [True, True] + [False] * 4 + [True] + [False] * 5
    drawn = [panel.get_title().split("\n")[0] for panel in rows[0]]
    assert [text.split(",")[0] for text in drawn] == [f"layer {layer}" for layer in (0, 2, 4, 7, 9, 11)]
    assert drawn[2] == "layer 4, head 1"
    assert np.ma.getmaskarray(rows[0, 2].images[0].get_array()).sum() == 10  # the zeros of this head, white
    assert rows[0, 2].get_title().endswith("\nα 1.25, 2 % zeros")
    assert "\nα 1.00, " in rows[1, 0].get_title()
    assert "α" not in rows[2, 0].get_title()
    assert [row[0].get_ylabel() for row in rows] == ["entmax\ndeep", "softmax\nfine", "topk\ntop"]
    assert rows[0, 0].images[0].get_extent() == pytest.approx([0, 1.0, 1.0, 0])
    assert rows[1, 0].images[0].get_extent() == pytest.approx([0, 1.02, 1.02, 0])
    assert all(panel.get_xlim() == (0, 0.99) and panel.get_ylim() == (0.99, 0) for panel in rows.flat)
    norms = {(image.norm.vmin, image.norm.vmax) for panel in rows.flat for image in panel.images}
    assert norms == {(0.001, 1.0)}
    labelled = [[any(t.label1.get_visible() for t in panel.xaxis.get_major_ticks()) for panel in row] for row in rows]
    assert labelled[0] == [False, False, True, True, True, True]  # the lowest map of each column has the seconds
    assert (labelled[1][1], labelled[2][0]) == (True, True)
    assert "utt-7" in figure.get_suptitle()
    assert "(s)" in figure.get_supxlabel()


def test_maps_of_another_analysis_are_refused():
    one = compared("a", "softmax")
    other = Compared("other", one.document, 1, one.maps[:2])
    with pytest.raises(ValueError, match=r"other has maps of the shapes .*\(2, 25, 25\).* analysis is of \[2, 2, 2\]"):
        plot_maps_by_checkpoint(Comparison([one, other], "u", 1.0))


def test_page_has_the_table_and_the_picture(tmp_path):
    def change(given: dict, relative_cad: float | None, **more: object) -> None:
        for module in given["modules"].values():
            if "cad" in module:
                module |= {"relative_cad": [relative_cad] * module["heads"], **more}

    first = compared("a", "entmax", change=lambda given: change(given, -0.0001))
    second = compared("<b>", "softmax", change=lambda given: change(given, None, zero_share=[0.0, 0.0]))
    beside = Comparison([first, second], "u", 1.0)
    content = write_report(document(), tmp_path, comparison=beside).read_text(encoding="utf-8")
    table = re.search(r'<table class="numbers">(.*?)</table>', content).group(1)
    rows = [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in table.split("</tr>") if row]
    assert rows[0][:4] == ["checkpoint", "transform", "α", "parameters"]
    assert rows[1][:5] == ["a", "entmax", "1.25", "1,000", "every 40 ms"]
    assert rows[2][:3] == ["&lt;b&gt;", "softmax", "1.00"]
    assert rows[2][5:8] == ["0.0 %", "0.835 (uniform 0.700)", "not measured"]
    assert rows[1][7] == "0.00"  # without a sign
    assert rows[1][8].endswith(" nats (uniform 4.00)")
    assert (tmp_path / "maps_by_checkpoint.png").is_file()
    assert "the head in the middle of its layer by entropy" in content
    assert "numbers" not in write_report(document(), tmp_path).read_text(encoding="utf-8").split("</style>")[1]
