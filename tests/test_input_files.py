"""Files are looked at before they are read: what has no end or the wrong form is refused by name."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hf_entmax_asr.input_files import (
    InputFileError,
    check_fractions,
    check_model_folder,
    check_regular,
    read_json,
    read_text,
)


def test_what_has_no_end_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, what in (("pipe", "pipe or device"), ("zeros", "pipe or device"), (".", "folder")):
        with pytest.raises(InputFileError, match=f"is a {what}; it must be a regular file"):
            check_regular(tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    for name in ("loop", "none"):
        with pytest.raises(FileNotFoundError, match=name):
            check_regular(tmp_path / name)


def test_what_the_shell_pipes_in_is_read():
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("said")
    assert read_text(Path(f"/dev/fd/{reading}")) == "said"
    os.close(reading)


def test_texts_and_json_that_are_none_are_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}', encoding="utf-8")
    assert read_json(file) == {"a": 1}
    for content, said in ((b"\xe9", "is not UTF-8"), (b"{", "is not JSON"), (b"[" * 100_000, "is not JSON")):
        file.write_bytes(content)
        with pytest.raises(InputFileError, match=f"{file} {said}"):
            read_json(file)


def test_a_folder_of_a_model_is_looked_through(tmp_path):
    (tmp_path / "notes.json").write_text("anything", encoding="utf-8")  # no reader opens it
    check_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputFileError, match=r"config\.json holds a list; it must be a JSON object"):
        check_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(InputFileError, match=r"model\.safetensors is a pipe"):
        check_model_folder(tmp_path)


def test_weights_are_fractions(tmp_path):
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bfloat16)}, file)
    check_fractions(file)
    save_file({"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.bool)}, file)
    with pytest.raises(InputFileError, match=r"model\.safetensors: b holds numbers of type BOOL"):
        check_fractions(file)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputFileError, match=r"model\.safetensors cannot be read"):
        check_fractions(file)
