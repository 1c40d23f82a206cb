"""NIST SPHERE files as the LDC ships WSJ (`.wv1`): a text header, then samples, mostly compressed by shorten.

libsndfile reads uncompressed SPHERE only. FFmpeg, through PyAV (the optional extra `wsj`), decodes embedded shorten
without loss; the header says how many samples there must be, so a file that was cut short is always found out.
"""

import io
from typing import NamedTuple

import numpy as np

MAGIC = b"NIST_1A\n"
SHORTEN = "embedded-shorten"
INT16_SCALE = 32768.0


class SphereHeader(NamedTuple):
    """What a header announces: samples in each channel, Hz, channels, and the coding ("pcm,embedded-shorten-v2.00")."""

    sample_count: int
    sampling_rate: int
    channels: int
    coding: str


def is_sphere(content: bytes) -> bool:
    """Whether a file that begins with `content` is a SPHERE file."""
    return content.startswith(MAGIC)


def is_shorten_compressed(content: bytes) -> bool:
    """Whether it is a SPHERE file whose samples are compressed by shorten."""
    return is_sphere(content) and SHORTEN in read_header(content).coding


def read_header(content: bytes) -> SphereHeader:
    """Parse the header: the magic line, its own size in bytes, then `name -type value` lines up to `end_head`.

    Raises ValueError when the header is cut short or lacks a field.
    """
    _, fields = _fields(content)
    try:
        return SphereHeader(
            sample_count=int(fields["sample_count"]),
            sampling_rate=int(fields["sample_rate"]),
            channels=int(fields.get("channel_count", "1")),
            coding=fields.get("sample_coding", "pcm"),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"the SPHERE header has no usable {error}") from error


def announced_bytes(content: bytes) -> int | None:
    """How long an uncompressed file must be; None of a compressed one. ValueError as `read_header`."""
    header, (header_bytes, fields) = read_header(content), _fields(content)
    if "," in header.coding:  # as in "pcm,embedded-shorten-v2.00"
        return None
    return header_bytes + header.sample_count * header.channels * int(fields.get("sample_n_bytes", "2"))


def _fields(content: bytes) -> tuple[int, dict[str, str]]:
    """The size of the header, and its fields by name."""
    size_line = content[len(MAGIC) : len(MAGIC) + 8].strip()
    header_bytes = int(size_line) if size_line.isdigit() else 0
    lines, end, _ = content[:header_bytes].partition(b"\nend_head")
    if not end or len(content) < header_bytes:
        raise ValueError("the SPHERE header is cut short")
    return header_bytes, dict(
        _field(line) for line in lines.decode("latin-1").split("\n")[2:] if len(line.split(None, 2)) == 3
    )


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.split(None, 2)
    return name, value.strip()


def require_av() -> None:
    """Raise ImportError, naming the extra, when PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "shorten-compressed SPHERE files (.wv1 of WSJ) are decoded by PyAV: pip install hf_entmax_asr[wsj]"
        ) from error


def decode_shorten(content: bytes) -> tuple[np.ndarray, int]:
    """Decode a SPHERE file with embedded shorten: float32 (samples, channels) in [-1, 1] as stored, and its rate (Hz).

    Raises ValueError when it cannot be decoded or is not whole; ImportError without PyAV.
    """
    header = read_header(content)
    samples = _decode(content + _PROBE)
    if len(samples) < header.sample_count:
        raise ValueError(f"cut short: its header announces {header.sample_count} samples, {len(samples)} can be read")
    if len(samples) > header.sample_count and not np.array_equal(samples, _decode(content)):
        raise ValueError(f"cut short: the last of its {header.sample_count} samples are missing")
    return samples[: header.sample_count].astype(np.float32) / np.float32(INT16_SCALE), header.sampling_rate


# A shorten stream ends with a mark and FFmpeg reads nothing behind it. Where the end is cut off, FFmpeg makes up the
# rest of the last block from whatever follows, without a word; these bits read as further blocks, which can be counted.
_PROBE = b"\xff" * 1024


def _decode(content: bytes) -> np.ndarray:
    """All samples that FFmpeg finds: int16 (samples, channels)."""
    require_av()
    import av

    try:
        with av.open(io.BytesIO(content), mode="r") as container:
            blocks = [frame.to_ndarray() for frame in container.decode(audio=0)]  # (channels, samples) each
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"cannot be decoded by FFmpeg ({error}); is it cut short?") from error
    samples = np.concatenate(blocks, axis=1).T if blocks else np.empty((0, 1), np.int16)
    if samples.dtype != np.int16:
        raise ValueError(f"holds {samples.dtype} samples; the shorten files of WSJ hold 16-bit integers")
    return samples
