"""Rows and energies that break naive code, and what an exact gradient is made of."""

import math

import torch

from hf_entmax_asr.model.alignment import preserve_mass


def hard_rows(length: int, count: int = 8) -> torch.Tensor:
    """Rows that break naive code: tiny and huge spreads, offsets, ties, equal entries, one peak, ramps, −∞, and crowds
    on the border of the support."""
    noise = torch.randn(count, length)
    ramp = torch.linspace(0, 1, length)
    rows = [noise * spread for spread in (1e-6, 1e-3, 1.0, 10.0, 1e4)]
    rows += [noise + 1e4, torch.full((1, length), 3.0), torch.zeros(1, length)]
    rows += [torch.randint(0, 3, (count, length)) * 0.1, torch.randint(0, 3, (count, length)).float()]
    rows += [ramp * torch.logspace(-4, 4, count)[:, None], -(ramp ** torch.logspace(-1.5, 1, count)[:, None])]
    rows += [-torch.log(torch.arange(1.0, length + 1))[None] / math.log(length + 1)]
    crowd = torch.tensor([-1.0, -0.5, -2.0, -1.25])[:, None] + noise[:4] * torch.logspace(-5, -1, 4)[:, None]
    rows += [crowd.index_fill(1, torch.tensor([0]), 0.0)]
    peaks = torch.zeros(count, length)
    peaks[:, 0] = torch.linspace(0.1, 2, count) * math.log(length + 1)
    rows += [peaks, torch.where(torch.rand(count, length) < 0.5, -torch.inf, noise).index_fill(1, torch.tensor([0]), 1)]
    return torch.cat(rows)


def backward_terms(p, alpha, upstream):
    """u (g − ḡ) and w (g − ḡ) in float64 (notation of `_Entmax`), what dz and −dα are made of."""
    p, g, eps = p.double(), upstream.double(), alpha - 1
    log_p = torch.where(p > 0, p, 1.0).log()
    u = torch.where(p > 0, p ** (1 - eps), 0.0)
    centred = g - (u * g).sum(-1, keepdim=True) / u.sum(-1, keepdim=True)
    y = -eps * log_p
    w = (
        p
        * log_p.square()
        * torch.where(y < 1e-3, 0.5 + y / 6 + y**2 / 24, (torch.expm1(y) - y) / y.clamp(min=1e-3) ** 2)
    )
    return u * centred, torch.where(p > 0, w, 0.0) * centred


def energies(targets: int, positions: int) -> dict[str, torch.Tensor]:
    """Energies (1, 2, U, S) of the kinds that break other forms of the recurrence; float32, mass preserved."""
    shape = (1, 2, targets, positions)
    rare = torch.rand(shape) < 5 * targets / positions
    kinds = {
        "soft": torch.randn(shape) - 3,
        "never quite": torch.full(shape, -7.0),  # 1 − σ is rounded the same way at every position
        "hardly ever": torch.full(shape, -15.0),
        "constant": torch.full(shape, -2.9),
        "bimodal": torch.where(rare, 8.0, -8.0) + torch.randn(shape),
        "very bimodal": torch.where(rare, 20.0, -20.0),
        "saturated": torch.where(rare, 50.0, -50.0),
        "infinite": torch.where(rare, torch.inf, -torch.inf),
        "wide": torch.randn(shape) * 10,
    }
    return {name: preserve_mass(energy) for name, energy in kinds.items()}
