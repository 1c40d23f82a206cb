"""Packages of Debian that are fetched without installing them; apt-get is a script here."""

import pytest
from experiments.real_speech.corpus_folder import CorpusError
from experiments.real_speech.debian_packages import Package, fetch


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """An apt-get whose machine knows `plain`, and whose mirror has `voices` in non-free. Returns its log."""
    (tmp_path / "bin").mkdir()
    log = tmp_path / "log"
    script = f"""#!/bin/sh
echo "$*" >> {log}
case "$*" in
"download plain") echo plain > plain_1_all.deb ;;
*SourceList=*update) ;;
*SourceList=*"download voices") grep -q "^deb .* bookworm non-free$" sources.list && echo voices > voices_1_all.deb ;;
*) echo "E: Unable to locate package" >&2; exit 100 ;;
esac
"""
    (tmp_path / "bin" / "apt-get").write_text(script)
    (tmp_path / "bin" / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return log


def test_a_package_of_main_comes_from_the_machines_own_lists(apt, tmp_path):
    assert fetch(Package("plain"), tmp_path / "plain").read_text() == "plain\n"
    assert apt.read_text() == "download plain\n"


def test_lists_of_its_own_are_made_for_another_component(apt, tmp_path):
    assert fetch(Package("voices", "non-free"), tmp_path / "voices").read_text() == "voices\n"
    first, update, download = apt.read_text().splitlines()
    assert first == "download voices"
    assert update.endswith("update")
    assert download.endswith("download voices")
    for words in (update, download):  # nothing of the machine's set-up is touched
        assert f"Dir::State::Lists={tmp_path / 'voices' / 'lists'}" in words
        assert "Dir::Etc::SourceParts=/dev/null" in words


def test_what_no_mirror_has_is_told_how_to_get(apt, tmp_path):
    with pytest.raises(CorpusError, match="download other failed: E: Unable to locate package") as failure:
        fetch(Package("other", "non-free"), tmp_path / "other")
    assert "https://packages.debian.org/other" in str(failure.value)
    with pytest.raises(CorpusError):  # one of main is not looked for elsewhere
        fetch(Package("voices"), tmp_path / "voices")
