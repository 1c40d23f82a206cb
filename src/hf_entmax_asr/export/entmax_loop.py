"""α-entmax for exported graphs: the loop of the eager form as an operator of the graph, which ends by itself.

Unrolled, it would be hundreds of operators an attention layer, and as many steps for rows that need two as for those
that need twelve. `log1p` and `expm1`, which ONNX does not have, are written so that they keep their digits near 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._higher_order_ops.while_loop import while_loop_op

from hf_entmax_asr.kernels import use
from hf_entmax_asr.model import entmax as specification
from hf_entmax_asr.model.entmax import FAR_BELOW, MAX_NEWTON_STEPS


@contextmanager
def exportable_forms() -> Iterator[None]:
    """Inside, `entmax` of the model is that of this file, and no native form of anything runs."""
    before = specification.native_entmax
    with use("eager"):
        specification.native_entmax = entmax_loop
        try:
            yield
        finally:
            specification.native_entmax = before


def entmax_loop(scores: Tensor, alpha: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    """As `hf_entmax_asr.model.entmax.entmax`, of which `_solve` says what is done here; float32."""
    if mask is not None:
        scores = torch.where(mask, scores, -torch.inf)
    eps = (alpha.to(torch.float64) - 1).to(scores.dtype)
    top = scores.amax(dim, keepdim=True)
    a = (scores - torch.where(top == -torch.inf, 0.0, top)).clamp(min=FAR_BELOW)
    t = torch.zeros_like(top)

    def going_on(steps: Tensor, going: Tensor, t: Tensor, a: Tensor, eps: Tensor) -> Tensor:
        return going & (steps < MAX_NEWTON_STEPS)

    def climb(steps: Tensor, going: Tensor, t: Tensor, a: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p, slope = _weights(a, t, eps)
        total = p.sum(dim, keepdim=True)
        log_total = total.log()
        step = torch.where(eps == 0, log_total, -_expm1(-eps * log_total) / eps.clamp(min=1e-30))
        step = step * total / slope.sum(dim, keepdim=True)
        step = torch.where(total > 0, step, 0.0)
        t = t + step
        return steps + 1, (step > 8 * torch.finfo(t.dtype).eps * t.clamp(min=1.0)).any(), t

    begin = (torch.zeros((), dtype=torch.int64), torch.ones((), dtype=torch.bool), t)
    _, _, t = while_loop_op(going_on, climb, begin, (a, eps))  # type: ignore[arg-type]
    p, slope = _weights(a, t, eps)
    missing = (1 - p.sum(dim, keepdim=True, dtype=torch.float64)).to(p.dtype)
    return (p + slope * (missing / slope.sum(dim, keepdim=True).clamp(min=1e-30))).clamp(min=0)


def _weights(a: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """p = [1 + ε (a − t)]_+^(1/ε), exp(a − t) at ε = 0, and its slope −dp/dt = p^(1−ε)."""
    x = a - t
    log_p = torch.where(eps == 0, x, _log1p((eps * x).clamp(min=-1)) / eps.clamp(min=1e-30))
    p = torch.exp(log_p)
    return p, p / (1 + eps * x).clamp(min=1e-30)


def _log1p(x: Tensor) -> Tensor:
    """log(1 + x): where 1 + x is rounded to w, log w · x / (w − 1) puts right what that loses."""
    w = 1 + x
    return torch.where(w == 1, x, w.log() * x / (w - 1))


def _expm1(x: Tensor) -> Tensor:
    """e^x − 1, likewise, for x of moderate size."""
    w = x.exp()
    return torch.where((w == 1) | (w == 0), x.clamp(min=-1), (w - 1) * x / w.log())
