"""Sparse attention without training: for each head the α and the logit scale that change least what it reads.

A head with weights p over the values V is given the sparsest q = entmax_α(s · z) of its scores z for which
‖qV − pV‖ / ‖pV‖, over all queries of some clips, stays within a bound. A scale below 1 with an α above 1 is the
sparse twin of a softmax; a larger α alone is not (method and bound are ours).
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_entmax_asr.model.attention import CrossAttention, SelfAttention
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.entmax import entmax
from hf_entmax_asr.model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration

ALPHAS = (1.05, 1.1, 1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.6, 1.8, 1.95)
SCALES = (0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.05, 1.2)
NEARLY_SOFTMAX = (1.001, 1.0)  # of a head for which no pair stays within the bound
QUERIES = 128  # of a clip at most, evenly spaced: more cost time and change nothing
KINDS = ("encoder", "decoder", "cross")


@dataclass(frozen=True)
class CalibratedHead:
    """One head: what it was given, the relative error of what it reads, and its exact zeros, a share of the weights
    that a mask allows."""

    module: str
    head: int
    alpha: float
    scale: float
    relative_error: float
    zero_share: float


@dataclass
class _Trial:
    """Sums over clips, for each pair (α, scale) and head of one module: (pairs, H), float64."""

    pairs: list[tuple[float, float]]
    heads: int
    error: Tensor = field(init=False)
    zeros: Tensor = field(init=False)
    norm: Tensor = field(init=False)
    weights: float = 0.0  # allowed ones of a head

    def __post_init__(self) -> None:
        self.error = torch.zeros(len(self.pairs), self.heads, dtype=torch.float64)
        self.zeros = torch.zeros_like(self.error)
        self.norm = torch.zeros(self.heads, dtype=torch.float64)

    def add(self, scores: Tensor, weights: Tensor, value: Tensor, allowed: Tensor) -> None:
        """scores, weights (B, H, T, S), value (B, H, S, D), allowed (B, 1, T, S) true where a real query reads."""
        real = allowed.any(-1, keepdim=True)  # (B, 1, T, 1) of the queries
        read = (weights @ value) * real
        self.norm += read.square().sum((0, 2, 3)).double().cpu()
        self.weights += float(allowed.sum())
        for index, (alpha, scale) in enumerate(self.pairs):
            sparse = entmax(scores * scale, alpha, mask=allowed)
            self.error[index] += ((sparse @ value) * real - read).square().sum((0, 2, 3)).double().cpu()
            self.zeros[index] += ((sparse == 0) & allowed).sum((0, 2, 3)).double().cpu()

    def best(self, module: str, most: float) -> list[CalibratedHead]:
        """Of each head the sparsest pair within the bound."""
        error = (self.error / self.norm.clamp(min=1e-30)).sqrt()
        zeros = self.zeros / max(1.0, self.weights)
        chosen = []
        for head in range(self.heads):
            within = [i for i in range(len(self.pairs)) if error[i, head] <= most]
            best = max(within, key=lambda i: (zeros[i, head].item(), -error[i, head].item()), default=0)
            alpha, scale = self.pairs[best]
            found = (error[best, head].item(), zeros[best, head].item())
            chosen.append(CalibratedHead(module, head, alpha, scale, *found))
        return chosen


@torch.no_grad()
def sparsify(
    model: EntmaxAsrForConditionalGeneration,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    max_relative_error: float = 0.1,
    kinds: tuple[str, ...] = KINDS,
) -> tuple[EntmaxAsrForConditionalGeneration, list[CalibratedHead]]:
    """A copy of `model` whose attention is α-entmax with a learned logit scale, calibrated head by head.

    Args:
        model: with any transforms; what its heads read now is what they are to read afterwards.
        batches: of the collator, with labels, on any device; a few clips suffice.
        max_relative_error: bound on the relative error of what a head reads, before the output projection.
        kinds: which of "encoder" and "decoder" self-attention and (full) "cross"-attention.

    Returns:
        the sparse model, and what was chosen for each head. A head that no pair suits is left (nearly) softmax.

    Raises:
        ValueError: no batch, a bound that is not above 0, or a kind that is not known.
    """
    if not max_relative_error > 0:
        raise ValueError(f"max_relative_error = {max_relative_error} must be above 0; 0.1 is usual.")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kinds: {unknown[0]!r} is not known. Use some of: {', '.join(KINDS)}.")
    trials: dict[str, _Trial] = {}
    was_training = model.training
    model.eval()
    try:
        with _watched(model, kinds, trials):
            for batch in batches:
                model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, use_cache=False)
    finally:
        model.train(was_training)
    if not trials:
        raise ValueError(f"nothing to calibrate: no clips, or no attention of the kinds {', '.join(kinds)}.")
    heads = [head for name, trial in trials.items() for head in trial.best(name, max_relative_error)]
    return _with_heads(model, kinds, heads), heads


@contextmanager
def _watched(model: Any, kinds: tuple[str, ...], trials: dict[str, _Trial]) -> Iterator[None]:
    """Inside, every forward adds what each attention module of these kinds does to its trial."""
    pairs = [NEARLY_SOFTMAX, *((alpha, scale) for alpha in ALPHAS for scale in SCALES)]
    handles = []
    for name, module in model.named_modules():
        if _kind(name, module) in kinds and getattr(module, "borrows_map", False) is False:
            short = name.removeprefix("model.")

            def watch(module: Any, given: tuple, options: dict, short: str = short) -> None:
                trial = trials.setdefault(short, _Trial(pairs, module.num_heads))
                trial.add(*_inputs(module, given, options))

            handles.append(module.register_forward_pre_hook(watch, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kind(name: str, module: Any) -> str | None:
    if isinstance(module, CrossAttention):
        return "cross"
    return name.split(".")[1] if isinstance(module, SelfAttention) else None


def _inputs(module: Any, given: tuple, options: dict) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores and weights (B, H, T, S), values (B, H, S, D) and the allowed weights (B, 1, T, S) of one call."""
    hidden = given[0]
    if isinstance(module, CrossAttention):
        source, mask = given[1], given[2] if len(given) > 2 else options.get("source_mask")
        mask = None if mask is None else mask[:, None, None, :]
    else:
        source, mask = hidden, given[1] if len(given) > 1 else options.get("attention_mask")
    query = module.heads_of(module.q_proj, hidden)
    key, value = module.heads_of(module.k_proj, source), module.heads_of(module.v_proj, source)
    scores = (query * module.scale @ key.transpose(-1, -2)).float()
    allowed = scores.new_ones(1, dtype=torch.bool) if mask is None else mask
    allowed = allowed.expand(scores.shape[0], 1, *scores.shape[2:])
    if isinstance(module, SelfAttention) and allowed.shape[2] == allowed.shape[3]:  # padded queries read, for nobody
        allowed = allowed & allowed.diagonal(dim1=2, dim2=3).unsqueeze(-1)
    every = -(-scores.shape[2] // QUERIES)
    scores, allowed = scores[:, :, ::every], allowed[:, :, ::every]
    weights = module.transform(scores, allowed)
    form = module.transform.as_entmax()
    if form is not None:  # the factor that the transform itself puts on the scores
        factor = form[1]
        scores = scores * (factor.view(-1, 1, 1) if isinstance(factor, Tensor) else factor)
    return scores, weights, value.float(), allowed


def _with_heads(model: Any, kinds: tuple[str, ...], heads: list[CalibratedHead]) -> EntmaxAsrForConditionalGeneration:
    """A copy of the model with these α and scales."""
    changes = {f"{kind}_transform": "entmax" for kind in kinds} | {"entmax_logit_scale": True}
    config = EntmaxAsrConfig.from_dict(model.config.to_dict() | changes)
    sparse: Any = EntmaxAsrForConditionalGeneration(config).to(model.device, model.dtype)
    own = sparse.state_dict()
    kept = {name: tensor for name, tensor in model.state_dict().items() if name in own}
    for chosen in heads:
        transform = f"model.{chosen.module}.transform"
        alpha = torch.tensor(chosen.alpha - 1).logit()
        for parameter, number in (("alpha_logit", alpha), ("log_scale", torch.tensor(chosen.scale).log())):
            values = kept.setdefault(f"{transform}.{parameter}", own[f"{transform}.{parameter}"].clone())
            values[chosen.head] = number
    for name in own.keys() - kept.keys():  # transforms of no module that was calibrated
        kept[name] = own[name]
    sparse.load_state_dict(kept)
    sparse.generation_config = model.generation_config
    return sparse.train(model.training)
