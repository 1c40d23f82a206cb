"""The page of a report: one HTML file with pictures and tables in it, light and dark, without network."""

import base64
import html
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_entmax_asr.analysis.document import VERSION, AnalysisDocument, SelfAttentionMeasures
from hf_entmax_asr.analysis.findings import findings

SMALLEST_SCALE = 0.8  # at which pictures are shown; wider ones scroll


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption; `player` is shown in place of the bare picture."""

    file: Path
    caption: str
    player: str = ""


@dataclass(frozen=True)
class Table:
    """Cells as text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def page(document: AnalysisDocument, sections: Sequence[tuple[str, Sequence[Picture | Table]]]) -> str:
    """The whole page.

    Args:
        sections: headings, and what is shown under each.
    """
    title = f"Attention of {document.checkpoint or 'a model'}"
    model = document.model
    decoder = _layers(document.decoder, model.decoder_transform, model.decoder_map_groups)
    facts = [
        ("data", document.data or "not named"),
        ("audio", f"{document.utterances:,} utterances, {document.audio_seconds / 60:.1f} minutes"),
        ("encoder", _layers(document.encoder, model.encoder_transform, model.encoder_map_groups)),
        ("decoder", f"{decoder}, {model.cross_attention} cross-attention"),
        ("encoder positions", f"one every {1000 * document.seconds_per_position:.0f} ms"),
    ]
    if document.phonemes is not None:
        facts.append(("phoneme labels", document.phonemes.source))
    facts += [("left out", f"{len(ids)}: {reason}") for reason, ids in document.skipped.items()]
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in facts)
    sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in findings(document))
    body = "".join(
        f"<section><h2>{html.escape(name)}</h2>{''.join(map(_html, shown))}</section>" for name, shown in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f"<body><main><h1>{html.escape(title)}</h1><table>{rows}</table><h2>What it shows</h2><ul>{sentences}</ul>\n"
        f"{body}"
        f"<footer>Numbers: analysis.json, version {VERSION}.</footer></main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _layers(modules: Sequence[SelfAttentionMeasures], transform: str, groups: Sequence[int] | None) -> str:
    """ "4 layers of 4 heads, entmax"; heads and shared maps layer by layer where they differ."""
    heads = [module.heads for module in modules]
    counts = f"{heads[0]}" if len(set(heads)) == 1 else f"{', '.join(map(str, heads[:-1]))} and {heads[-1]}"
    shared = f"; layers that share a map: {groups}" if groups else ""
    return f"{len(modules)} layers of {counts} heads, {transform}{shared}"


def _html(shown: Picture | Table) -> str:
    caption = html.escape(shown.caption)
    if isinstance(shown, Picture):
        inner = shown.player or stage(shown.file, shown.caption)
    else:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in shown.header)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in shown.rows
        )
        inner = f'<div class="scroll"><table class="numbers"><tr>{head}</tr>{rows}</table></div>'
    return f"<figure>{inner}<figcaption>{caption}</figcaption></figure>"


def stage(file: Path, alt: str, over: str = "") -> str:
    """A picture that fits the page, but is never shrunk so far that its text cannot be read: then it scrolls.

    `over` lies above it, placed by shares of its width.
    """
    content = file.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # in the header of a PNG
    source = "data:image/png;base64," + base64.b64encode(content).decode()
    sizes = f"min-width:{round(SMALLEST_SCALE * width)}px;max-width:{width}px"
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{html.escape(alt)}">'
    return f'<div class="scroll"><div class="stage" style="{sizes}">{image}{over}</div></div>'


STYLE = """
:root { color-scheme: light dark; --text: #1b1b1f; --soft: #5a5a66; --page: #ffffff; --line: #dddde3; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8ee; --soft: #a7a7b3; --page: #16161a; --line: #3a3a44; } }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } th, td { text-align: left; vertical-align: top; padding: .2rem 1.2rem .2rem 0; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; } td { overflow-wrap: anywhere; }
figure { margin: 1.2rem 0 2rem; } figcaption, footer { color: var(--soft); font-size: .92rem; }
img { width: 100%; height: auto; box-sizing: border-box; display: block; background: #fff;
  border: 1px solid var(--line); border-radius: 6px; }
.scroll { overflow-x: auto; } .numbers td, .numbers th { white-space: nowrap; font-variant-numeric: tabular-nums; }
.player audio { width: 100%; margin-top: .4rem; } .stage { position: relative; } .player .stage { cursor: pointer; }
.cursor { position: absolute; top: 0; bottom: 0; width: 2px; background: #d55e00; left: 0; display: none; }
"""
SCRIPT = """
for (const player of document.querySelectorAll('.player')) {
  const audio = player.querySelector('audio'), cursor = player.querySelector('.cursor');
  const scroll = player.querySelector('.scroll'), stage = player.querySelector('.stage'), at = Object.fromEntries(
    Object.entries(player.dataset).map(([name, value]) => [name, Number(value)]));
  const move = () => {
    const share = (audio.currentTime - at.start) / (at.end - at.start);
    cursor.style.left = 100 * (at.left + share * (at.right - at.left)) + '%';
    cursor.style.display = 'block';
    const seen = scroll.scrollLeft, place = cursor.offsetLeft;
    if (!audio.paused && (place < seen || place > seen + 0.9 * scroll.clientWidth))
      scroll.scrollLeft = place - 0.1 * scroll.clientWidth;
    if (!audio.paused) requestAnimationFrame(move);
  };
  for (const event of ['play', 'seeked', 'pause']) audio.addEventListener(event, move);
  stage.addEventListener('click', (event) => {
    const box = stage.getBoundingClientRect(), x = (event.clientX - box.left) / box.width;
    const time = at.start + (x - at.left) / (at.right - at.left) * (at.end - at.start);
    audio.currentTime = Math.max(0, Math.min(audio.duration || 0, time));
  });
}
"""
