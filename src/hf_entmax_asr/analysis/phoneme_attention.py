"""Which phonemes attend to which: the phoneme attention relationship (PAR) of Shim, Choi, Sung 2022, over a corpus."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hf_entmax_asr.analysis.phonemes import OTHER, SILENCE, place_of
from hf_entmax_asr.analysis.sparsity import allowed_entries

Role = Literal["linguistic", "phonetic", "neither"]


@dataclass(frozen=True)
class PhonemeAttention:
    """Sums of one self-attention module over a data set, for K classes; two of them can be added.

    For a query i of class p, only the keys of class q outside the unbroken run of equal labels around i count: what
    lies next to i is near in time, not only alike.

    Attributes:
        classes: names of the classes.
        frames: (K,) queries of each class.
        weight: (H, K, K) attention from queries of class p (rows) to keys of class q (columns).
        uniform: (K, K) the same for uniform attention under the same masks.
        pairs: (K, K) pairs of query and key.
    """

    classes: tuple[str, ...]
    frames: Tensor
    weight: Tensor
    uniform: Tensor
    pairs: Tensor

    @property
    def mass(self) -> Tensor:
        """(H, K, K) mean share of its attention that a frame of class p puts on class q. NaN where p is absent."""
        return self.weight / self.frames[:, None]

    @property
    def mean(self) -> Tensor:
        """(H, K, K) mean weight of such a pair of frames. NaN where there is no pair."""
        return self.weight / self.pairs

    @property
    def lift(self) -> Tensor:
        """(H, K, K) attention over what uniform attention would put there: 1 is no preference, 3 three times as much as
        by chance. NaN where there is no pair."""
        return self.weight / self.uniform

    def same_phoneme_lift(self, without: Sequence[str] = (SILENCE,)) -> Tensor:
        """(H,) lift of all pairs of equal phonemes together, but for the classes `without`. NaN without such pairs."""
        chosen = torch.eye(len(self.classes), dtype=torch.bool) & self._speech(without)
        return self._lift_of(chosen)

    def same_place_lift(self, without: Sequence[str] = (SILENCE,)) -> Tensor:
        """(H,) lift of all pairs of different phonemes of one place of articulation (labial, velar, …), so that a head
        which merely finds equal phonemes does not count. NaN without such pairs."""
        places = [place_of(name) for name in self.classes]
        same = torch.tensor([[p == q != OTHER for q in places] for p in places])
        return self._lift_of(same & ~torch.eye(len(places), dtype=torch.bool) & self._speech(without))

    def __add__(self, other: "PhonemeAttention") -> "PhonemeAttention":
        if self.classes != other.classes:
            raise ValueError(f"sums over the classes {self.classes} and {other.classes} cannot be added.")
        return PhonemeAttention(
            self.classes,
            self.frames + other.frames,
            self.weight + other.weight,
            self.uniform + other.uniform,
            self.pairs + other.pairs,
        )

    def _speech(self, without: Sequence[str]) -> Tensor:
        kept = torch.tensor([name not in without for name in self.classes])
        return kept[:, None] & kept

    def _lift_of(self, chosen: Tensor) -> Tensor:
        return self.weight[:, chosen].sum(-1) / self.uniform[chosen].sum()


def phoneme_attention(
    attention: Tensor, labels: Tensor, classes: Sequence[str], mask: Tensor | None = None, causal: bool = False
) -> PhonemeAttention:
    """Sums of one batch, on the CPU.

    Args:
        attention: (B, H, T, T) self-attention weights.
        labels: (B, T) the class of each position as an index into `classes`; −1 for none (padding too).
        mask: (B, T), true or 1 where the position is real; None: all are.
        causal: each position sees those up to itself.

    Raises:
        ValueError: as for `allowed_entries`; a map that is not square, labels of another shape or outside the classes.
    """
    allowed = allowed_entries(attention, mask, mask, causal)[:, 0]  # (B, T, T)
    batch, _, queries, keys = attention.shape
    if queries != keys or tuple(labels.shape) != (batch, keys):
        raise ValueError(
            f"attention has shape {tuple(attention.shape)} and labels {tuple(labels.shape)}; a square map needs labels "
            f"of shape ({batch}, {keys})."
        )
    if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; with {len(classes)} classes they must lie "
            f"between -1 (none) and {len(classes) - 1}."
        )
    labels = labels.to(attention.device)
    keys_of = (labels[..., None] == torch.arange(len(classes), device=labels.device)).double()  # (B, T, K), one-hot
    queries_of = keys_of * allowed.any(-1, keepdim=True)  # a query that sees nothing attends to nothing
    run = torch.nn.functional.pad(labels.diff(dim=1).ne(0).cumsum(1), (1, 0))  # (B, T), number of the unbroken run
    counted = (allowed & (run[:, :, None] != run[:, None, :])).double()
    uniform = counted / allowed.sum(-1, keepdim=True).clamp(min=1)
    weight = attention.detach().double() * counted[:, None]
    return PhonemeAttention(
        tuple(classes),
        frames=queries_of.sum((0, 1)).cpu(),
        weight=torch.einsum("bip,bhiq->hpq", queries_of, weight @ keys_of[:, None]).cpu(),
        uniform=torch.einsum("bip,biq->pq", queries_of, uniform @ keys_of).cpu(),
        pairs=torch.einsum("bip,biq->pq", queries_of, counted @ keys_of).cpu(),
    )


class PhonemeAttentionMeter:
    """Sums up `phoneme_attention` of named modules over a data set; a few numbers per head and pair of classes.

    Attributes:
        sums: by module name.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.sums: dict[str, PhonemeAttention] = {}

    def update(
        self, maps: Mapping[str, Tensor], labels: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> None:
        """Adds one batch: `maps` from module name to (B, H, T, T). Other arguments as for `phoneme_attention`."""
        for name, attention in maps.items():
            sums = phoneme_attention(attention, labels, self.classes, mask, causal)
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums


def head_roles(
    cad: Tensor,
    uniform_cad: Tensor | float,
    same_phoneme_lift: Tensor | None = None,
    *,
    diagonal_from: float = 0.5,
    phonetic_from: float = 1.5,
) -> list[Role | None]:
    """What each of H heads is for, by this rule:

    1. "linguistic" if its attention is diagonal: relative CAD, (CAD − uniform) / (1 − uniform), which is 0 for uniform
       attention and 1 for the identity, is at least `diagonal_from`;
    2. else "phonetic" if it finds equal phonemes elsewhere: `same_phoneme_lift` is at least `phonetic_from` times
       chance;
    3. else "neither"; without a lift (no labels, no pairs) None: not known.

    The order matters: a diagonal head also lifts equal phonemes where they come soon after one another.

    Args:
        cad: (H,) of `diagonality`, mean over a data set.
        uniform_cad: of uniform attention under the same masks.
        same_phoneme_lift: (H,) of `PhonemeAttention.same_phoneme_lift`.
    """
    lifts = [None] * len(cad) if same_phoneme_lift is None else same_phoneme_lift.tolist()
    relative = relative_diagonality(cad, uniform_cad).tolist()
    roles: list[Role | None] = []
    for diagonal, lift in zip(relative, lifts, strict=True):
        if diagonal >= diagonal_from:
            roles.append("linguistic")
        elif lift is None or lift != lift:
            roles.append(None)
        else:
            roles.append("phonetic" if lift >= phonetic_from else "neither")
    return roles


def relative_diagonality(cad: Tensor, uniform_cad: Tensor | float) -> Tensor:
    """(CAD − uniform) / (1 − uniform): 0 for uniform attention, 1 for the identity, below 0 for looking far away."""
    return (cad - uniform_cad) / (1 - uniform_cad)
