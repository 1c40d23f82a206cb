"""A recording as HTML: its spectrogram, the stops of every head below it, and its words, played by a click."""

import base64
import html
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from hf_entmax_asr.recognition.live_page import Heard, HeardWord

PIXELS_PER_SECOND = 120
HEIGHT = 128  # of the spectrogram
ROW = 9  # of a head
WORD_HEIGHT = 26
MARK = "data-start"  # what makes an element of the page a word that can be played


def picture(heard: Heard, levels: np.ndarray, audio_url: str, downloads: Mapping[str, str]) -> str:
    """HTML of a recording.

    Args:
        levels: (T, F) features, drawn over the whole width.
        audio_url: where the page finds the audio.
        downloads: by name, where it finds files to take away.
    """
    seconds = len(heard.waveform) / heard.sampling_rate
    width = max(1, round(PIXELS_PER_SECOND * seconds))
    heads = list(dict.fromkeys(head for item in heard.words for head in item.stops))
    image = base64.b64encode(png(spectrogram(levels))).decode()
    body = [
        f'<audio controls preload="auto" src="{html.escape(audio_url)}" style="width:100%"></audio>',
        '<div style="overflow-x:auto">',
        f'<div style="position:relative;width:{width}px">',
        f'<img alt="spectrogram" src="data:image/png;base64,{image}" '
        f'style="display:block;width:{width}px;height:{HEIGHT}px;image-rendering:pixelated">',
        _stops(heard.words, heads, width),
        _words(heard.words),
        "</div></div>",
        _legend(heads),
        " ".join(f'<a download href="{html.escape(url)}">{name}</a>' for name, url in downloads.items()),
    ]
    return "\n".join(body)


def _stops(words: Sequence[HeardWord], heads: Sequence[str], width: int) -> str:
    """A row for each head, with a dot where it stopped for each word."""
    if not heads:
        return ""
    rows = {head: number for number, head in enumerate(heads)}
    dots = [
        f'<circle cx="{PIXELS_PER_SECOND * time:.1f}" cy="{ROW * (rows[head] + 0.5):.1f}" r="3" '
        f'fill="{_colour(rows[head], len(rows))}"><title>{html.escape(item.word.text)}: head {head}, {time:.2f} s'
        "</title></circle>"
        for item in words
        for head, time in item.stops.items()
    ]
    height = ROW * len(heads)
    return f'<svg width="{width}" height="{height}" style="display:block;background:#f4f4f4">{"".join(dots)}</svg>'


def _words(words: Sequence[HeardWord]) -> str:
    """Each word as a button at its time; a word that would cover the one before it is a line lower."""
    buttons = []
    free = list[float]()  # pixels from which each line is free
    for item in words:
        word, left = item.word, PIXELS_PER_SECOND * item.word.start
        line = next((number for number, end in enumerate(free) if end <= left), len(free))
        free[line:] = free[line:] or [0.0]
        free[line] = left + 9.0 * len(word.text) + 14
        buttons.append(
            f'<button {MARK}="{word.start:.3f}" data-end="{max(word.end, word.start + 0.1):.3f}" '
            f'title="{word.start:.2f} to {word.end:.2f} s, confidence {word.confidence:.2f}" '
            f'style="position:absolute;left:{left:.0f}px;top:{WORD_HEIGHT * line}px;border:1px solid #bbb;'
            f'border-radius:4px;background:#fff;color:#111;padding:0 4px;font:14px monospace;cursor:pointer">'
            f"{html.escape(word.text)}</button>"
        )
    return f'<div style="position:relative;height:{len(free) * WORD_HEIGHT}px;margin-top:4px">{"".join(buttons)}</div>'


def _legend(heads: Sequence[str]) -> str:
    if not heads:
        return "<p>No stops: this model has no hard monotonic heads in every layer. Click a word to hear it.</p>"
    names = " ".join(
        f'<span style="color:{_colour(number, len(heads))}">{head}</span>' for number, head in enumerate(heads)
    )
    return f"<p>Rows: where each head (layer.head) stopped for each word: {names}. Click a word to hear it.</p>"


def _colour(number: int, count: int) -> str:
    return f"hsl({round(300 * number / max(1, count))} 70% 40%)"


def spectrogram(levels: np.ndarray) -> np.ndarray:
    """Features (T, F) -> (F, T) from black (weak) to white, low frequencies below."""
    if not levels.size:
        return np.zeros((1, 1), np.uint8)
    low, high = np.quantile(levels, (0.02, 0.995))
    scaled = np.clip((levels - low) / max(high - low, 1e-6), 0, 1)
    return (255 * scaled.T[::-1]).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """(height, width) of 8-bit grey as a PNG file."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(pixels))

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
