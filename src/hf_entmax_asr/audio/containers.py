"""Whether an audio file is whole, by its container: libsndfile reads what is left of one that is cut short.

And what libsndfile does not read (AAC in MP4, WMA, WebM and others), by FFmpeg through PyAV.
"""

import io
import mmap
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from hf_entmax_asr.audio.sphere import announced_bytes, is_sphere

OGG_LAST_PAGE = 65_307  # the longest an Ogg page can be (RFC 3533)
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)  # what programs write that fill a pipe


def _sphere_cut_short(content: bytes, size: int) -> str | None:
    try:
        announced = announced_bytes(content)
    except ValueError:  # whoever reads it says so
        return None
    return f"its header announces {announced} bytes, it has {size}" if announced and announced > size else None


def cut_short(content: bytes, size: int) -> str | None:
    """Say how a file that begins with `content` and has `size` bytes is cut short, or None."""
    magic = content[:4]
    if magic in (b"RIFF", b"FORM"):
        # Some programs count a padding byte that they never write.
        announced = int.from_bytes(content[4:8], "little" if magic == b"RIFF" else "big") + 8
        if 8 < announced < 0xFFFFFF00 and announced > size + 1:
            return f"its header announces {announced} bytes, it has {size}"
    if is_sphere(content):
        return _sphere_cut_short(content, size)
    if magic in (b".snd", b"dns."):
        order = "big" if magic == b".snd" else "little"
        begin, samples = (int.from_bytes(content[at : at + 4], order) for at in (4, 8))  # type: ignore[arg-type]
        if samples not in _UNKNOWN_SIZES and begin + samples > size:
            return f"its header announces {begin + samples} bytes, it has {size}"
    if content[:16] == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00":  # Wave64
        announced = int.from_bytes(content[16:24], "little")
        if announced > size + 8:
            return f"its header announces {announced} bytes, it has {size}"
    if magic == b"caff":
        place = 8
        while len(content) >= place + 12:
            length = int.from_bytes(content[place + 4 : place + 12], "big", signed=True)
            if content[place : place + 4] == b"data":
                ends = place + 12 + length  # a length of -1: as far as the file goes
                return f"its header announces {ends} bytes, it has {size}" if ends > size else None
            if length < 0:
                break
            place += 12 + length
    return None


def ogg_fault(content: bytes | mmap.mmap) -> str | None:
    """Say what an Ogg file lacks, or None: its last page must close the stream, and its pages be numbered on."""
    expected: dict[bytes, int] = {}  # of each stream, the number of its next page
    place, closed = 0, False
    while content[place : place + 4] == b"OggS" and len(content) >= place + 27:
        segments = content[place + 26]
        end = place + 27 + segments + sum(content[place + 27 : place + 27 + segments])
        stream, number = content[place + 14 : place + 18], int.from_bytes(content[place + 18 : place + 22], "little")
        if expected.get(stream, number) != number:
            return f"not whole: its page {expected[stream]} is missing"
        expected[stream] = number + 1
        if end > len(content):
            break
        closed = bool(content[place + 5] & 4)
        place = end
    if not closed or (place < len(content) and content[place : place + 4] == b"OggS"):
        return "cut short: its last page is not whole or does not close the stream"
    if place < len(content) and b"OggS" in content[place:]:
        return "not whole: what follows one of its pages is no page"
    return None


def decode_by_ffmpeg(content: bytes, most_samples: int) -> tuple[np.ndarray, int]:
    """Decode the first audio stream of a file: float32 (samples, 1), the mean of its channels, and its rate (Hz).

    Raises:
        ValueError: FFmpeg cannot decode it, or it holds more than `most_samples`.
        ImportError: PyAV is missing.
    """
    blocks: list[np.ndarray] = []
    total = rate = 0
    for block, of_block in ffmpeg_blocks(io.BytesIO(content)):
        blocks.append(block)
        total, rate = total + len(block), of_block
        if total > most_samples:
            raise ValueError(f"it holds more than {most_samples:,} samples")
    return (np.concatenate(blocks) if blocks else np.empty(0, np.float32))[:, None], rate


def ffmpeg_blocks(file: BinaryIO) -> Iterator[tuple[np.ndarray, int]]:
    """The first audio stream of a file piece by piece: float32 (samples,), the mean of its channels, and its rate (Hz).

    Raises:
        ValueError: FFmpeg cannot decode it, or it is cut short, which is known at its end.
        ImportError: PyAV is missing.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("this kind of audio is decoded by PyAV: pip install av") from error
    if not file.read(1):  # in which PyAV would seek before the beginning
        raise ValueError("the file is empty")
    file.seek(0)
    rate = total = 0
    try:
        with av.open(file, mode="r") as container:
            if not container.streams.audio:
                raise ValueError("it holds no audio")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise ValueError("its audio is coded in a way that FFmpeg does not know")
            rate = stream.rate
            announced = stream.duration * stream.time_base if stream.duration and stream.time_base else None
            to_float = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                for part in to_float.resample(frame):
                    block = part.to_ndarray().mean(axis=0, dtype=np.float32)
                    total += len(block)
                    yield block, rate
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"cannot be decoded ({error})") from error
    if announced is not None and total < 0.98 * float(announced) * rate - 4096:  # encoders pad by some thousands
        raise ValueError(f"cut short: {total} samples can be decoded of {float(announced) * rate:.0f}")
