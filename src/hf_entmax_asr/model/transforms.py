"""The transforms as modules: from attention scores to weights, by the name in the configuration.

To add one: write the function (for example in entmax.py), a class here with a row in `TRANSFORM_CLASSES`, and its name
in `TRANSFORMS` of the configuration, beside whatever it is to be configured by.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .chunks import NO_CHUNKS, Chunks, chunk_mask
from .configuration_entmax_asr import EntmaxAsrConfig
from .entmax import entmax, entmax15, softmax, sparsemax, topk_softmax
from .entmax_attention import entmax_attention


class AttentionTransform(nn.Module):
    """Scores (B, H, T, S) -> weights of the same shape. Subclasses say how, and perhaps as which α-entmax."""

    def __init__(self, config: EntmaxAsrConfig, num_heads: int):
        """Subclasses take what they need of the configuration; num_heads: for a parameter of each head."""
        super().__init__()

    def reset_parameters(self) -> None:
        """Initialises the parameters of a new model, where there are any."""

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: boolean, broadcastable to the scores, true where a weight is allowed."""
        raise NotImplementedError

    def as_entmax(self) -> tuple[float | Tensor, float | Tensor] | None:
        """(α; factor of the scores), each a number or (H,), where the transform is an α-entmax, for which there is a
        fused form; None where it is not."""
        return None

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        scale: float,
        dropout_p: float = 0.0,
        need_weights: bool = False,
        chunks: Chunks = NO_CHUNKS,
    ) -> tuple[Tensor, Tensor | None]:
        """dropout(transform(query keyᵀ · scale + bias)) value: (B, H, T, D), and the weights before dropout
        (B, H, T, S) if they are needed: without them, α-entmax attention need not hold them.

        Args:
            query, key, value: (B, H, T or S, D).
            mask: boolean, broadcastable to (B, H, T, S), true where a query may read a key.
            bias: floating, broadcastable to (B, H, T, S).
            scale: of the scores.
            dropout_p: rate of dropout on the weights; the caller passes 0 outside training.
            chunks: a query reads its chunk and some before it alone, besides what `mask` says.
        """
        form = None if need_weights else self.as_entmax()
        if form is not None:
            alpha, factor = form
            if isinstance(factor, Tensor):
                factor = factor.to(query.dtype).view(-1, 1, 1)
            context: Tensor = entmax_attention(  # type: ignore[assignment]  # a pair only with return_weights
                query * factor if isinstance(factor, Tensor) else query,
                key,
                value,
                alpha,
                mask,
                None if bias is None else bias * factor,  # it is a part of the scores
                scale=scale if isinstance(factor, Tensor) else scale * factor,
                dropout_p=dropout_p,
                chunks=chunks,
            )
            return context, None
        scores = query * scale @ key.transpose(-1, -2)  # scaled before, for float16's range
        mask = chunk_mask(chunks, scores, mask)
        weights = self(scores if bias is None else scores + bias.to(scores.dtype), mask)
        return apply_weights(weights, value, dropout_p), weights


class Softmax(AttentionTransform):
    """softmax(scores / T)."""

    def __init__(self, config: EntmaxAsrConfig, num_heads: int):
        super().__init__(config, num_heads)
        self.temperature = config.softmax_temperature

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        return softmax(scores, self.temperature, mask=mask)

    def as_entmax(self) -> tuple[float | Tensor, float]:
        return 1.0, 1 / self.temperature


class Sparsemax(AttentionTransform):
    """α = 2."""

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        return sparsemax(scores, mask=mask)

    def as_entmax(self) -> tuple[float | Tensor, float]:
        return 2.0, 1.0


class Entmax15(AttentionTransform):
    """α = 1.5."""

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        return entmax15(scores, mask=mask)

    def as_entmax(self) -> tuple[float | Tensor, float]:
        return 1.5, 1.0


class LearnedEntmax(AttentionTransform):
    """α-entmax with one learned α per head (paper Sec. III-A), and perhaps a learned factor of the scores.

    A flatter score with a larger α is the sparse twin of a softmax: a head that starts from softmax needs both.
    """

    def __init__(self, config: EntmaxAsrConfig, num_heads: int):
        super().__init__(config, num_heads)
        self.alpha_logit = nn.Parameter(torch.empty(num_heads))  # α = 1 + sigmoid(alpha_logit)
        self.initial_alpha_logit = math.log((config.entmax_alpha_init - 1) / (2 - config.entmax_alpha_init))
        if config.entmax_logit_scale:
            self.log_scale = nn.Parameter(torch.empty(num_heads))  # factor of the scores = exp(log_scale)

    def reset_parameters(self) -> None:
        init.constant_(self.alpha_logit, self.initial_alpha_logit)
        if hasattr(self, "log_scale"):
            init.zeros_(self.log_scale)

    def alpha(self) -> Tensor:
        """(H,) the learned α of each head, always inside (1, 2)."""
        return 1 + torch.sigmoid(self.alpha_logit.float())

    def logit_scale(self) -> Tensor | None:
        """(H,) the learned factor of each head's scores; None where there is none."""
        return self.log_scale.float().exp() if hasattr(self, "log_scale") else None

    def forward(self, scores: Tensor | None, mask: Tensor | None = None) -> Any:
        """Without scores: α and the factor, for the fused form."""
        alpha, factor = self.alpha(), self.logit_scale()
        if scores is None:
            return alpha, 1.0 if factor is None else factor
        if factor is not None:
            scores = scores * factor.to(scores.dtype).view(-1, 1, 1)
        return entmax(scores, alpha.view(-1, 1, 1), mask=mask)

    def as_entmax(self) -> tuple[float | Tensor, float | Tensor]:
        # By way of forward, before which Accelerate loads parameters that it has offloaded.
        form: tuple[float | Tensor, float | Tensor] = self(None)
        return form


class TopkSoftmax(AttentionTransform):
    """Softmax over what is at least the k-th largest score (Explicit Sparse Transformer)."""

    def __init__(self, config: EntmaxAsrConfig, num_heads: int):
        super().__init__(config, num_heads)
        self.k = config.attention_topk

    def forward(self, scores: Tensor, mask: Tensor | None = None) -> Tensor:
        return topk_softmax(scores, self.k, mask=mask, keep_ties=True)


TRANSFORM_CLASSES: dict[str, type[AttentionTransform]] = {  # the keys are `TRANSFORMS` of the configuration
    "softmax": Softmax,
    "sparsemax": Sparsemax,
    "entmax15": Entmax15,
    "entmax": LearnedEntmax,
    "topk": TopkSoftmax,
}


def make_transform(name: str, config: EntmaxAsrConfig, num_heads: int) -> AttentionTransform:
    """The transform of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in TRANSFORM_CLASSES:
        raise ValueError(f"{name!r} is no transform. Use one of: {', '.join(TRANSFORM_CLASSES)}.")
    return TRANSFORM_CLASSES[name](config, num_heads)


def learned_alphas(model: nn.Module) -> dict[str, Tensor]:
    """The α (H,) of every attention module of a recogniser that learns it, by name, detached."""
    return {
        name.removeprefix("model.").removesuffix(".transform"): module.alpha().detach()
        for name, module in model.named_modules()
        if isinstance(module, LearnedEntmax)
    }


def mean_density(model: nn.Module) -> Tensor | None:
    """Mean of 2 − α over every learned α of a model: 1 where all are softmax, 0 where all are sparsemax; None without
    any. Differentiable, so that it can have a price in a loss."""
    alphas = [module.alpha() for module in model.modules() if isinstance(module, LearnedEntmax)]
    return (2 - torch.cat(alphas)).mean() if alphas else None


def apply_weights(weights: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Weights (B, H, T, S) and values (B, H, S, D) -> (B, H, T, D), with dropout on the weights."""
    return F.dropout(weights, dropout_p).to(value.dtype) @ value
