"""The card of a checkpoint that was made out of another by a program of this package, without training."""

import re
from pathlib import Path
from typing import Any

CARD = """---
{head}
---
# {title}

{made} The checkpoint that it was made of: `{source}`. It was not scored since.

| | |
|---|---|
| encoder self-attention | {encoder_transform} |
| decoder self-attention | {decoder_transform} |
| cross-attention | {cross_attention} |
| parameters | {parameters:.1f} M |
"""
PLAIN_HEAD = "library_name: transformers\npipeline_tag: automatic-speech-recognition"


def derived_card(source: str | Path, title: str, model: Any, made: str) -> str:
    """The card's text: the head of the source's card without its scores, which are not those of this checkpoint.

    Args:
        source: folder or Hub repository.
        model: what was made of it.
        made: how, in a sentence.
    """
    card = Path(source) / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    # A key begins its line, what belongs to it is indented or a list.
    head = re.sub(r"(?m)^model-index:.*\n?(?:^[ -].*\n?)*", "", found[1]).strip() if found else PLAIN_HEAD
    config = model.config
    return CARD.format(
        head=head,
        title=title,
        made=made,
        source=Path(source).name if Path(source).is_dir() else source,
        encoder_transform=config.encoder_transform,
        decoder_transform=config.decoder_transform,
        cross_attention=config.cross_attention,
        parameters=model.num_parameters() / 1e6,
    )
