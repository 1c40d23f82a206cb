"""AISHELL-1, WSJ and LibriSpeech as they are shipped, with a few speakers and fractions of a second of audio each.

Every writer returns what it wrote: split -> utterance id -> (text as the loader must give it, 16-bit samples).
"""

import io
import tarfile
from pathlib import Path

import numpy as np
import soundfile

from hf_entmax_asr.audio import read_audio
from support.shorten import sphere

RATE = 16_000
Written = dict[str, dict[str, tuple[str, np.ndarray]]]


def voice(seed: int, seconds: float = 0.15) -> np.ndarray:
    """16-bit samples that differ by seed: a tone that fades, in noise, with digital silence in front."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    tone = 8000 * np.exp(-4 * time) * np.sin(2 * np.pi * random.uniform(90, 1500) * time)
    return np.concatenate([np.zeros(300), tone + random.normal(0, 100, len(time))]).round().astype(np.int16)


AISHELL_TEXTS = ("而 对 楼市 成交 抑制 作用 最 大 的 限 购", "也 成为 地方 政府 的 眼中 钉", "ｂｂ 机 和 ａ 股  ｋｔ")
AISHELL_READ = ("而对楼市成交抑制作用最大的限购", "也成为地方政府的眼中钉", "BB机和A股KT")
AISHELL_SPEAKERS = {"train": ("S0002", "S0003"), "dev": ("S0724",), "test": ("S0764",)}


def write_aishell1(root: Path, archives: bool = False) -> Written:
    """`root`/data_aishell, its speakers extracted or in the archives they come in; one WAV more than transcripts."""
    base, lines, written = root / "data_aishell", [], {}
    (base / "transcript").mkdir(parents=True)
    for split, speakers in AISHELL_SPEAKERS.items():
        written[split] = {}
        for speaker in speakers:
            files = {}
            for number, (text, read) in enumerate(zip(AISHELL_TEXTS, AISHELL_READ, strict=True), 122):
                name = f"BAC009{speaker}W{number:04d}"
                lines.append(f"{name} {text}\n")
                written[split][name] = (read, voice(int(speaker[1:]) * 1000 + number))
                files[name] = written[split][name][1]
            files[f"BAC009{speaker}W0999"] = voice(1)  # as shipped: 325 recordings have no transcript
            _write_speaker(base / "wav", split, speaker, files, archives)
    (base / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(reversed(lines)), encoding="utf-8")
    return written


def _write_speaker(wav: Path, split: str, speaker: str, files: dict[str, np.ndarray], archives: bool) -> None:
    folder = wav / split / speaker
    (wav if archives else folder).mkdir(parents=True, exist_ok=True)
    if not archives:
        for name, samples in files.items():
            soundfile.write(folder / f"{name}.wav", samples, RATE)
        return
    with tarfile.open(wav / f"{speaker}.tar.gz", "w:gz") as archive:
        for name, samples in files.items():
            content = io.BytesIO()
            soundfile.write(content, samples, RATE, format="WAV")
            member = tarfile.TarInfo(f"{split}/{speaker}/{name}.wav")
            member.size = len(content.getvalue())
            archive.addfile(member, io.BytesIO(content.getvalue()))


LIBRI_CHAPTERS = ("103/1240", "103/1241", "1034/121119")


def write_librispeech(root: Path, subsets: tuple[str, ...] = ("train-clean-5", "dev-clean-2")) -> Written:
    """`root`/LibriSpeech with these subsets: three chapters of two speakers in each, three utterances a chapter."""
    written: Written = {}
    for subset in subsets:
        written[subset] = {}
        for chapter in LIBRI_CHAPTERS:
            folder, prefix = root / "LibriSpeech" / subset / chapter, chapter.replace("/", "-")
            folder.mkdir(parents=True)
            lines = []
            for number in range(3):
                name, text = (
                    f"{prefix}-{number:04d}",
                    f"CHAPTER {['ONE', 'TWO', 'THREE'][number]} IT'S {subset.upper()}",
                )
                samples = voice(len(written[subset]) + 100 * len(written), 0.1 + 0.05 * number)
                soundfile.write(folder / f"{name}.flac", samples, RATE)
                lines.append(f"{name} {text}\n")
                written[subset][name] = (text, samples)
            (folder / f"{prefix}.trans.txt").write_text("".join(lines))
    return written


DETAILED = (
    'Of course there isn\\\'t any \\"guarantee\\" [misc_noise] ~',
    "the company [door_slam>] will [<lip_smack] keep <its> hot hand --dash . I\\. B\\. M\\.",
    "[phone_ring/] ten %percent .point five [/phone_ring] Incorporated [loud_breath]",
)
WORDS = (
    'OF COURSE THERE ISN\'T ANY "GUARANTEE" <NOISE>',
    "THE COMPANY WILL KEEP ITS HOT HAND -DASH I. B. M.",
    "TEN PERCENT POINT FIVE INCORPORATED <NOISE>",
)
_TRAIN_0, _TRAIN_1 = "wsj0/doc/indices/train/tr_s_wv1.ndx", "wsj1/doc/indices/si_tr_s.ndx"
# Splits, disc of the audio, disc that the index names, disc of the index and index, folder, speaker, session.
_SESSIONS = (
    (("train_si84", "train_si284"), "11-1.1", "11_1_1", "11-13.1", _TRAIN_0, "wsj0/si_tr_s", "01i", "c"),
    ((), "11-2.1", "11_2_1", "11-13.1", _TRAIN_0, "wsj0/si_tr_s", "401", "c"),  # listed, but not of the split
    (("train_si284",), "13-2.1", "13_2_1", "13-34.1", _TRAIN_1, "wsj1/si_tr_s", "46t", "c"),
    (("test_dev93",), "13-16.1", "13_16_1", "13-34.1", "wsj1/doc/indices/h1_p0.ndx", "wsj1/si_dt_20", "4k0", "c"),
    (
        ("test_eval92",),
        "11-14.1",
        "11_14_1",
        "11-13.1",
        "wsj0/doc/indices/test/nvp/si_et_20.ndx",
        "wsj0/si_et_20",
        "440",
        "c",
    ),
    (
        ("test_eval93",),
        "13-33.1",
        "13_32_1",  # wrong in the shipped index
        "13-32.1",
        "wsj1/doc/indices/wsj1/eval/h1_p0.ndx",
        "wsj1/si_et_h1/wsj64k",
        "4oa",
        "c",
    ),
)


def write_wsj(root: Path, discs: bool = True) -> Written:
    """The discs of the LDC, or the single tree of CSTR; big- and little-endian, and one disc in upper case."""
    written: Written = {}
    for splits, disc, named, index_disc, index, folder, speaker, session in _SESSIONS:
        half = folder[:4]
        transcripts = "wsj0/transcrp/dots" if half == "wsj0" else "wsj1/trans/wsj1"
        audio_base, index_base = (root / disc, root / index_disc) if discs else (root, root)
        dots = []
        for number, (detailed, words) in enumerate(zip(DETAILED, WORDS, strict=True), 1):
            name = f"{speaker}{session}02{number:02d}"
            samples = voice(sum(map(ord, name)) * 7 + number)
            path = f"{folder}/{speaker}/{name}.wv1"
            stored = path.upper() if discs and disc == "13-16.1" else path
            (audio_base / stored).parent.mkdir(parents=True, exist_ok=True)
            (audio_base / stored).write_bytes(sphere(samples, big_endian=half == "wsj1"))
            listed = path.removesuffix(".wv1") if "si_et_20" in index else path
            _append(index_base / index, f"{named}:{' ' if half == 'wsj1' else ''}{listed}\n")
            dots.append(f"{detailed} ({name})\n")
            for split in splits:
                written.setdefault(split, {})[name] = (words, samples)
        _append(index_base / transcripts / Path(folder).name / speaker / f"{speaker}{session}0200.dot", "".join(dots))
    return written


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ndx" and not path.exists():
        text = f";; File: {path.name}, updated 04/26/94\n;;\n{text}"
    with open(path, "a", encoding="ascii") as file:
        file.write(text)


def held(splits):
    """What loaded splits hold, as the writers return it, but with lists of samples."""
    return {name: {row["id"]: (row["text"], stored_samples(row)) for row in rows} for name, rows in splits.items()}


def stored_samples(row):
    return (read_audio(row["audio"]).astype(np.float64) * 32768).tolist()


def as_lists(written):
    """What was written, comparable with `held`."""
    return {
        split: {name: (text, samples.tolist()) for name, (text, samples) in utterances.items()}
        for split, utterances in written.items()
    }


def cut(path: Path, keep: float = 0.6) -> None:
    """Cut a file short, as an interrupted copy does."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: int(len(content) * keep)])
