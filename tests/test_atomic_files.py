"""Files and folders that are whole or absent."""

import pytest

from hf_entmax_asr.atomic_files import atomic_folder


def test_a_folder_is_whole_or_absent(tmp_path):
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
