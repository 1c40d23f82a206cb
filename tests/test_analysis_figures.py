"""Figures of tensors: made from data shaped like a model's, and checked on the artists they hold."""

import builtins
import math
import struct

import matplotlib.font_manager
import matplotlib.image
import numpy as np
import pytest
import torch

from hf_entmax_asr import entmax, softmax
from hf_entmax_asr.analysis import (
    ScoreHistogram,
    plot_alphas,
    plot_attention_maps,
    plot_boundaries,
    plot_scores,
    plot_transforms,
    save_png,
)
from support.apart import run_apart

SECONDS_PER_POSITION = 0.04
WORDS = ["the", "time", "is", "two", "thirty"]


def scores(head: int, layer: int, positions: int = 60) -> torch.Tensor:
    """(T, T) scores: low layers look for the same sounds (stripes), high layers for neighbours (a diagonal)."""
    generator = torch.Generator().manual_seed(10 * layer + head)
    sounds = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    order = torch.randint(0, 12, (positions // 4 + 1,), generator=torch.Generator().manual_seed(1))
    hidden = sounds[order.repeat_interleave(4)[:positions]] + 0.4 * torch.randn(positions, 16, generator=generator)
    index = torch.arange(positions)
    near = -((index[:, None] - index + 3 - 2 * head).abs() / (1.5 + head))
    weight = (layer + 0.3 * head) / 4
    return (1 - weight) * hidden @ hidden.T / 3 + weight * 3 * near


def attention_maps(layers: int = 4, heads: int = 4) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    alphas = [torch.tensor([1.02 + 0.22 * layer + 0.08 * head for head in range(heads)]) for layer in range(layers)]
    maps = [
        entmax(torch.stack([scores(head, layer) for head in range(heads)]), alphas[layer][:, None, None])
        for layer in range(layers)
    ]
    return maps, alphas


def spoken_utterance() -> dict:
    """Features of five words, their tokens, true ends, and boundaries of 2 layers with 4 heads that trail by habit."""
    generator = torch.Generator().manual_seed(0)
    tokens, letter_ends, ends = [], [], []
    time = 0.25
    for index, word in enumerate(WORDS):
        for letter in word:
            time += 0.085
            tokens.append(letter)
            letter_ends.append(time)
        ends.append(time)
        tokens.append("</s>" if index == len(WORDS) - 1 else "▁")
        letter_ends.append(time)
        time += 0.12
    frames = int(time / 0.01) + 20
    frame_times = torch.arange(frames) * 0.01
    envelope = torch.zeros(frames)
    formants = torch.zeros(frames, 80)
    for index, end in enumerate(letter_ends):
        if tokens[index] in ("▁", "</s>"):
            continue
        inside = ((frame_times - end + 0.0425).abs() < 0.045).float()
        envelope += inside
        centres = 8 + 60 * torch.rand(3, generator=generator)
        formants += inside[:, None] * torch.exp(-(((torch.arange(80) - centres[:, None]) / 4) ** 2)).sum(0)
    features = envelope[:, None] * 0.8 + 2 * formants + 0.5 * torch.randn(frames, 80, generator=generator)
    last = math.ceil(frames / 4) - 1
    boundaries = []
    for layer in range(2):
        lags = torch.tensor([0.0, 0.15, 0.4, 0.9]) * (1 if layer else 1.3) + 0.02
        stops = (torch.tensor(letter_ends) + lags[:, None]) / SECONDS_PER_POSITION
        boundaries.append(stops.long().clamp(max=last).cummax(1).values)
    return {"features": features, "boundaries": boundaries, "tokens": tokens, "words": WORDS, "word_ends": ends}


def history() -> list[dict]:
    """As a run with an encoder of 4 and a decoder of 2 layers writes it: training rows, and evaluations between."""
    rows = []
    for step in range(0, 2001, 50):
        alpha = {}
        for side, layers in (("encoder", 4), ("decoder", 2)):
            for layer in range(layers):
                goal = [1.08 + 0.13 * layer + 0.05 * head + (0.1 if side == "decoder" else 0) for head in range(4)]
                alpha[f"{side}.layers.{layer}.self_attn"] = [
                    1.5 + (g - 1.5) * (1 - math.exp(-step / 500)) for g in goal
                ]
        rows.append({"step": step, "loss": 3.0, "alpha": alpha, "gate": {}})
        rows.append({"step": step, "evaluation": "validation/hard", "wer": 12.3})
    return rows


def histograms() -> dict[str, ScoreHistogram]:
    result = {}
    for name, alpha in (("softmax", 1.0), ("α-entmax", 1.25), ("1.5-entmax", 1.5), ("sparsemax", 2.0)):
        result[name] = ScoreHistogram()
        for layer in range(4):
            z = torch.stack([scores(h, layer) for h in range(4)])
            result[name].update((softmax(z) if alpha == 1 else entmax(z, alpha)).unsqueeze(0))
    return result


def transforms() -> dict[str, torch.Tensor]:
    names = {"softmax": 1.0, "α-entmax (α 1.25)": 1.25, "1.5-entmax": 1.5, "sparsemax": 2.0}
    return {name: entmax(scores(1, 0) / 2, alpha) for name, alpha in names.items()}


def maps_picture():
    maps, alphas = attention_maps(layers=3)
    return plot_attention_maps(maps, SECONDS_PER_POSITION, alphas=alphas)


PICTURES = {
    "maps": maps_picture,
    "transforms": lambda: plot_transforms(transforms(), SECONDS_PER_POSITION),
    "boundaries": lambda: plot_boundaries(**spoken_utterance(), head=(1, 0), seconds_per_position=SECONDS_PER_POSITION),
    "alphas": lambda: plot_alphas(history()),
    "scores": lambda: plot_scores(histograms()),
}


# The pictures


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_a_png_of_sensible_size(name, tmp_path):
    path = save_png(PICTURES[name](), tmp_path / "new" / f"{name}.png")
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 900 <= width <= 3300
    assert 450 <= height <= 2000
    pixels = matplotlib.image.imread(path)
    assert (pixels[0, :, :3] == 1).all()  # light background
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50
    assert list(path.parent.iterdir()) == [path]  # no temporary file left


def test_save_png_keeps_the_old_picture_when_drawing_fails(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure = plot_transforms(transforms(), SECONDS_PER_POSITION)
    figure.axes[0].set_title(r"$\unknowncommand$")  # fails only when drawn
    with pytest.raises(ValueError, match="unknowncommand"):
        save_png(figure, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"\.png"):
        save_png(figure, tmp_path / "a.pdf")


def test_maps_mask_zeros_and_have_axes_in_seconds():
    maps, alphas = attention_maps(layers=2, heads=3)
    figure = plot_attention_maps(maps, SECONDS_PER_POSITION, alphas=alphas)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 6
    for index, panel in enumerate(panels):
        layer, head = divmod(index, 3)
        weights = maps[layer][head].numpy()
        (image,) = panel.images
        drawn = image.get_array()
        np.testing.assert_array_equal(np.ma.getmaskarray(drawn), weights == 0)
        np.testing.assert_array_equal(drawn.compressed(), weights[weights > 0])
        assert image.get_extent() == pytest.approx([0, 2.4, 2.4, 0])
        zeros = 100 * (weights == 0).mean()
        assert panel.get_title() == (f"layer {layer}, head {head}\nα {alphas[layer][head]:.2f}, {zeros:.0f} % zeros")
        assert image.to_rgba(np.ma.masked_all((1, 1)))[0, 0, 3] == 0  # a masked entry shows the white behind
        assert panel.get_facecolor() == (1, 1, 1, 1)
    assert "(s)" in figure.get_supxlabel()
    assert "(s)" in figure.get_supylabel()
    (bar,) = (axes for axes in figure.axes if not axes.images and axes.get_ylabel())
    assert "white: exactly 0" in bar.get_ylabel()


def test_maps_of_chosen_layers_and_heads():
    maps, _ = attention_maps(layers=3, heads=2)
    figure = plot_attention_maps(maps, SECONDS_PER_POSITION, layers=[2], heads=[1])
    (panel,) = (axes for axes in figure.axes if axes.images)
    assert panel.get_title().startswith("layer 2, head 1\n")
    with pytest.raises(ValueError, match=r"heads \[2\] .* 0 to 1"):
        plot_attention_maps(maps, SECONDS_PER_POSITION, heads=[2])
    with pytest.raises(ValueError, match=r"layer 0 has shape \(1, 2, 60, 60\)"):
        plot_attention_maps([maps[0][None]], SECONDS_PER_POSITION)


def test_zero_and_hundred_percent_are_said_only_when_exact():
    almost_none, almost_all = torch.full((100, 100), 0.01), torch.zeros(100, 100)
    almost_none[0, 0], almost_all[0, 0] = 0.0, 1.0
    maps = {"a": torch.full((100, 100), 0.01), "b": almost_none, "c": almost_all}
    figure = plot_transforms(maps, SECONDS_PER_POSITION)
    titles = [axes.get_title() for axes in figure.axes if axes.images]
    assert titles == ["a\n0 % zeros", "b\n< 0.5 % zeros", "c\n> 99.5 % zeros"]


def test_boundaries_carry_tokens_word_ends_and_every_head():
    utterance = spoken_utterance()
    figure = plot_boundaries(**utterance, head=(1, 0), seconds_per_position=SECONDS_PER_POSITION)
    upper, lower = figure.axes
    assert upper.get_ylabel() == "mel channel"
    assert lower.get_xlabel() == "time in the recording (s)"
    assert [text.get_text() for text in upper.texts if text.get_color() == "#D55E00"] == WORDS
    written = "".join(
        text.get_text().replace("\n", "")
        for text in sorted(upper.texts, key=lambda text: text.get_position()[0])
        if text.get_color() == "#0072B2"
    )
    assert written == "the␣time␣is␣two␣thirty∎"
    ends = [line.get_xdata()[0] for line in upper.lines if line.get_color() == "#D55E00" and len(line.get_xdata())]
    assert ends == pytest.approx(utterance["word_ends"])
    assert [label.get_text() for label in lower.get_yticklabels()] == [
        f"layer {layer}, head {head}" for layer in range(2) for head in range(4)
    ]
    rows = [list(collection.get_positions()) for collection in lower.collections]
    stops = [head for layer in utterance["boundaries"] for head in layer]
    for row, head in zip(rows, stops, strict=True):
        assert sorted(row) == pytest.approx(((head + 0.5) * SECONDS_PER_POSITION).tolist())
    dots = [line for line in lower.lines if line.get_marker() == "o" and len(line.get_xdata())]
    after = [index for index, token in enumerate(utterance["tokens"]) if token in ("▁", "</s>")]
    assert dots[4].get_xdata() == pytest.approx(((stops[4][after] + 0.5) * SECONDS_PER_POSITION).tolist())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:2] == ["true word end", "boundary of layer 1, head 0"]


def test_boundaries_ignore_padding_count_from_the_first_layer_and_shorten_stacks():
    utterance = spoken_utterance()
    utterance["tokens"] += ["<pad>"]
    stuck = [torch.full((2, len(utterance["tokens"])), 5)]
    utterance |= {"boundaries": stuck, "words": None, "word_ends": None}
    figure = plot_boundaries(**utterance, head=(3, 1), seconds_per_position=SECONDS_PER_POSITION, first_layer=3)
    (stack,) = figure.axes[0].texts
    assert stack.get_text() == "t\nh\ne\n␣\nt\ni\nm\n+16"
    assert figure.axes[1].get_yticklabels()[0].get_text() == "layer 3, head 0"


def test_word_pieces_stand_upright_and_do_not_run_into_each_other():
    tokens = ["▁the", "▁qui", "ck", "▁brown", *["▁fox"] * 9, "</s>"]
    stops = torch.tensor([[10, 20, 21, 22, *[60] * 9, 70]])
    arguments = {"features": torch.randn(400, 20), "boundaries": [stops], "tokens": tokens, "head": (0, 0)}
    figure = plot_boundaries(**arguments, seconds_per_position=SECONDS_PER_POSITION)
    figure.canvas.draw()
    stacks = figure.axes[0].texts
    assert [text.get_text() for text in stacks] == ["␣the", "␣qui", "ck", "␣brown", "␣fox ␣fox ␣fox ␣fox +5", "∎"]
    assert {text.get_rotation() for text in stacks} == {90.0}
    arguments["boundaries"] = [stops // 4 * 4]  # three boundaries at one place
    figure = plot_boundaries(**arguments, seconds_per_position=SECONDS_PER_POSITION)
    assert figure.axes[0].texts[1].get_text() == "␣qui ck ␣brown"


def test_letters_too_near_each_other_share_a_stack():
    tokens = [*"abcd", "</s>"]
    arguments = {"tokens": tokens, "head": (0, 0), "seconds_per_position": 0.01}
    stops = torch.tensor([[100, 101, 150, 152, 190]])  # 2.6 inches a second
    figure = plot_boundaries(torch.randn(400, 20), [stops], **arguments)
    assert [text.get_text() for text in figure.axes[0].texts] == ["a\nb", "c\nd", "∎"]
    assert len(figure.axes[0].lines) == 6  # a line at each boundary, and the legend's


def test_maps_of_a_pruned_model_leave_its_places_empty():
    maps = [torch.full((heads, 10, 10), 0.1) for heads in (3, 1)]
    panels = plot_attention_maps(maps, SECONDS_PER_POSITION).axes[:6]
    assert [panel.axison for panel in panels] == [True, True, True, True, False, False]
    assert panels[2].get_title().startswith("layer 0, head 2")
    assert any(tick.label1.get_visible() for tick in panels[2].xaxis.get_major_ticks())  # nothing is below it


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": (0, 4)}, r"\(0, 4\) does not exist"),
        ({"boundaries": [torch.zeros(4, 3, dtype=torch.long)]}, r"at least 23 tokens"),
        ({"boundaries": [torch.zeros(1, 4, 30, dtype=torch.long)]}, r"shape \(1, 4, 30\)"),
        ({"word_ends": [0.1]}, "5 words need as many word_ends; got 1"),
        ({"word_ends": None}, "5 words need as many word_ends; got 0"),
    ],
)
def test_boundaries_refuse_what_does_not_fit(change, message):
    arguments = spoken_utterance() | {"head": (1, 0), "seconds_per_position": SECONDS_PER_POSITION} | change
    with pytest.raises(ValueError, match=message):
        plot_boundaries(**arguments)


def test_alphas_have_a_line_for_each_head_between_softmax_and_sparsemax():
    rows = history()
    figure = plot_alphas(rows)
    encoder, decoder = figure.axes
    assert (encoder.get_title(), decoder.get_title()) == ("Encoder self-attention", "Decoder self-attention")
    assert encoder.get_xlabel() == "optimiser step"
    ticks = [label.get_text() for label in encoder.get_yticklabels()]
    assert (ticks[0], ticks[-1]) == ("softmax  1", "sparsemax  2")
    low, high = encoder.get_ylim()
    assert low < 1
    assert high > 2
    for panel, side, layers in ((encoder, "encoder", 4), (decoder, "decoder", 2)):
        curves = [line for line in panel.lines if line.get_label().startswith("layer")]
        assert len(curves) == 4 * layers
        for index, line in enumerate(curves):
            layer, head = divmod(index, 4)
            values = [row["alpha"][f"{side}.layers.{layer}.self_attn"][head] for row in rows if "alpha" in row]
            assert line.get_xdata().tolist() == list(range(0, 2001, 50))
            assert line.get_ydata() == pytest.approx(values)
    colours = {line.get_color() for line in encoder.lines if line.get_label() == "layer 2"}
    assert len(colours) == 1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"layer {layer}" for layer in range(4)]


def test_alphas_refuse_a_history_without_them():
    with pytest.raises(ValueError, match=r"'alpha'.*entmax"):
        plot_alphas([{"step": 1, "loss": 2.0, "alpha": {}}])
    with pytest.raises(ValueError, match=r"'encoder\.self_attn' is no attention module"):
        plot_alphas([{"step": 1, "alpha": {"encoder.self_attn": [1.5]}}])
    figure = plot_alphas([{"step": 1, "other": {"decoder.layers.0.encoder_attn.cross_head": [1.1]}}], key="other")
    (panel,) = figure.axes
    assert panel.get_title() == "Cross-head attention"


def test_scores_state_the_share_of_exact_zeros():
    data = histograms()
    figure = plot_scores(data)
    left, right = figure.axes
    for label, (name, histogram) in zip(left.get_yticklabels(), data.items(), strict=True):
        assert label.get_text() == f"{name}\n{100 * histogram.zero_share:.0f} % zeros"
    filled = [patch.get_width() for patch in left.patches[::2]]
    assert filled == pytest.approx([100 * histogram.zero_share for histogram in data.values()])
    assert right.get_xscale() == "log"
    for patch, histogram in zip(right.patches, data.values(), strict=True):
        above = 100 * (histogram.total - histogram.zeros - histogram.below) / histogram.total
        assert patch.get_data().values.sum() == pytest.approx(above)
    with pytest.raises(ValueError, match="'empty' holds no weights"):
        plot_scores({"empty": ScoreHistogram()})
    coarse = ScoreHistogram(bins_per_decade=1)
    coarse.update(torch.ones(1, 1, 1, 1))
    with pytest.raises(ValueError, match="'coarse' has other bins"):
        plot_scores(data | {"coarse": coarse})


def test_no_global_state_and_no_matplotlib_until_a_picture_is_made(tmp_path):
    code = (
        "import sys, torch, hf_entmax_asr.analysis as analysis\n"
        "assert 'matplotlib' not in sys.modules\n"
        "analysis.plot_transforms({'a': torch.eye(3)}, 0.04)\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = run_apart(code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_missing_matplotlib_names_the_extra(monkeypatch):
    original = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"pip install hf_entmax_asr\[plots\]"):
        plot_transforms({"a": torch.eye(3)}, SECONDS_PER_POSITION)


def test_chinese_characters_get_an_installed_font(monkeypatch):
    fonts = ["DejaVu Sans", "SimHei", "WenQuanYi Zen Hei"]
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "get_font_names", lambda: fonts)
    utterance = spoken_utterance() | {"words": None}
    figure = plot_boundaries(**utterance, head=(1, 0), seconds_per_position=SECONDS_PER_POSITION)
    assert figure.axes[0].texts[0].get_fontfamily() == ["DejaVu Sans", "WenQuanYi Zen Hei"]
