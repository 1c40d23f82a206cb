"""Transcripts as text, JSON, subtitles and CTM; names of output files; the journal."""

import json

import pytest

from hf_entmax_asr.analysis import read_ctm
from hf_entmax_asr.model.words import TimedText
from hf_entmax_asr.recognition.journal import Journal
from hf_entmax_asr.recognition.transcript_forms import as_record, cues, from_record, written_as
from hf_entmax_asr.recognition.transcript_places import TranscriptFolder, recording_names
from hf_entmax_asr.recognition.transcription import Transcript

WORDS = (TimedText("You", 0.5, 0.7, 0.9), TimedText("&", 0.7, 0.9, 0.8), TimedText("me.", 3661.9996, 3662.4, 0.5))
SAID = Transcript("a b.wav", "You & me.", 3663.0, words=WORDS)


def test_every_form():
    assert written_as("txt", [SAID], ["a b"], several=False) == "You & me.\n"
    failed = Transcript("c.wav", error="no audio")
    assert written_as("txt", [SAID, failed], ["a b", "c"], several=True) == "a b.wav\tYou & me.\n"
    records = json.loads(written_as("json", [SAID, failed], ["a b", "c"], several=True))
    assert records[1] == {"file": "c.wav", "error": "no audio"}
    assert records[0]["words"][2] == {"text": "me.", "start": 3662.0, "end": 3662.4, "confidence": 0.5}
    assert written_as("srt", [SAID], ["a b"], several=False) == (
        "1\n00:00:00,500 --> 00:00:01,300\nYou &\n\n2\n01:01:02,000 --> 01:01:02,800\nme.\n\n"
    )
    assert written_as("vtt", [SAID], ["a b"], several=False) == (
        "WEBVTT\n\n00:00:00.500 --> 00:00:01.300\nYou &amp;\n\n01:01:02.000 --> 01:01:02.800\nme.\n\n"
    )


def test_ctm_is_what_the_package_reads(tmp_path):
    text = written_as("ctm", [SAID], ["deep/a b"], several=False)
    assert text.splitlines()[0] == "deep/a_b 1 0.50 0.20 You 0.9000"
    (tmp_path / "a.ctm").write_text(text)
    assert [word.label for word in read_ctm(tmp_path / "a.ctm")["deep/a_b"]] == ["You", "&", "me."]


def test_subtitles_are_short_and_end_with_sentences():
    words = [TimedText("wordword", 0.5 * n, 0.5 * n + 0.4, 1.0) for n in range(20)]
    found = cues(words)
    assert all(len(line) <= 42 for cue in found for line in cue.lines)
    assert all(len(cue.lines) <= 2 and cue.end - cue.start <= 7 for cue in found)
    assert " ".join(" ".join(cue.lines) for cue in found) == " ".join(word.text for word in words)
    ended = cues([TimedText("Yes.", 0, 0.2, 1.0), TimedText("No", 0.3, 0.5, 1.0), TimedText("way", 2, 2.2, 1.0)])
    assert [cue.lines for cue in ended] == [("Yes.",), ("No",), ("way",)]
    assert [cue.end for cue in ended] == [0.3, pytest.approx(1.1), pytest.approx(2.8)]
    assert cues([TimedText("你", 0, 0.2, 1.0), TimedText("好", 0.2, 0.4, 1.0)])[0].lines == ("你好",)


def test_recordings_keep_their_folders_and_their_suffix_where_it_is_needed(tmp_path):
    for name in ("in/a.wav", "in/a.mp3", "in/deep/b.wav", "other/b.flac", "other/deep/b.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = recording_names([tmp_path / "in", tmp_path / "other" / "b.flac", tmp_path / "in" / "a.wav"])
    assert list(names.values()) == ["a.mp3", "a.wav", "deep/b", "b"]
    with pytest.raises(ValueError, match="two calls"):
        recording_names([tmp_path / "in", tmp_path / "other"])


def test_a_folder_gets_each_form_and_forgets_what_a_killed_process_left(tmp_path):
    folder = TranscriptFolder(tmp_path, ("txt", "srt"))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".a.txt.x1.partial").write_text("You")
    folder.tidy("deep/a")
    folder.write("deep/a", SAID)
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.srt", "a.txt"]
    (tmp_path / "deep" / "a.txt").write_text("corrected by hand")
    folder.write("deep/a", SAID, only_missing=True)
    assert (tmp_path / "deep" / "a.txt").read_text() == "corrected by hand"


def test_the_journal_survives_a_kill_at_any_byte(tmp_path):
    files = [tmp_path / f"{name}.wav" for name in "ab"]
    for file in files:
        file.write_bytes(b"audio")
    with Journal(tmp_path / "journal", {"beams": 1}) as journal:
        for file in files:
            journal.add(file, SAID)
    (path,) = (tmp_path / "journal").iterdir()
    whole = path.read_bytes()
    ends = [place + 1 for place in range(len(whole)) if whole[place : place + 1] == b"\n"]
    for length in (0, 5, ends[0], ends[0] + 9, ends[1] - 1, ends[1], len(whole) - 1, len(whole)):
        path.write_bytes(whole[:length])
        done = Journal(tmp_path / "journal", {"beams": 1}).read()
        assert list(done) == [str(file) for file in files[: max(0, sum(end <= length for end in ends) - 1)]]
        assert all(from_record(as_record(SAID)) == transcript for transcript in done.values())
    files[0].write_bytes(b"other audio")
    assert list(Journal(tmp_path / "journal", {"beams": 1}).read()) == [str(files[1])]
    with pytest.raises(ValueError, match=r"run with beams = 1, now it is 5"):
        Journal(tmp_path / "journal", {"beams": 5}).read()
