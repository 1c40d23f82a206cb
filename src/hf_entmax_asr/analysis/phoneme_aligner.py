"""Phonemes and words of English in time, by forced alignment of a text with PocketSphinx (extra `phonemes`)."""

import re
from typing import Any

import numpy as np

from hf_entmax_asr.analysis.phonemes import Interval

SAMPLING_RATE = 16_000
SECONDS_PER_FRAME = 0.01
_FILLER = re.compile(r"[<\[(+]")  # how PocketSphinx's names of silences and noises begin


class AlignmentError(ValueError):
    """Audio and text that could not be aligned; the message says why."""


class PocketsphinxAligner:
    """Aligns English text with audio by the model and dictionary that come with PocketSphinx 5.

    The labels are as good as its small Gaussian model makes them; for finer ones read those of another aligner.
    """

    def __init__(self) -> None:
        """Raises ImportError where PocketSphinx is missing."""
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ImportError(
                "Aligning phonemes needs PocketSphinx: pip install 'hf_entmax_asr[phonemes]', or give a folder of "
                "TextGrid or CTM files instead."
            ) from error
        # Its search for the best path ends many utterances with a word of one frame, too short for phonemes
        # (cmusphinx/pocketsphinx#500).
        self._decoder: Any = Decoder(samprate=SAMPLING_RATE, lm=None, loglevel="FATAL", cmn="batch", bestpath=False)

    def align(self, waveform: np.ndarray, text: str) -> list[Interval]:
        """The phonemes (ARPAbet without stress, silences as SIL) of one utterance, in order.

        Args:
            waveform: (samples,) mono float in [-1, 1] at 16 kHz.
            text: what is said, as words: numbers and symbols must be spelled out. Case and punctuation do not matter.

        Raises:
            AlignmentError: no words or no audio, words that the dictionary lacks (all are named), audio that does not
                fit. An aligner that has raised can be used again.
        """
        return [phone for _, phones in self._alignment(waveform, text) for phone in phones]

    def align_words(self, waveform: np.ndarray, text: str) -> list[Interval]:
        """The words of one utterance, in order, without the silences between them.

        The labels are those of `spoken_words(text)`. Arguments and errors are those of `align`.
        """
        found = [word for word, _ in self._alignment(waveform, text) if not _FILLER.match(word.label)]
        words = spoken_words(text)
        if len(found) != len(words):
            raise AlignmentError(f"{len(found)} of {len(words)} words were found in the audio")
        return [Interval(word.start, word.end, label) for word, label in zip(found, words, strict=True)]

    def _alignment(self, waveform: np.ndarray, text: str) -> list[tuple[Interval, list[Interval]]]:
        """PocketSphinx's words and silences under its names, each with its phonemes."""
        words = [word if self._knows(word) else word.strip("'") for word in spoken_words(text)]
        if not words:
            raise AlignmentError("the text has no words")
        unknown = sorted({word for word in words if not self._knows(word)})
        if unknown:
            raise AlignmentError(f"not in the pronouncing dictionary: {', '.join(unknown)}")
        if len(waveform) == 0:
            raise AlignmentError("the audio is empty")
        samples = (np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.reinit_feat()  # else the labels depend on the utterances that were aligned before
        self._decoder.set_align_text(" ".join(words))
        if not self._decode(samples) or self._decoder.hyp() is None:
            raise AlignmentError("the text does not fit the audio")
        self._decoder.set_alignment()  # a second pass, from words to phonemes
        if not self._decode(samples):
            raise AlignmentError("the phonemes do not fit the audio")
        # Copied at once: its words are not to be touched once the alignment is gone.
        return [(_interval(word), [_interval(phone) for phone in word]) for word in self._decoder.get_alignment()]

    def _knows(self, word: str) -> bool:
        return self._decoder.lookup_word(word) is not None

    def _decode(self, samples: bytes) -> bool:
        """One pass over the audio; whether it went through."""
        try:
            self._decoder.start_utt()
            self._decoder.process_raw(samples, full_utt=True)
            self._decoder.end_utt()
        except RuntimeError:
            return False
        return True


def _interval(item: Any) -> Interval:
    return Interval(item.start * SECONDS_PER_FRAME, (item.start + item.duration) * SECONDS_PER_FRAME, item.name)


def spoken_words(text: str) -> list[str]:
    """The words of a text as the dictionary writes them: small letters, apostrophes kept, no other punctuation."""
    found = re.findall(r"(?:[^\W_]|')+", text.lower().replace("’", "'"))
    return [word for word in found if word.strip("'")]
