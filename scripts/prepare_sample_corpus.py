"""Prepare sample_corpus/: the English voice prompts of the Asterisk telephone exchange, as small Ogg Opus files.

    python scripts/prepare_sample_corpus.py                        # fetch with apt-get, write sample_corpus/
    python scripts/prepare_sample_corpus.py --packages FOLDER      # .deb files that are already here

The recordings (16 kHz mono, G.722 at 64 kbit/s) and their transcript come from two Debian packages; G.722 is decoded
with PyAV (`pip install av`). Everything else about the product stands in its README.md, which this script writes too.
"""

import argparse
import csv
import gzip
import io
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, help="folder with the two .deb files (default: apt-get download)")
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent.parent / "sample_corpus")
    arguments = parser.parse_args(words)
    arguments.output = arguments.output.resolve()
    if arguments.output.exists() and not (arguments.output / "metadata.csv").is_file():
        parser.error(f"{arguments.output} exists and is no corpus (no metadata.csv): choose another --output")
    return arguments


if __name__ == "__main__":
    parse()  # a wrong option ends the program here, before the imports below load torch

import numpy as np
import soundfile

from hf_entmax_asr.error_messages import reports_errors

PACKAGES = ("asterisk-core-sounds-en-g722", "asterisk-core-sounds-en")
SOUNDS = Path("usr/share/asterisk/sounds/en_US_f_Allison")
TRANSCRIPT = Path("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
COPYRIGHT = Path("usr/share/doc/asterisk-core-sounds-en-g722/copyright")
SPEAKER = "Allison Smith"
SAMPLING_RATE = 16_000
# libsndfile's scale, 0 (256 kbit/s) to 1 (6 kbit/s); 0.92 is about 26 kbit/s, ample for one wideband voice.
OPUS_COMPRESSION = 0.92
# The decoded copy must keep at least this signal-to-noise ratio; a shift by a few samples would not.
LOWEST_SNR_DB = 10.0
COLUMNS = ("file_name", "text", "speaker", "words", "duration", "source_text")

DIGITS = dict(
    zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True)
)
REMARK = re.compile(r"\[[^]]*\]|\([^)]*\)|<[^>]*>")

# What the transcript writes, what the speaker says, and why; "*" stands for every clip. The texts were checked against
# the recordings by forced alignment (pocketsphinx): another reading replaces the written one where its acoustic
# log-likelihood is more than 30 better, or where the spectrogram settles it. Weaker doubts (you are, you're) stay.
SPELT, SPELLING, HEARD = "said letter by letter", "spelling, or one spelling for all prompts", "heard so"
CORRECTIONS = (
    ("*", "a.m.", "am", "one recording, one word"),
    ("*", "p.m.", "pm", "one recording, one word"),
    ("*", "pbx", "p b x", SPELT),
    ("*", "ivr", "i v r", SPELT),
    ("*", "usb", "u s b", SPELT),
    ("*", "mgcp", "m g c p", SPELT),
    ("*", "voice over ip", "voice over i p", SPELT),
    ("*", "3d audio", "three d audio", "written out"),
    ("*", "h.323", "h three two three", "digit by digit, the dot is not said"),
    ("*", "thru", "through", SPELLING),
    ("*", "touch tone", "touchtone", SPELLING),
    ("*", "voice mail", "voicemail", SPELLING),
    ("*", "mail box", "mailbox", SPELLING),
    ("*", "un-indentified", "unidentified", SPELLING),
    ("*", "witheld", "withheld", SPELLING),
    ("*", "represenatives", "representatives", SPELLING),
    ("*", "umute", "unmute", SPELLING),
    ("*", "exclaimation", "exclamation", SPELLING),
    ("*", "fourtieth", "fortieth", SPELLING),
    ("*", "de-activated", "deactivated", SPELLING),
    ("*", "re-enter", "reenter", SPELLING),
    ("*", "re-entered", "reentered", SPELLING),
    ("*", "re-record", "rerecord", SPELLING),
    ("demo-congrats", "should help you to get", "should help you get", HEARD),
    ("demo-congrats", "you will navigate", "you'll navigate", HEARD),
    ("demo-echotest", "you are about", "you're about", HEARD),
    ("demo-enterkeywords", "*", "star", "the name of the key, heard so"),
    ("demo-instruct", "dial 500", "dial five zero zero", HEARD),
    ("demo-instruct", "dial 600", "dial six zero zero", HEARD),
    ("demo-instruct", "extension 8500", "extension eight five zero zero", HEARD),
    ("demo-instruct", "1234", "one two three four", HEARD),
    ("demo-instruct", "4242", "four two four two", HEARD),
    ("demo-instruct", "28.8", "twenty eight point eight", HEARD),
    ("demo-instruct", "iax", "i a x", "heard so here; in spy-iax and spy-iax2 it is one word, like 'eeks'"),
    ("demo-moreinfo", "www.asterisk.org", "w w w dot asterisk dot org", HEARD),
    ("dictate/both_help", "*", "star", "the name of the key, heard so"),
    ("dictate/both_help", "#", "pound", "the name of the key, heard so"),
    ("dictate/enter_filename", "#", "pound", "the name of the key, heard so"),
    ("invalid", "i am sorry, that's", "i'm sorry, that is", HEARD),
    ("pbx-invalid", "sorry, that's", "sorry, but that's", HEARD),
    ("pbx-invalidpark", "sorry, there is", "sorry, but there is", HEARD),
    ("vm-savefolder", "save the message", "save this message", HEARD),
)


def is_speech(transcript: str) -> bool:
    """Whether a transcript says any word: tones, beeps, silences and monkeys carry nothing but a bracketed remark."""
    return bool(REMARK.sub("", transcript).strip())


def spoken_form(name: str, transcript: str) -> str:
    """Return the words spoken in clip `name`, lower case, [a-z' ] only.

    Corrections first, then remarks in brackets are dropped, single digits written out, hyphens opened and other
    punctuation dropped. Raises ValueError for what no rule covers (a longer number, a foreign letter): it wants a
    line in CORRECTIONS.
    """
    text = transcript.lower()
    for clip, written, spoken, _ in CORRECTIONS:
        if clip in ("*", name):
            text = re.sub(rf"(?<![\w]){re.escape(written)}(?![\w])", spoken, text)
    text = REMARK.sub(" ", text)
    text = re.sub(r"(?<!\w)\d(?!\w)", lambda digit: DIGITS[digit.group()], text)
    text = re.sub(r"[-/]", " ", text)
    text = re.sub(r"""[.,;:!?"]|(?<!\w)'|'(?!\w)""", " ", text)
    text = " ".join(text.split())
    if not text or re.search(r"[^a-z' ]", text):
        raise ValueError(
            f"clip {name}: no spoken form for {transcript!r} (reached {text!r}): add a line to CORRECTIONS"
        )
    return text


def read_transcript(path: Path) -> dict[str, str]:
    """Read `name: text` lines (comments start with `;`) of the packages' gzipped transcript."""
    transcript: dict[str, str] = {}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith(";"):
                continue
            name, colon, text = line.partition(":")
            if not colon or name.strip() in transcript:
                raise ValueError(f"{path}, line {number}: {'a second text for' if colon else 'no name in'} {line!r}")
            transcript[name.strip()] = text.strip()
    return transcript


def decode_g722(path: Path) -> np.ndarray:
    """Decode a raw G.722 file (64 kbit/s: a byte holds two samples) to int16 samples at 16 kHz."""
    import av

    with av.open(str(path), format="g722") as container:
        blocks = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
    if len(samples) != 2 * path.stat().st_size or not len(samples):
        raise ValueError(
            f"{path}: decoded {len(samples)} samples from {path.stat().st_size} bytes; two a byte expected"
        )
    return samples


def encode_opus(samples: np.ndarray, serial: int) -> bytes:
    """Encode int16 samples at 16 kHz as Ogg Opus; the same samples and serial number give the same bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format="OGG", subtype="OPUS", compression_level=OPUS_COMPRESSION)
    # libsndfile draws each stream's serial number at random; pages carry it under a checksum.
    data = bytearray(buffer.getvalue())
    page = 0
    while page < len(data):
        segments = data[page + 26]
        end = page + 27 + segments + sum(data[page + 27 : page + 27 + segments])
        data[page + 14 : page + 18] = serial.to_bytes(4, "little")
        data[page + 22 : page + 26] = bytes(4)
        data[page + 22 : page + 26] = ogg_checksum(data[page:end]).to_bytes(4, "little")
        page = end
    return bytes(data)


def ogg_checksum(page: bytes | bytearray) -> int:
    """CRC-32 of RFC 3533: polynomial 0x04C11DB7, most significant bit first, no inversion before or after."""
    remainder = 0
    for byte in page:
        remainder = (remainder << 8 & 0xFFFFFFFF) ^ CRC_TABLE[remainder >> 24 ^ byte]
    return remainder


def _crc_table() -> list[int]:
    table = []
    for remainder in range(0, 1 << 32, 1 << 24):
        for _ in range(8):
            remainder = (remainder << 1) ^ (0x104C11DB7 if remainder >> 31 else 0)
        table.append(remainder)
    return table


CRC_TABLE = _crc_table()


def check_copy(name: str, samples: np.ndarray, opus: bytes) -> None:
    """Raise ValueError unless the Opus copy decodes to the same length, without a shift, close to the original."""
    copy, sampling_rate = soundfile.read(io.BytesIO(opus), dtype="float64")
    original = samples / 32768.0
    if sampling_rate != SAMPLING_RATE or copy.shape != original.shape:
        raise ValueError(f"clip {name}: {len(original)} samples became {copy.shape} at {sampling_rate} Hz")
    size = 2 * len(original)
    correlation = np.fft.irfft(np.fft.rfft(copy, size) * np.conj(np.fft.rfft(original, size)), size)
    snr_db = 10 * np.log10((original**2).sum() / ((original - copy) ** 2).sum())
    if correlation.argmax() != 0 or snr_db < LOWEST_SNR_DB:
        raise ValueError(
            f"clip {name}: the Opus copy is shifted by {correlation.argmax()} of {size} samples or too far from the "
            f"original (signal-to-noise ratio {snr_db:.1f} dB, at least {LOWEST_SNR_DB} wanted)"
        )


def unpack(packages: Path | None, folder: Path) -> None:
    """Extract PACKAGES into `folder`: from the .deb files in `packages`, or fetched with apt-get download."""
    needed = ("apt-get", "dpkg-deb") if packages is None else ("dpkg-deb",)
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        raise FileNotFoundError(f"{' and '.join(missing)} not found: run this on Debian or a relative of it")
    if packages is None:
        packages = folder / "packages"
        packages.mkdir()
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=packages, check=True)
    for package in PACKAGES:
        found = sorted(packages.glob(f"{package}_*.deb"))
        if len(found) != 1:
            raise FileNotFoundError(f"{packages}: one file {package}_*.deb expected, {len(found)} found")
        subprocess.run(["dpkg-deb", "-x", str(found[0]), str(folder / "tree")], check=True)


def licence_text(copyright_file: str) -> str:
    """The full text of CC-BY-SA-3.0 out of a Debian copyright file (lines start with a space, ` .` is an empty one)."""
    found = re.search(r"^License: CC-BY-SA-3\.0\n((?: .*\n){20,})", copyright_file, re.MULTILINE)
    if found is None:
        raise ValueError(
            "the package's copyright file no longer holds the text of CC-BY-SA-3.0: look at its licence anew"
        )
    return re.sub(r"^ \.?", "", found.group(1), flags=re.MULTILINE)


def build(tree: Path, corpus: Path) -> dict[str, int | float | list[str]]:
    """Write clips, metadata.csv, LICENSE and README.md of the packages unpacked in `tree`; return the counts."""
    transcript = read_transcript(tree / TRANSCRIPT)
    audio = {
        path.relative_to(tree / SOUNDS).with_suffix("").as_posix(): path for path in tree.glob(f"{SOUNDS}/**/*.g722")
    }
    left_out = sorted(name for name in audio.keys() & transcript.keys() if not is_speech(transcript[name]))
    names = sorted(audio.keys() & transcript.keys() - set(left_out))
    texts = {name: spoken_form(name, transcript[name]) for name in names}
    rows = []
    for name in names:
        samples = decode_g722(audio[name])
        opus = encode_opus(samples, serial=zlib.crc32(name.encode()))
        check_copy(name, samples, opus)
        path = corpus / "clips" / f"{name}.opus"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(opus)
        text, duration = texts[name], f"{len(samples) / SAMPLING_RATE:.4f}"
        rows.append((f"clips/{name}.opus", text, SPEAKER, len(text.split()), duration, transcript[name]))
    with open(corpus / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
    licence = licence_text((tree / COPYRIGHT).read_text(encoding="utf-8"))
    (corpus / "LICENSE").write_text(f"{ATTRIBUTION}\n\n{licence}", encoding="utf-8")
    summary: dict[str, int | float | list[str]] = {
        "clips": len(names),
        "clips_of_one_word": sum(row[3] == 1 for row in rows),
        "words": sum(row[3] for row in rows),
        "distinct_words": len({word for text in texts.values() for word in text.split()}),
        "minutes": round(sum(float(row[4]) for row in rows) / 60, 2),
        "megabytes": round(sum(path.stat().st_size for path in corpus.glob("clips/**/*.opus")) / 1e6, 2),
        "left_out_no_speech": left_out,
        "text_without_audio": sorted(transcript.keys() - audio.keys()),
        "audio_without_text": sorted(audio.keys() - transcript.keys()),
    }
    (corpus / "README.md").write_text(readme(summary), encoding="utf-8")
    return summary


ATTRIBUTION = """\
The recordings under clips/ are the English voice prompts of Asterisk (asterisk-core-sounds 1.6.1), taken from the
Debian packages asterisk-core-sounds-en-g722 and asterisk-core-sounds-en.

Copyright 2003-2010 Allison Smith. Recorded by Allison Smith (http://www.theivrvoice.com), with financial contributions
by Digium, Inc. (http://www.digium.com). Source: http://downloads.asterisk.org/pub/telephony/asterisk/
Licence: Creative Commons Attribution-ShareAlike 3.0 (CC-BY-SA-3.0), http://creativecommons.org/licenses/by-sa/3.0/

The original work has been modified: decoded from G.722, encoded again as Ogg Opus, clips without speech left out, and
the transcript rewritten as the words spoken. Whatever is made of these recordings and passed on, composed sentences
included, stays under the same licence."""


def readme(summary: dict[str, int | float | list[str]]) -> str:
    """The README.md of the corpus: what it holds, how it was made, and the counts of `summary`."""
    shown = {
        key: ", ".join(f"`{name}`" for name in value) or "none" if isinstance(value, list) else value
        for key, value in summary.items()
    }
    return README.format(attribution=ATTRIBUTION, **shown)


README = """\
# Sample corpus: the English prompts of Asterisk

{clips} clips of one professional speaker (Allison Smith), {minutes} minutes, 16 kHz, mono: numbers, dates, letters and
whole telephone prompts. {clips_of_one_word} of the clips hold a single word.
{words} words are spoken, {distinct_words} of them distinct. Ogg Opus at about 26 kbit/s, {megabytes} MB.
One voice in a studio: enough to learn from and to test with, not a benchmark.

`metadata.csv` (audiofolder convention): `file_name`, `text` (the words spoken, lower case, a-z and apostrophe),
`speaker`, `words` (how many), `duration` (seconds), `source_text` (as the package writes it).

Made by `python scripts/prepare_sample_corpus.py`, which holds every change of text with its reason. Each copy was
checked to have the length of its original, no shift and a signal-to-noise ratio of at least 10 dB. Running the script
again with the same libopus gives the same bytes; another build of libopus may round differently.

- Left out, because their text is nothing but a remark in brackets (tones, silence, screams): {left_out_no_speech}.
- Text without a recording: {text_without_audio}. Recordings without text: {audio_without_text}.

## Licence and attribution
{attribution}
The full text stands in `LICENSE`. The rest of this repository has its own licence.
"""


@reports_errors("prepare_sample_corpus.py")
def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    output: Path = arguments.output
    with tempfile.TemporaryDirectory() as temporary, tempfile.TemporaryDirectory(dir=output.parent) as beside:
        unpack(arguments.packages, Path(temporary))
        corpus = Path(beside) / "new"
        corpus.mkdir()
        summary = build(Path(temporary) / "tree", corpus)
        if output.exists():
            output.rename(Path(beside) / "old")
        corpus.rename(output)
    for name, value in summary.items():
        print(f"{name}: {f'{len(value)} ({chr(44).join(value)})' if isinstance(value, list) else value}")
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
