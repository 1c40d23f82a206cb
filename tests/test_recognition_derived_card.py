"""Cards of what was cut out of a checkpoint."""

import yaml

from hf_entmax_asr.recognition.derived_card import derived_card
from support.small_models import small_model

CARD = """---
license: mit
model-index:
- name: old
  results:
  - metrics:
    - value: 5
language:
- de
---
# Old
"""


def test_the_head_is_kept_without_scores(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    text = derived_card(tmp_path, "pruned", small_model(), "Heads were removed.")
    assert yaml.safe_load(text.split("---")[1]) == {"license": "mit", "language": ["de"]}
    assert "# pruned\n\nHeads were removed." in text
    assert str(tmp_path.parent) not in text


def test_a_source_without_a_card_gets_a_plain_head():
    text = derived_card("me/model", "pruned", small_model(), "Heads were removed.")
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "transformers"
    assert "`me/model`" in text
