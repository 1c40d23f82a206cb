"""Audio files of any kind that libsndfile reads, and SPHERE compressed by shorten: decoded whole, or refused."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from hf_entmax_asr.audio.resampling import check_sampling_rate, resample
from hf_entmax_asr.audio.sphere import decode_shorten, is_shorten_compressed

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aiff", ".aif", ".au"})
_OGG_LAST_PAGE = 65_307  # the longest an Ogg page can be (RFC 3533)


def read_audio(item: Mapping[str, Any] | str | Path, sampling_rate: int = 16_000) -> np.ndarray:
    """Decode one audio file to a float32 waveform (samples,) at `sampling_rate` (Hz), in [-1, 1] as stored.

    `item` is a path, or the `{"path", "bytes"}` of an undecoded datasets Audio column; bytes win over the path. Several
    channels are mixed to one by their mean; another sampling rate is resampled (see `resample`). libsndfile decodes;
    SPHERE files with embedded shorten, which it cannot read, go to PyAV.
    Raises FileNotFoundError for a missing file; ValueError for audio that cannot be decoded, is empty, is cut short,
    holds NaN or infinite samples, or has a rate outside 1 to 768 kHz; ImportError for a shorten-compressed file without
    PyAV.
    """
    content, name = _content(item)
    try:
        samples, stored_rate = _decode(content)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not len(samples):
        raise ValueError(f"{name}: the file holds no audio samples")
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).sum())
        raise ValueError(f"{name}: {bad} of {samples.size} samples are NaN or infinite; convert the file again")
    try:
        return resample(samples.mean(axis=1), stored_rate, sampling_rate)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def audio_duration(item: Path | bytes) -> float:
    """Length in seconds of an audio file, given by path or as its bytes; read from its header where that is enough.

    A shorten-compressed file is decoded, for nothing short of that tells whether it is whole; so is the end of a FLAC
    file. Raises ValueError when there is no audio, it cannot be read, its rate is outside 1 to 768 kHz, or the file is
    cut short.
    """
    try:
        with io.BytesIO(item) if isinstance(item, bytes) else open(item, "rb") as file:
            head = file.read(4096)  # more than any SPHERE header in use
            if is_shorten_compressed(head):
                samples, sampling_rate = decode_shorten(head + file.read())
                if not len(samples):
                    raise ValueError("no audio samples")
                check_sampling_rate(sampling_rate)
                return len(samples) / sampling_rate
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - _OGG_LAST_PAGE))
            cut = _cut_short(head, file.read(), size)
            if cut:
                raise ValueError(f"cut short: {cut}")
            file.seek(0)
            with soundfile.SoundFile(file) as audio:
                if not audio.frames:
                    raise ValueError("no audio samples")
                if audio.format == "FLAC" and not _reaches_its_end(audio):
                    raise ValueError("cut short: its last samples are missing")
                check_sampling_rate(audio.samplerate)
                return audio.frames / audio.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(error.error_string) from error


def _decode(content: bytes) -> tuple[np.ndarray, int]:
    """Float32 samples (samples, channels) and their rate (Hz); ValueError where they cannot be had whole."""
    try:
        if is_shorten_compressed(content):
            return decode_shorten(content)
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            announced, stored_rate, container = file.frames, file.samplerate, file.format
            samples = file.read(dtype="float32", always_2d=True)  # (samples, channels)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot be decoded ({error.error_string}); convert it to WAV or FLAC") from error
    cut = _cut_short(content[:64], content[-_OGG_LAST_PAGE:], len(content))
    if cut is None and container != "MP3" and len(samples) < announced:  # an MP3 header only estimates its length
        cut = f"its header announces {announced} samples, {len(samples)} follow"
    if cut:
        raise ValueError(f"the file is cut short: {cut}; fetch or convert it again")
    return samples, stored_rate


def _reaches_its_end(audio: soundfile.SoundFile) -> bool:
    """Whether the last sample can be decoded: FLAC's header tells its length in samples, but none in bytes."""
    try:
        audio.seek(audio.frames - 1)
        return len(audio.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


def _cut_short(head: bytes, tail: bytes, size: int) -> str | None:
    """Say how a WAV or Ogg file of `size` bytes is cut short, or None: libsndfile reads what is left without a word."""
    if head[:4] == b"RIFF":
        announced = int.from_bytes(head[4:8], "little") + 8
        # Programs that write into a pipe leave the size at 0 or its maximum; some count a padding byte never written.
        if 8 < announced < 0xFFFFFF00 and announced > size + 1:
            return f"its header announces {announced} bytes, it has {size}"
    if head[:4] == b"OggS":
        page = tail[tail.rfind(b"OggS") :] if b"OggS" in tail else b""
        if len(page) < 27 or not page[5] & 4 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
            return "its last page is not whole or does not close the stream"
    return None


def _content(item: Mapping[str, Any] | str | Path) -> tuple[bytes, str]:
    """The bytes of an audio file and the name to call it by in errors."""
    if isinstance(item, Mapping):
        path, content = item.get("path"), item.get("bytes")
        if content is not None:
            return content, str(path or "audio bytes")
        if path is None:
            raise ValueError("audio item has neither bytes nor a path")
    else:
        path = item
    if not Path(path).is_file():
        raise FileNotFoundError(f"audio file {path} does not exist")
    return Path(path).read_bytes(), str(path)
