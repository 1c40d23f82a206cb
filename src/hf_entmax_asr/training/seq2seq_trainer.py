"""What transformers' own Seq2SeqTrainer needs, beside the collator, to train this model well."""

from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import TrainerCallback

from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.model.losses import IGNORED_LABEL


class HeadGateCallback(TrainerCallback):
    """Soft-thresholds the head gates after each optimizer step, so that gates reach exactly 0; no-op without gates."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer right after `optimizer.step()`."""
        model = kwargs["model"]
        getattr(model, "module", model).proximal_gate_step(kwargs["optimizer"])


def word_error_metrics(tokenizer: Any) -> Callable[[Any], dict[str, float]]:
    """A `compute_metrics` for `predict_with_generate=True`: WER and CER in percent, and the counts of word errors."""

    def compute(prediction: Any) -> dict[str, float]:
        def texts(ids: Any) -> list[str]:
            ids = np.where(np.asarray(ids) == IGNORED_LABEL, tokenizer.pad_token_id, ids)
            return tokenizer.batch_decode(ids, skip_special_tokens=True)

        return Scores.of(texts(prediction.label_ids), texts(prediction.predictions)).as_dict()

    return compute
