"""The card of a recogniser that was converted and not trained further."""

from typing import Any

CARD = """---
library_name: transformers
pipeline_tag: automatic-speech-recognition
base_model: {base_model}
tags:
- entmax
- monotonic-attention
---
# {title}

A recogniser of [hf_entmax_asr](https://arxiv.org/abs/2209.15176) that started from the Whisper checkpoint
`{base_model}` (Radford et al. 2022, arXiv 2212.04356) and was not trained further. Its weights are Whisper's: whatever
licence they carry holds here too.

| | |
|---|---|
| encoder self-attention | {encoder_transform} |
| decoder self-attention | {decoder_transform} |
| cross-attention | {cross_attention} |
| parameters | {parameters:.1f} M |
"""


def converted_card(base_model: str, model: Any) -> str:
    """The card's text: metadata of the Hub, and what the attention is.

    Args:
        base_model: name of the Whisper on the Hub, or its folder.
        model: what was made of it.
    """
    config = model.config
    return CARD.format(
        base_model=base_model,
        title=str(base_model).rstrip("/").rpartition("/")[2],
        encoder_transform=config.encoder_transform,
        decoder_transform=config.decoder_transform,
        cross_attention=config.cross_attention,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
    )
