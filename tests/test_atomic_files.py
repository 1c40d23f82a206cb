"""Files and folders that are whole or absent."""

import os
import stat
import threading
from pathlib import Path

import pytest

from hf_entmax_asr import atomic_files
from hf_entmax_asr.atomic_files import atomic_folder, recover_folders, write_text_atomically


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_is_whole_or_absent(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic_files, "_exchange", lambda one, other: False)
    target = tmp_path / "checkpoint"

    def write(text, fail):
        with atomic_folder(target) as partial:
            (partial / "file").write_text(text)
            if fail:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write("one", fail=True)
    assert list(tmp_path.iterdir()) == []
    write("two", fail=False)
    with pytest.raises(OSError, match="disk full"):
        write("three", fail=True)
    assert (target / "file").read_text() == "two"
    write("four", fail=False)
    assert (target / "file").read_text() == "four"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as partial:
        (partial / "file").write_text("text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "text"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]


def test_what_a_kill_between_two_renames_left_is_put_right(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic_files, "_exchange", lambda one, other: False)
    target = tmp_path / "step-00000010"
    with atomic_folder(target) as partial:
        (partial / "file").write_text("first")

    class Killed(BaseException):
        pass

    rename, moved = Path.rename, []

    def killed_at_the_second(self, other):
        moved.append(self)
        if len(moved) == 2:
            monkeypatch.setattr(atomic_files.shutil, "rmtree", lambda *_, **__: None)  # nobody is left to clean up
        if len(moved) > 1:
            raise Killed
        return rename(self, other)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_at_the_second)
        with pytest.raises(Killed), atomic_folder(target) as partial:
            (partial / "file").write_text("second")
    monkeypatch.undo()
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 2  # the one set aside and the one that was to come
    recover_folders(tmp_path)
    assert (target / "file").read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_laid_at_a_temporary_name_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / ".out.txt.partial").symlink_to(victim)
    write_text_atomically(tmp_path / "out.txt", "text")
    assert victim.read_text() == "untouched"
    assert (tmp_path / "out.txt").read_text() == "text"


def test_a_pipe_is_written_into_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_text_atomically, args=(pipe, "text"))
    writer.start()
    assert pipe.read_text() == "text"
    writer.join()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_text_atomically(Path(os.devnull), "text")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_linked_file_keeps_its_link_and_its_mode(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_text_atomically(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "text"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_places_where_nothing_can_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        write_text_atomically(tmp_path, "text")
    with pytest.raises(NotADirectoryError, match="file is no folder"):
        write_text_atomically(tmp_path / "file" / "new", "text")
    with pytest.raises(OSError, match="too long"):
        write_text_atomically(tmp_path / ("x" * 300), "text")
    with pytest.raises(NotADirectoryError, match="is a file; name a folder"), atomic_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_name_as_long_as_names_may_be_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 125 + ".txt")  # 254 bytes
    write_text_atomically(path, "text")
    assert path.read_text() == "text"
