"""Transcripts as files: plain text, JSON, subtitles (SRT, WebVTT), and CTM, the form of NIST's scoring programs."""

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_entmax_asr.analysis.phonemes import Interval, ctm_lines
from hf_entmax_asr.model.words import TimedText, joined
from hf_entmax_asr.recognition.transcription import Transcript

FORMS = ("txt", "json", "srt", "vtt", "ctm")
WITH_TIMES = frozenset(FORMS) - {"txt"}  # they need the words of a transcript
OF_ONE_RECORDING = frozenset({"srt", "vtt"})

LINE_CHARACTERS = 42  # of a subtitle, which has two lines at most
LONGEST_CUE_S = 7.0
SHORTEST_CUE_S = 0.8  # where the next one does not begin before
PAUSE_S = 0.8  # between two words, ends a cue
SENTENCE_END = re.compile(r"[.!?…。！？]['\")\]]*$")


@dataclass(frozen=True)
class Cue:
    """A subtitle of one or two lines, from `start` to `end` in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


def written_as(form: str, transcripts: Sequence[Transcript], names: Sequence[str], several: bool) -> str:
    """The contents of a file with these transcripts.

    Args:
        form: one of `FORMS`; all but "txt" show words, where the transcripts have them.
        names: of the recordings, for CTM.
        several: for "txt" a line holds a file's name and its text, not only its text; for "json" the file is a list of
            objects, not one object. Subtitles are of one recording.

    Files that could not be transcribed have a place in JSON only.
    """
    done = [transcript for transcript in transcripts if transcript.error is None]
    if form == "txt":
        return "".join(f"{t.file}\t{t.text}\n" if several else f"{t.text}\n" for t in done)
    if form == "json":
        records = [as_record(transcript) for transcript in transcripts]
        return json.dumps(records if several else records[0], ensure_ascii=False, indent=2) + "\n"
    if form == "ctm":
        return "".join(ctm(n, t.words or ()) for n, t in zip(names, transcripts, strict=True) if t.error is None)
    all_cues = cues([word for transcript in done for word in transcript.words or ()])
    return srt(all_cues) if form == "srt" else vtt(all_cues)


def as_record(transcript: Transcript) -> dict[str, Any]:
    """What JSON says of a transcript: what it lacks is left out, times are to the millisecond."""
    record = {name: getattr(transcript, name) for name in ("file", "text", "seconds", "error")}
    if transcript.words is not None:
        record["words"] = [
            {
                "text": word.text,
                "start": round(word.start, 3),
                "end": round(word.end, 3),
                "confidence": round(word.confidence, 4),
            }
            for word in transcript.words
        ]
    return {name: value for name, value in record.items() if value is not None}


def from_record(record: dict[str, Any]) -> Transcript:
    """The transcript that `as_record` wrote."""
    words = record.get("words")
    return Transcript(**{**record, "words": None if words is None else tuple(TimedText(**word) for word in words)})


def ctm(name: str, words: Sequence[TimedText]) -> str:
    """A line a word: recording, channel, start, duration, word, confidence."""
    intervals = [Interval(word.start, word.end, word.text) for word in words]
    return "".join(ctm_lines("_".join(name.split()), intervals, [word.confidence for word in words]))


def cues(words: Sequence[TimedText]) -> list[Cue]:
    """Words as subtitles: a new one after a sentence, after a pause, and where two lines or seven seconds are full."""
    groups: list[list[TimedText]] = []
    for word in words:
        group = groups[-1] if groups else []
        if (
            not group
            or word.start - group[-1].end >= PAUSE_S
            or word.end - group[0].start > LONGEST_CUE_S
            or any(len(line) > LINE_CHARACTERS for line in _lines([*(w.text for w in group), word.text]))
            or SENTENCE_END.search(group[-1].text)
        ):
            groups.append([word])
        else:
            group.append(word)
    result = []
    for index, group in enumerate(groups):
        start, end = group[0].start, max(group[-1].end, group[0].start + SHORTEST_CUE_S)
        if index + 1 < len(groups):
            end = max(group[-1].end, min(end, groups[index + 1][0].start))
        result.append(Cue(start, end, _lines([word.text for word in group])))
    return result


def _lines(words: Sequence[str]) -> tuple[str, ...]:
    """Words in one line where they fit, else in two of about the same length."""
    whole = joined(words)
    if len(whole) <= LINE_CHARACTERS or len(words) < 2:
        return (whole,)
    halves = [(joined(words[:cut]), joined(words[cut:])) for cut in range(1, len(words))]
    return min(halves, key=lambda pair: abs(len(pair[0]) - len(pair[1])))


def srt(subtitles: Sequence[Cue]) -> str:
    """SubRip: numbered, with a comma before the milliseconds."""
    return "".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n" + "\n".join(cue.lines) + "\n\n"
        for number, cue in enumerate(subtitles, 1)
    )


def vtt(subtitles: Sequence[Cue]) -> str:
    """WebVTT, as browsers take it."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n"
        + "\n".join(html.escape(line, quote=False) for line in cue.lines)
        + "\n\n"
        for cue in subtitles
    )


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"
