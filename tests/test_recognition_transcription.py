"""Which files are transcribed, and how their names are shown."""

import os
from pathlib import Path

from hf_entmax_asr.recognition.transcription import find_audio, left_out, shown


def test_folders_are_read_through_links_once_and_what_is_left_out_is_known(tmp_path):
    (tmp_path / "audio" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in (
        "audio/b.m4a",
        "audio/a.WAV",
        "audio/notes.txt",
        "audio/.hidden.wav",
        "audio/deep/c.caf",
        "other/d.sph",
    ):
        (tmp_path / name).touch()
    (tmp_path / "audio" / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "audio" / "deep" / "loop").symlink_to(tmp_path / "audio")
    found = find_audio([tmp_path / "audio", tmp_path / "audio" / "notes.txt", Path("missing.wav")])
    names = [path.relative_to(tmp_path).as_posix() if path.is_absolute() else str(path) for path in found]
    assert names == [
        "audio/a.WAV",
        "audio/b.m4a",
        "audio/deep/c.caf",
        "audio/linked/d.sph",
        "audio/notes.txt",
        "missing.wav",
    ]
    assert [path.name for path in left_out([tmp_path / "audio", Path("missing.wav")])] == ["notes.txt"]


def test_names_are_shown_in_one_line_of_utf_8():
    assert shown("grün/a b.wav") == "grün/a b.wav"
    assert shown("a\nb\tc.wav") == r"a\nb\tc.wav"
    assert shown(Path(os.fsdecode(b"caf\xe9.wav"))) == r"caf\xe9.wav"
