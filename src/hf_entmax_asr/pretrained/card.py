"""The card of a recogniser that was converted and not trained further."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

CARD = """---
{metadata}---
# {title}

A recogniser of [hf_entmax_asr](https://arxiv.org/abs/2209.15176) that started from the Whisper checkpoint
`{base_model}` (Radford et al. 2022, arXiv 2212.04356) and was not trained further. Its weights are Whisper's, so its
licence is that of Whisper's: {licence}.

| | |
|---|---|
| encoder self-attention | {encoder_transform} |
| decoder self-attention | {decoder_transform} |
| cross-attention | {cross_attention} |
| parameters | {parameters:.1f} M |
"""


def converted_card(whisper: str, model: Any) -> str:
    """The card's text: metadata of the Hub, and what the attention is.

    Args:
        whisper: name on the Hub, or folder, of the Whisper; its own card tells the licence and, for a folder, the name
            of the base model.
        model: what was made of it.
    """
    config, theirs = model.config, _metadata_of(whisper)
    base_model = theirs.get("base_model") if Path(whisper).is_dir() else str(whisper)
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["entmax", "monotonic-attention"],
        **{key: theirs[key] for key in ("license", "language") if key in theirs},
    }
    if base_model:  # the path of a folder is no name on the Hub
        metadata["base_model"] = base_model
    return CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        base_model=base_model or whisper,
        licence=theirs.get("license", "not said in its card"),
        title=str(whisper).rstrip("/").rpartition("/")[2],
        encoder_transform=config.encoder_transform,
        decoder_transform=config.decoder_transform,
        cross_attention=config.cross_attention,
        parameters=sum(parameter.numel() for parameter in model.parameters()) / 1e6,
    )


def _metadata_of(whisper: str) -> dict[str, Any]:
    """The metadata of a checkpoint's own card; nothing where there is no card, or the Hub cannot be reached."""
    source: Path | str = Path(whisper) / "README.md" if Path(whisper).is_dir() else whisper
    if isinstance(source, Path) and not source.is_file():
        return {}
    try:
        card = ModelCard.load(source)
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, yaml.YAMLError):
        return {}
    return dict(card.data.to_dict())
