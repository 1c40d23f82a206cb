"""A corpus in a folder: audio files beside a `metadata.csv`, as in the audiofolder of datasets, without torchcodec.

    root/metadata.csv                      one split, named "train"
    root/train/metadata.csv, root/test/…   one sub-folder a split, named as the folder

`metadata.csv` has the columns `file_name` (relative to its folder), `text` and, if known, `speaker`; others are
ignored.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from hf_entmax_asr.corpora.sphere import decode_shortened, is_shortened

if TYPE_CHECKING:
    from datasets import DatasetDict

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aiff", ".aif", ".au"})
REQUIRED_COLUMNS = ("file_name", "text")
LISTED_PATHS = 5  # how many paths an error names of each kind


def load_folder(root: str | Path) -> "DatasetDict":
    """Read a corpus folder into a `DatasetDict`: one split a sub-folder, or `train` alone.

    Columns: `id` (string, the file name without its suffix), `audio` (`{"path", "bytes"}`, absolute path, an undecoded
    `datasets.Audio(16000)`: give it to `read_audio`), `text`, `speaker` (string or None), `duration` (seconds, from the
    file's header). Only headers are read here, so a corpus of thousands of files loads in a second or so.

    Raises FileNotFoundError when there is no folder or no metadata.csv, ImportError without the datasets library, and
    ValueError that counts and names what is wrong with the whole corpus at once: missing columns, listed audio that is
    missing, audio that is not listed, empty texts, files listed twice, files that cannot be decoded or are cut short.
    """
    root = Path(root).absolute()
    problems: list[str] = []
    splits = {name: _read_split(folder, problems) for name, folder in _split_folders(root).items()}
    if problems:
        raise ValueError(f"corpus {root} has problems; fix the files or metadata.csv:\n" + "\n".join(problems))
    try:
        from datasets import Audio, Dataset, DatasetDict, Features, Value
    except ImportError as error:
        raise ImportError("load_folder needs the datasets library: pip install hf_entmax_asr[train]") from error
    # Audio() cannot encode without torchcodec even with decode=False; a plain struct can, and casts to it.
    features = Features(
        {
            "id": Value("string"),
            "audio": {"path": Value("string"), "bytes": Value("binary")},
            "text": Value("string"),
            "speaker": Value("string"),
            "duration": Value("float64"),
        }
    )
    return DatasetDict(
        {
            name: Dataset.from_list(rows, features=features).cast_column("audio", Audio(16_000, decode=False))
            for name, rows in splits.items()
        }
    )


def read_audio(item: Mapping[str, Any] | str | Path, sampling_rate: int = 16_000) -> np.ndarray:
    """Decode one audio file to a float32 waveform (samples,) at `sampling_rate` (Hz), in [-1, 1] as stored.

    `item` is a path, or the `{"path", "bytes"}` of an undecoded datasets Audio column; bytes win over the path. Several
    channels are mixed to one by their mean; another sampling rate is resampled (see `resample`). libsndfile decodes;
    SPHERE files with embedded shorten, which it cannot read, go to PyAV.
    Raises FileNotFoundError for a missing file; ValueError for audio that cannot be decoded, is empty, is cut short, or
    holds NaN or infinite samples; ImportError for a shorten-compressed file without PyAV.
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
    return resample(samples.mean(axis=1), stored_rate, sampling_rate)


def _decode(content: bytes) -> tuple[np.ndarray, int]:
    """Float32 samples (samples, channels) and their rate (Hz); ValueError where they cannot be had whole."""
    try:
        if is_shortened(content):
            return decode_shortened(content)
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


def resample(waveform: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample a waveform (samples,) from one rate to another (Hz): ceil(samples * to / from) samples, float32.

    Each new sample is a Kaiser-windowed sinc sum over the old ones (Smith, "Digital audio resampling", CCRMA 2002).
    The pass band ends at 94 % of the lower Nyquist frequency and aliases stay about 90 dB below; samples beyond the
    ends count as 0.
    Raises ValueError for rates that are not positive.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise ValueError(f"sampling rates must be positive, got {from_rate} and {to_rate} Hz")
    waveform = np.asarray(waveform, np.float32)
    if from_rate == to_rate:
        return waveform
    import torch

    common = math.gcd(from_rate, to_rate)
    old, new = from_rate // common, to_rate // common  # every block of `old` samples becomes `new` samples
    kernels = torch.from_numpy(_sinc_kernels(old, new))  # (new, 1, taps)
    reach = (kernels.shape[-1] - old) // 2
    padded = torch.nn.functional.pad(torch.tensor(waveform), (reach, reach + old))
    blocks = torch.nn.functional.conv1d(padded[None, None], kernels, stride=old)  # (1, new, blocks)
    return blocks[0].T.reshape(-1)[: -(-len(waveform) * new // old)].numpy()


@lru_cache(maxsize=8)
def _sinc_kernels(old: int, new: int) -> np.ndarray:
    """One low-pass kernel for each phase of the output: row p weighs the input around time p * old / new."""
    cutoff = 0.97 * min(1.0, new / old)  # of the input's Nyquist frequency; half of the transition band is 3 %
    half_width = 96 / min(1.0, new / old)  # in input samples
    reach = math.ceil(half_width)
    taps = np.arange(-reach, reach + old)
    distance = taps[None, :] - np.arange(new)[:, None] * old / new  # (new, taps), in input samples
    inside = np.clip(1 - (distance / half_width) ** 2, 0, None)
    window = np.i0(9.0 * np.sqrt(inside)) / np.i0(9.0) * (inside > 0)
    return (cutoff * np.sinc(cutoff * distance) * window).astype(np.float32)[:, None, :]


def _split_folders(root: Path) -> dict[str, Path]:
    """Name every split's folder, or raise FileNotFoundError."""
    if not root.is_dir():
        raise FileNotFoundError(f"corpus folder {root} does not exist")
    nested = [child for child in sorted(root.iterdir()) if child.is_dir() and not child.name.startswith(".")]
    with_metadata = {child.name: child for child in nested if (child / "metadata.csv").is_file()}
    if (root / "metadata.csv").is_file():
        if with_metadata:
            raise ValueError(
                f"metadata.csv stands in {root} and in its folders {', '.join(with_metadata)}: keep one of the layouts"
            )
        return {"train": root}
    bare = [child.name for child in nested if child.name not in with_metadata and any(_audio_files(child))]
    if bare or not with_metadata:
        where = [str(root / name) for name in bare] or [str(root)]
        raise FileNotFoundError(
            f"no metadata.csv (columns {', '.join(REQUIRED_COLUMNS)}, speaker if known) in {', '.join(where)}"
        )
    return with_metadata


def _read_split(folder: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The rows of one metadata.csv; whatever is wrong is added to `problems`."""
    with open(folder / "metadata.csv", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
        missing = [column for column in REQUIRED_COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        problems.append(
            f"{folder}/metadata.csv: no column {' and no column '.join(missing)}; found {reader.fieldnames}"
        )
        return []
    if not lines:
        problems.append(f"{folder}/metadata.csv: no rows")
    rows: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    faults: dict[str, list[str]] = {}
    for line in lines:
        name, text = (line["file_name"] or "").strip(), (line["text"] or "").strip()
        path, identity = folder / name, str(Path(name).with_suffix("")) if name else ""
        if fault := _fault(folder, name, text, seen.get(identity)):
            faults.setdefault(fault, []).append(str(path))
            continue
        seen[identity] = name
        try:
            duration = audio_duration(path)
        except ValueError as error:
            faults.setdefault("cannot be read as audio", []).append(f"{path} ({error})")
            continue
        audio = {"path": str(path), "bytes": None}
        speaker = (line.get("speaker") or "").strip() or None
        rows.append({"id": identity, "audio": audio, "text": text, "speaker": speaker, "duration": duration})
    listed = {(line["file_name"] or "").strip() for line in lines}
    if unlisted := [str(path) for path in _audio_files(folder) if path.relative_to(folder).as_posix() not in listed]:
        faults["not listed in metadata.csv"] = unlisted
    for fault, paths in faults.items():
        more = f" and {len(paths) - LISTED_PATHS} more" if len(paths) > LISTED_PATHS else ""
        problems.append(f"{folder}: {len(paths)} {fault}: {', '.join(paths[:LISTED_PATHS])}{more}")
    return rows


def _fault(folder: Path, name: str, text: str, twin: str | None) -> str | None:
    """What is wrong with a row, short of opening its file."""
    if not name:
        return "empty file_name"
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return "outside the corpus folder"
    if twin is not None:
        return "listed twice" if twin == name else "with the name of another file but for its suffix (ids must differ)"
    if not (folder / name).is_file():
        return "listed but missing"
    return None if text else "with an empty text"


def _audio_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith("."):
            yield path


def audio_duration(item: Path | bytes) -> float:
    """Length in seconds of an audio file, given by path or as its bytes; read from its header where that is enough.

    A shorten-compressed file is decoded, for nothing short of that tells whether it is whole; so is the end of a FLAC
    file. Raises ValueError when there is no audio, it cannot be read, or the file is cut short.
    """
    try:
        with io.BytesIO(item) if isinstance(item, bytes) else open(item, "rb") as file:
            head = file.read(4096)  # more than any SPHERE header in use
            if is_shortened(head):
                samples, sampling_rate = decode_shortened(head + file.read())
                if not len(samples):
                    raise ValueError("no audio samples")
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
                return audio.frames / audio.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(error.error_string) from error


def _reaches_its_end(audio: soundfile.SoundFile) -> bool:
    """Whether the last sample can be decoded: FLAC's header tells its length in samples, but none in bytes."""
    try:
        audio.seek(audio.frames - 1)
        return len(audio.read(1)) == 1
    except soundfile.LibsndfileError:
        return False


_OGG_LAST_PAGE = 65_307  # the longest an Ogg page can be (RFC 3533)


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
