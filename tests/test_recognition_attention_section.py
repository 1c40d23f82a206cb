"""The section of a model card on what attention does: replaced, appended, refused."""

import dataclasses

import pytest

from hf_entmax_asr.recognition.attention_section import ATTENTION_HEADING, attention_text, write_attention_section
from hf_entmax_asr.recognition.checkpoint import CheckpointError
from support.analysis_document import document


def test_the_section_of_a_card_is_replaced_and_nothing_else(tmp_path):
    before, after = "---\ntags: [a]\n---\n\n# Name\n\n```python\n# code\n```\n", "## Training\n\nTen steps.\n"
    card = tmp_path / "README.md"
    given = dataclasses.replace(document(), data="/home/somebody/corpus, test")
    card.write_text(f"{before}\n{ATTENTION_HEADING}\n\nOld.\n\n- old\n\n{after}", encoding="utf-8")
    assert write_attention_section(tmp_path, given) == card
    assert card.read_text(encoding="utf-8") == f"{before}\n{ATTENTION_HEADING}\n\n{attention_text(given)}\n\n{after}"
    assert "Measured on 5 utterances (0.2 minutes) of corpus, test." in card.read_text(encoding="utf-8")
    write_attention_section(tmp_path, given)  # again: the same
    assert card.read_text(encoding="utf-8") == f"{before}\n{ATTENTION_HEADING}\n\n{attention_text(given)}\n\n{after}"
    card.write_text(before, encoding="utf-8")  # a card from before there was such a section
    for _ in range(2):
        write_attention_section(str(tmp_path), given)
        assert card.read_text(encoding="utf-8") == f"{before}\n{ATTENTION_HEADING}\n\n{attention_text(given)}\n"
    for folder in (tmp_path / "nowhere", "owner/name"):
        with pytest.raises(CheckpointError, match=r"is no local folder with a README\.md"):
            write_attention_section(folder, given)
