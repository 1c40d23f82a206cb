"""Audio files of any length, block by block: what is held does not grow with the length."""

import itertools
import mmap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from hf_entmax_asr.audio.containers import cut_short, ffmpeg_blocks, ogg_fault
from hf_entmax_asr.audio.reading import ForwardSoundFile, check_regular, read_audio
from hf_entmax_asr.audio.resampling import check_sampling_rate, resample_blocks
from hf_entmax_asr.audio.sphere import is_shorten_compressed

BLOCK_S = 20.0
HEAD_BYTES = 4096  # more than any SPHERE header in use


def audio_blocks(path: str | Path, sampling_rate: int = 16_000) -> Iterator[np.ndarray]:
    """The waveform of `read_audio` in blocks (samples,) that follow each other, of about 20 s.

    Files are read and decoded as they are asked for, but for SPHERE files with embedded shorten, which are decoded
    whole. So a fault in the middle of a file shows only there.

    Raises what `read_audio` raises, but there is no limit of length.
    """
    path = Path(path)
    check_regular(path)
    try:
        found = False
        for block in _resampled(path, sampling_rate):
            if not np.isfinite(block).all():
                raise ValueError("some of its samples are NaN or infinite; convert the file again")
            found = found or len(block) > 0
            yield block
        if not found:
            raise ValueError("the file holds no audio samples")
    except ImportError as error:
        raise ImportError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def announced_seconds(path: str | Path) -> float | None:
    """How long a file says it is, in its header, which is not checked; None where it does not say."""
    with suppress(OSError, RuntimeError, ValueError, ZeroDivisionError):
        about = soundfile.info(str(path))
        return float(about.frames / about.samplerate)
    return None


def _resampled(path: Path, sampling_rate: int) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if is_shorten_compressed(head):
            yield read_audio(path, sampling_rate)
            return
        if fault := cut_short(head, path.stat().st_size):
            raise ValueError(f"the file is cut short: {fault}; fetch or convert it again")
        if head[:4] == b"OggS":
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                fault = ogg_fault(content)
            if fault:
                raise ValueError(f"the file is {fault}; fetch or convert it again")
        file.seek(0)
        decoded = _decoded(file)
        first = next(decoded, None)
        if first is None:
            return
        rate = first[1]
        check_sampling_rate(rate)
        blocks = (block for block, _ in itertools.chain([first], decoded))
        yield from resample_blocks(blocks, rate, sampling_rate)


def _decoded(file: BinaryIO) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks (samples,), the mean of the channels, and their rate (Hz)."""
    try:
        audio = ForwardSoundFile(file)
    except soundfile.LibsndfileError as error:
        file.seek(0)
        try:
            yield from _of_ffmpeg(file)
        except (ImportError, ValueError) as other:
            raise ValueError(f"cannot be decoded ({error.error_string}; {other}); convert it to WAV or FLAC") from other
        return
    with audio:
        announced, rate, total = audio.frames, audio.samplerate, 0
        check_sampling_rate(rate)
        try:
            while len(block := audio.read(int(BLOCK_S * rate), dtype="float32", always_2d=True)):
                total += len(block)
                yield block.mean(axis=1), rate
        except soundfile.LibsndfileError as error:
            raise ValueError(f"cannot be decoded ({error.error_string}); convert it to WAV or FLAC") from error
        if audio.format != "MP3" and total < announced:  # an MP3 header only estimates its length
            raise ValueError(
                f"the file is cut short: its header announces {announced} samples, {total} follow; fetch or convert it "
                "again"
            )


def _of_ffmpeg(file: BinaryIO) -> Iterator[tuple[np.ndarray, int]]:
    """FFmpeg's blocks, which are of a thousand samples or so, gathered to longer ones."""
    gathered: list[np.ndarray] = []
    total = rate = 0
    for block, rate in ffmpeg_blocks(file):
        gathered.append(block)
        total += len(block)
        if total >= BLOCK_S * rate:
            yield np.concatenate(gathered), rate
            gathered, total = [], 0
    if gathered:
        yield np.concatenate(gathered), rate
