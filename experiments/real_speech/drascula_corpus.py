"""The corpus of "Drascula: The Vampire Strikes Back": 46 minutes of ten voices for a test on other people.

Raw 8-bit audio at 11,025 Hz. All of it is the test split: too little to train on, and of a cast and a microphone that
no other corpus here has. The actors speak English with Spanish accents and now and then in other words than the
subtitles, in about one line of four, so a perfect recogniser would not score zero.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from experiments.real_speech.corpus_folder import SplitCounts, Utterance, mp3
from experiments.real_speech.debian_packages import Package
from experiments.real_speech.drascula import SAMPLING_RATE, read_clips
from experiments.real_speech.game import Game
from experiments.real_speech.spoken_text import Speaker, UnspeakableError

FOLDER = "usr/share/scummvm/drascula/en"
SHORTEST = 0.2  # seconds in which a word can be said
FASTEST = 20  # letters a second; of longer subtitles only a part was recorded
SPOKEN = {"TOUPEÉ": "TOUPEE", "B.J.": "B J", "O.K.": "OK"}
NOISE = "(WHISTLE"  # stands in a subtitle for what is whistled over
spoken_text = Speaker(SPOKEN, numbers=True)


def read(tree: Path, left_out: Counter[str]) -> Iterator[Utterance]:
    """The utterances of the unpacked package."""
    for clip in read_clips(tree / FOLDER):
        if not clip.text.strip():
            left_out["no text: a noise, or a take that the game does not use"] += 1
            continue
        if NOISE in clip.text:
            left_out["noises among the words"] += 1
            continue
        if len(clip.waveform) < SHORTEST * SAMPLING_RATE:
            left_out[f"shorter than {SHORTEST} s"] += 1
            continue
        try:
            text = spoken_text(clip.text)
        except UnspeakableError:
            left_out["a number or sign that may be spoken in several ways"] += 1
            continue
        if sum(map(str.isalpha, text)) > FASTEST * len(clip.waveform) / SAMPLING_RATE:
            left_out["more text than can be said in their time"] += 1
            continue
        audio = mp3(clip.waveform, SAMPLING_RATE)
        yield Utterance(clip.name, "test", audio, text, clip.speaker, clip.text, "drascula.dat")


GAME = Game(
    title="Drascula: The Vampire Strikes Back",
    packages=(Package("drascula"),),
    copyright="usr/share/doc/drascula/copyright",
    read=read,
    form=1,
    expected={"test": SplitCounts(736, 0.77, 10)},
)
