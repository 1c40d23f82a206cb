"""The report of an analysis: PNG pictures and one HTML file that holds them all and needs no network.

`write_report(document, folder)` needs the document alone, so a report can be drawn anew from analysis.json.
"""

import base64
import io
import wave
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from hf_entmax_asr.analysis.comparison import Comparison, comparison_rows
from hf_entmax_asr.analysis.document import AnalysisDocument, ProbeMeasures
from hf_entmax_asr.analysis.figures.agreement import plot_agreement
from hf_entmax_asr.analysis.figures.heads import plot_decoder_heads, plot_diagonality_curves, plot_encoder_heads
from hf_entmax_asr.analysis.figures.maps import plot_attention_maps, plot_maps_by_checkpoint
from hf_entmax_asr.analysis.figures.monotonic_heads import plot_boundaries, plot_waiting
from hf_entmax_asr.analysis.figures.phonemes import plot_phoneme_attention, plot_phoneme_overview, plot_probe
from hf_entmax_asr.analysis.figures.style import NOT_MEASURED, amount_text, save_png
from hf_entmax_asr.analysis.figures.training import plot_alphas, plot_gates, plot_over_training
from hf_entmax_asr.analysis.figures.weights import plot_score_histograms
from hf_entmax_asr.analysis.page import Picture, Table, page, stage
from hf_entmax_asr.analysis.trajectories import trajectory
from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.evenly_spaced import evenly_spaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAPS_SHOWN = 6  # layers and heads of an example's maps


@dataclass(frozen=True)
class Example:
    """One utterance to look at.

    Attributes:
        name, reference, hypothesis: its id, what was said, what was recognised.
        waveform: (samples,) float in [-1, 1] at `sampling_rate`, in Hz.
        features: (T, F) log-mel features.
        maps: one (H, S, S) encoder map per layer.
        alphas: (H,) α of each layer's heads, where it is learned.
        tokens, boundaries: the recognised tokens, and for each monotonic layer where its heads stopped, (H, U); None
            for a model without monotonic heads.
        head: (layer, head) whose boundaries carry the tokens.
        first_layer: number of the first monotonic layer.
    """

    name: str
    reference: str
    hypothesis: str
    waveform: np.ndarray
    sampling_rate: int
    features: Tensor
    maps: Sequence[Tensor]
    alphas: Sequence[Tensor] | None = None
    tokens: Sequence[str] = ()
    boundaries: Sequence[Tensor] | None = None
    head: tuple[int, int] = (0, 0)
    first_layer: int = 0


def write_report(
    document: AnalysisDocument,
    folder: str | Path,
    *,
    examples: Iterable[Example] = (),
    history: Sequence[Mapping[str, Any]] = (),
    seconds_per_frame: float = 0.01,
    over_training: Iterable[AnalysisDocument] = (),
    comparison: Comparison | None = None,
) -> Path:
    """Draws the pictures into `folder` and writes `index.html` beside them; returns its path.

    Args:
        examples: utterances to draw and to listen to.
        history: rows of a run's history.jsonl, for the trajectories of α and the gates.
        over_training: analyses of the same run at several steps, read one at a time.
        comparison: this checkpoint, first, and others on the same data, to be shown side by side.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: analyses over training of models with different numbers of layers, or examples or maps of a
            comparison that do not fit (see `plot_boundaries`, `plot_maps_by_checkpoint`).
    """
    folder = Path(folder)
    sections: list[tuple[str, Sequence[Picture | Table]]] = [("Heads of the encoder", _encoder(document, folder))]
    if document.phonemes is not None:
        sections.append(("Phonemes", _phonemes(document, folder)))
    sections.append(("Decoder", _decoder(document, folder)))
    if comparison is not None:
        sections.append(("Beside other checkpoints", _beside(comparison, folder)))
    training = _training(history, folder) + _trajectory(over_training, folder)
    if training:
        sections.append(("Over training", training))
    shown = [picture for example in examples for picture in _example(document, example, folder, seconds_per_frame)]
    if shown:
        sections.append(("Examples", shown))
    target = folder / "index.html"
    write_text_atomically(target, page(document, sections))
    return target


def _draw(folder: Path, name: str, figure: "Figure", caption: str) -> Picture:
    return Picture(save_png(figure, folder / f"{name}.png", 110), caption)


def _encoder(document: AnalysisDocument, folder: Path) -> list[Picture]:
    return [
        _draw(
            folder,
            "encoder_heads",
            plot_encoder_heads(document),
            "Every head of the encoder. Relative CAD tells near from far, verticality whether all queries look at the "
            "same keys, entropy how many keys a query uses.",
        ),
        _draw(
            folder,
            "diagonality_curves",
            plot_diagonality_curves(document),
            "How much of its attention a head spends within a distance. A head above the dashed line looks nearer than "
            "uniform attention would; CAD is the area below a curve.",
        ),
        _draw(
            folder,
            "agreement",
            plot_agreement(document),
            "How differently two heads look, mean over queries (Jensen-Shannon divergence). Heads that join low in the "
            "tree could share a map.",
        ),
        _draw(
            folder,
            "score_histograms",
            plot_score_histograms(document),
            "How the weights of self-attention are distributed, all heads together; exact zeros on the left.",
        ),
    ]


def _phonemes(document: AnalysisDocument, folder: Path) -> list[Picture]:
    pictures = [
        _draw(
            folder,
            "phoneme_attention",
            plot_phoneme_attention(document),
            "Which phonemes attend to which, for the most phonetic head of up to four layers. Orange: more attention "
            "than by chance. Frames of the same run are left out. A diagonal means equal phonemes, an orange frame "
            "phonemes of one place of articulation, a column a phoneme that everybody looks at.",
        ),
        _draw(folder, "phoneme_overview", plot_phoneme_overview(document), "The same for every head, in small."),
    ]
    if isinstance(document.probe, ProbeMeasures):
        caption = (
            "A linear classifier (discriminant analysis) names the phoneme of each frame from the hidden states of one "
            f"layer; it is tested on {document.probe.disjoint_by}s that it did not learn from, without silence."
        )
        pictures.append(_draw(folder, "probe", plot_probe(document), caption))
    return pictures


def _decoder(document: AnalysisDocument, folder: Path) -> list[Picture]:
    pictures = [
        _draw(
            folder, "decoder_heads", plot_decoder_heads(document), "The heads of the decoder, reading the references."
        )
    ]
    if document.monotonic is not None:
        caption = "A token is written when its last head has stopped, so the head furthest to the right sets the delay."
        pictures.append(_draw(folder, "waiting", plot_waiting(document), caption))
    return pictures


def _beside(comparison: Comparison, folder: Path) -> list[Picture | Table]:
    header = (
        "checkpoint",
        "transform",
        "α",
        "parameters",
        "one position",
        "exact zeros",
        "CAD",
        "relative CAD",
        "entropy",
    )
    rows = []
    for row in comparison_rows(comparison.compared):
        alpha = "–"
        if row.alpha is not None:
            low, high = row.alpha
            alpha = f"{low:.2f}" if low == high else f"{low:.2f}–{high:.2f}"
        cells = (
            row.name,
            row.encoder_transform,
            alpha,
            f"{row.parameters:,}",
            f"every {1000 * row.seconds_per_position:.0f} ms",
            NOT_MEASURED if row.zero_share is None else f"{100 * row.zero_share:.1f} %",
            f"{_number(row.cad, '.3f')} (uniform {_number(row.uniform_cad, '.3f')})",
            _number(row.relative_cad, ".2f"),
            f"{_number(row.entropy_nats, '.2f')} nats (uniform {_number(row.uniform_entropy_nats, '.2f')})",
        )
        rows.append(cells)
    table = Table(header, rows, "Encoder self-attention: means over all heads and utterances of the same data.")
    caption = (
        "The same utterance, a row for each checkpoint. Of each layer, the head in the middle of its layer by entropy. "
        "Exact zeros are white; all panels have one scale."
    )
    return [table, _draw(folder, "maps_by_checkpoint", plot_maps_by_checkpoint(comparison), caption)]


def _number(value: float | None, form: str) -> str:
    text = amount_text(value, form)
    return text.lstrip("-") if value is not None and float(text) == 0 else text


def _training(history: Sequence[Mapping[str, Any]], folder: Path) -> list[Picture]:
    pictures = []
    if any(row.get("alpha") for row in history):
        pictures.append(_draw(folder, "alphas", plot_alphas(history), "α of every head over the steps of training."))
    if any(row.get("gate") for row in history):
        pictures.append(_draw(folder, "gates", plot_gates(history), "The gate of every monotonic head; 0 removes it."))
    return pictures


def _trajectory(documents: Iterable[AnalysisDocument], folder: Path) -> list[Picture]:
    points = trajectory(documents)
    if len(points) < 2:
        return []
    caption = "How near each layer looks, how many of its weights are exactly 0 and how many keys it uses, by the step."
    return [_draw(folder, "over_training", plot_over_training(points), caption)]


def _example(document: AnalysisDocument, example: Example, folder: Path, seconds_per_frame: float) -> list[Picture]:
    seconds = document.seconds_per_position
    text = f"“{example.reference}”, recognised as “{example.hypothesis}”" if example.hypothesis else example.reference
    stem = "".join(c if c.isalnum() else "_" for c in example.name)
    pictures = []
    if example.boundaries is not None:
        figure = plot_boundaries(
            example.features,
            example.boundaries,
            example.tokens,
            example.head,
            seconds,
            seconds_per_frame=seconds_per_frame,
            first_layer=example.first_layer,
            title=f"Where each head stopped to write: {example.name}",
        )
        file = save_png(figure, folder / f"boundaries_{stem}.png", 110)
        axes = figure.axes[0]
        box, limits = axes.get_position(), axes.get_xlim()  # as drawn; the cursor needs them
        player = _player(example, box.x0, box.x1, limits[0], limits[1], file)
        caption = f"{text}. Above the spectrogram the tokens, where head {example.head[1]} of layer {example.head[0]} "
        pictures.append(Picture(file, caption + "stopped for them; below, the stops of every head.", player))
    layers = evenly_spaced(len(example.maps), MAPS_SHOWN)
    heads = evenly_spaced(max(len(example.maps[layer]) for layer in layers), MAPS_SHOWN)
    maps = plot_attention_maps(
        example.maps,
        seconds,
        alphas=example.alphas,
        layers=layers,
        heads=heads,
        title=f"Encoder self-attention: {example.name}",
    )
    pictures.append(_draw(folder, f"maps_{stem}", maps, f"{text}. Exact zeros are white."))
    return pictures


def _player(example: Example, left: float, right: float, start: float, end: float, file: Path) -> str:
    """An audio element and the picture with a cursor; left and right are the axes' edges as shares of the picture."""
    audio = base64.b64encode(_wav(example.waveform, example.sampling_rate)).decode()
    picture = f"Spectrogram and head boundaries of {example.name}"
    shown = stage(file, picture, '<div class="cursor"></div>')
    return (
        f'<div class="player" data-left="{left:.6f}" data-right="{right:.6f}" data-start="{start:.6f}" '
        f'data-end="{end:.6f}">{shown}'
        f'<audio controls preload="auto" src="data:audio/wav;base64,{audio}"></audio></div>'
    )


def _wav(waveform: np.ndarray, sampling_rate: int) -> bytes:
    """16-bit mono WAV."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sampling_rate)
        file.writeframes((np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
