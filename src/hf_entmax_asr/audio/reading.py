"""Audio files of any kind that libsndfile or FFmpeg reads: decoded whole, or refused."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from hf_entmax_asr.audio.containers import cut_short, decode_by_ffmpeg, ogg_fault
from hf_entmax_asr.audio.resampling import check_sampling_rate, resample
from hf_entmax_asr.audio.sphere import decode_shorten, is_shorten_compressed

# Of libsndfile, then of FFmpeg, which is asked for whatever libsndfile does not know.
AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64"}
    | {".sph", ".wv1", ".m4a", ".m4b", ".mp4", ".aac", ".wma", ".webm", ".amr", ".3gp", ".mka", ".mov"}
)
LARGEST_FILE = 2**32  # bytes
MOST_SAMPLES = 2**29  # of all channels: 9 hours at 16 kHz; 2 GiB as they are decoded
_READ_AT_ONCE = 2**22  # samples; channels are mixed piece by piece


def read_audio(item: Mapping[str, Any] | str | Path, sampling_rate: int = 16_000) -> np.ndarray:
    """Decode one audio file to a float32 waveform (samples,) at `sampling_rate` (Hz), in [-1, 1] as stored.

    `item` is a path, or the `{"path", "bytes"}` of an undecoded datasets Audio column; bytes win over the path. Several
    channels are mixed to one by their mean; another sampling rate is resampled (see `resample`). libsndfile decodes;
    what it cannot read, as AAC or SPHERE files with embedded shorten, goes to FFmpeg through PyAV.
    Raises FileNotFoundError for a missing file; ValueError for audio that cannot be decoded, is empty, is cut short or
    has a hole, holds NaN or infinite samples, is longer than 2^29 samples, or has a rate outside 1 to 768 kHz, and for
    a pipe or device; ImportError for a file that needs PyAV, without it.
    """
    content, name = _content(item)
    try:
        samples, stored_rate = _decode(content)
    except ImportError as error:
        raise ImportError(f"{name}: {error}") from error
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

    What only FFmpeg reads is decoded, for nothing short of that tells whether it is whole; so is the end of a FLAC
    file. Raises ValueError when there is no audio, it cannot be read, its rate is outside 1 to 768 kHz, or the file is
    cut short or has a hole.
    """
    if isinstance(item, Path):
        check_regular(item)
    with io.BytesIO(item) if isinstance(item, bytes) else open(item, "rb") as file:
        head = file.read(4096)  # more than any SPHERE header in use
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        fault = cut_short(head, size)
        if fault:
            raise ValueError(f"cut short: {fault}")
        if head[:4] == b"OggS" and (fault := ogg_fault(file.read())):
            raise ValueError(fault)
        file.seek(0)
        try:
            if is_shorten_compressed(head):
                raise _NotForLibsndfile
            with _open(file) as audio:
                if not audio.frames:
                    raise ValueError("no audio samples")
                if audio.format == "FLAC" and not _reaches_its_end(audio):
                    raise ValueError("cut short: its last samples are missing")
                check_sampling_rate(audio.samplerate)
                return audio.frames / audio.samplerate
        except _NotForLibsndfile:
            file.seek(0)
            samples, sampling_rate = _decode(file.read())
    if not len(samples):
        raise ValueError("no audio samples")
    check_sampling_rate(sampling_rate)
    return len(samples) / sampling_rate


class ForwardSoundFile(soundfile.SoundFile):
    """A file that is read from its beginning to its end. soundfile seeks after each reading of a file that can be
    sought in, which in an MP3 loses what the next frame needs of the one before."""

    def seekable(self) -> bool:
        return False


class _NotForLibsndfile(ValueError):
    """libsndfile does not know this kind of file."""


def _open(file: Any) -> soundfile.SoundFile:
    try:
        return ForwardSoundFile(file)
    except soundfile.LibsndfileError as error:
        raise _NotForLibsndfile(error.error_string) from error


def _decode(content: bytes) -> tuple[np.ndarray, int]:
    """Float32 samples (samples, 1), the mean of the channels, and their rate (Hz); ValueError where they cannot be had
    whole."""
    if is_shorten_compressed(content):
        return decode_shorten(content)
    fault = cut_short(content, len(content))
    fault = f"cut short: {fault}" if fault else ogg_fault(content) if content[:4] == b"OggS" else None
    if fault:
        raise ValueError(f"the file is {fault}; fetch or convert it again")
    try:
        file = _open(io.BytesIO(content))
    except _NotForLibsndfile as error:
        try:
            return decode_by_ffmpeg(content, MOST_SAMPLES)
        except ImportError as missing:
            raise ValueError(f"cannot be decoded ({error}; {missing}); convert it to WAV or FLAC") from missing
        except ValueError as other:
            raise ValueError(f"cannot be decoded ({error}; {other}); convert it to WAV or FLAC") from other
    with file:
        announced, stored_rate, container = file.frames, file.samplerate, file.format
        # An MP3 header only estimates its length; others may lie about it.
        if announced * file.channels > MOST_SAMPLES:
            seconds = announced / max(1, stored_rate)
            raise ValueError(f"it lasts {seconds:,.0f} s, {announced * file.channels:,} samples; cut it first")
        samples = _mixed(file)
    if container != "MP3" and len(samples) < announced:
        raise ValueError(
            f"the file is cut short: its header announces {announced} samples, {len(samples)} follow; fetch or convert "
            "it again"
        )
    return samples, stored_rate


def _mixed(file: soundfile.SoundFile) -> np.ndarray:
    """All samples (samples, 1), the mean of the channels, NaN and infinity kept."""
    pieces, total = [], 0
    try:
        while True:
            piece = file.read(max(1, _READ_AT_ONCE // file.channels), dtype="float32", always_2d=True)
            if not len(piece):
                break
            total += piece.size
            if total > MOST_SAMPLES:
                raise ValueError(f"it holds more than {MOST_SAMPLES:,} samples; cut it first")
            pieces.append(piece.mean(axis=1, keepdims=True))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"cannot be decoded ({error.error_string}); convert it to WAV or FLAC") from error
    return np.concatenate(pieces) if pieces else np.empty((0, 1), np.float32)


def _reaches_its_end(audio: soundfile.SoundFile) -> bool:
    """Whether the last sample can be decoded: FLAC's header tells its length in samples, but none in bytes."""
    try:
        audio.seek(audio.frames - 1)
        return len(audio.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


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
    check_regular(Path(path))
    return Path(path).read_bytes(), str(path)


def check_regular(path: Path) -> None:
    """A pipe would be waited for, perhaps for ever, and a device never ends."""
    if not path.exists():
        raise FileNotFoundError(f"audio file {path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} is no regular file, but a {'folder' if path.is_dir() else 'pipe or device'}")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes, more than {LARGEST_FILE:,}; cut it first")
