"""What every form of α-entmax attention is given, as one record."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# An operator of torch takes no record: those of attention take its fields in this order, a backward with what the
# forward saved between the tensors and the options. (The graphs that torch.compile keeps on disk call an operator with
# the arguments it had, and for outputs of the sizes they had: others need other names.)
TENSORS = "Tensor query, Tensor key, Tensor value, Tensor alpha, Tensor? mask, Tensor? bias, Tensor? seed"
OPTIONS = "bool is_causal, float scale, float dropout_p, int chunk_size, int left_chunks"


class AttentionInputs(NamedTuple):
    """What `hf_entmax_asr.model.entmax_attention.entmax_attention` has checked.

    Axes: B batch, H heads, T queries, S keys, D width of a head, E width of a value.
    """

    query: Tensor  # (B, H, T, D)
    key: Tensor  # (B, H, S, D)
    value: Tensor  # (B, H, S, E)
    alpha: Tensor  # (B or 1, H or 1, 1, 1), in [1, 2]
    mask: Tensor | None  # boolean, broadcastable to (B, H, T, S), true where a query may read a key
    bias: Tensor | None  # floating, broadcastable to (B, H, T, S), added to the scaled scores
    seed: Tensor | None  # (1,) int64, of the dropout; None for no dropout
    is_causal: bool  # query i reads the keys 0 … i alone, besides what `mask` says
    scale: float  # of query keyᵀ
    dropout_p: float  # probability that a weight is dropped, if there is a seed
    # Query i reads the chunk of so many keys that holds key i, and so many chunks before it (−1: all), besides that.
    chunk_size: int = 0  # 0: no chunks
    left_chunks: int = -1

    @classmethod
    def split(cls, arguments: Sequence[Any], saved: int = 0) -> tuple["AttentionInputs", Sequence[Any], Sequence[Any]]:
        """The record in an operator's arguments, the number of `saved` tensors amid it, and what comes behind it."""
        behind = arguments[7 + saved :]
        return cls(*arguments[:7], *behind[:5]), arguments[7 : 7 + saved], behind[5:]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[:7]

    @property
    def options(self) -> tuple[bool, float, float, int, int]:
        return self[7:]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(B, H, T, S) of the scores."""
        batch, heads, queries, _ = self.query.shape
        return batch, heads, queries, self.key.shape[2]

    def fit(self) -> bool:
        """Whether native code may see them, which reads wherever a shape points: query, key and value belong together,
        and α to their heads. (A mask or bias that does not is refused where it is expanded.) Scores of no width are
        all alike, and left to the eager form."""
        query, key, value, alpha = (t.shape for t in self[:4])
        return (
            len(query) == len(key) == len(value) == len(alpha) == 4
            and query[:2] == key[:2]
            and key[:3] == value[:3]
            and query[3] == key[3] > 0
            and alpha[0] in (1, query[0])
            and alpha[1] in (1, query[1])
            and alpha[2:] == (1, 1)
        )

    def needs_gradients(self) -> bool:
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in self.tensors)

    def with_seed(self) -> "AttentionInputs":
        """With a seed of torch's, where there is dropout."""
        if not self.dropout_p > 0:
            return self
        return self._replace(seed=torch.randint(1 << 62, (1,), device=self.query.device))
