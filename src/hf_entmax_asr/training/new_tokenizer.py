"""A trained model with another tokenizer: for a new alphabet or language."""

import copy
import logging
from typing import Any

import torch

from hf_entmax_asr.model.modeling_entmax_asr_baselines import recogniser_class

logger = logging.getLogger(__name__)

_MARKS = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")


@torch.no_grad()
def with_tokenizer(model: Any, old: Any, new: Any) -> Any:
    """The model for the tokens of `new`: what both tokenizers know keeps its weights, the rest of the embedding and of
    the output layers is made anew, and everything else stays. The log says how much is kept.

    Tokens are the same where they are written alike, and the marks (padding, start, end, unknown) by what they are.
    """
    config = copy.deepcopy(model.config)
    config.vocab_size = len(new)
    config.pad_token_id, config.eos_token_id = new.pad_token_id, new.eos_token_id
    config.bos_token_id = config.decoder_start_token_id = new.bos_token_id
    config.decoder_prompt_ids = []  # of a language and task that the old tokens name
    changed = recogniser_class(config)(config)
    kept = _kept(old, new, model.config)
    targets, sources = torch.tensor(list(kept)), torch.tensor(list(kept.values()))
    own = changed.state_dict()
    for name, tensor in model.state_dict().items():
        if _of_tokens(name):
            own[name][targets] = tensor[sources].to(own[name].dtype)
        else:
            own[name].copy_(tensor)
    logger.info(
        "the tokenizer is another: %d of its %d tokens keep their weights, %d are new%s",
        len(kept),
        len(new),
        len(new) - len(kept),
        " (the prompt of the checkpoint is left out)" if model.config.decoder_prompt_ids else "",
    )
    return changed


def _of_tokens(name: str) -> bool:
    return "embed_tokens" in name or "lm_head." in name or name.startswith("ctc_head.")


def _kept(old: Any, new: Any, config: Any) -> dict[int, int]:
    """{id in `new`: id in `old`} of the tokens that both know, and that the model does."""
    before, now = old.get_vocab(), new.get_vocab()
    marks = {getattr(new, name): getattr(old, name) for name in _MARKS if getattr(old, name, None) is not None}
    marks[new.bos_token_id] = config.decoder_start_token_id
    same = {index: before[token] for token, index in now.items() if token in before}
    return {new_id: old_id for new_id, old_id in (same | marks).items() if old_id < config.vocab_size}
