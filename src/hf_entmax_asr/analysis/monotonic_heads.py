"""How the monotonic heads read: who runs ahead, who keeps the others waiting, how much of the audio they pass.

From the boundaries of `model.head_boundaries(...)` or `generate(..., return_dict_in_generate=True)`. A token is written
when the last of its heads has stopped, so the head furthest to the right sets the delay of them all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Head = tuple[int, int]  # (layer, head)


@dataclass(frozen=True)
class MonotonicSummary:
    """What N heads did over a data set. NaN where nothing was measured.

    Attributes:
        heads: (layer, head) of each of the N.
        tokens, utterances: how many were measured.
        lag: (N,) positions between the earliest stop of any head for a token and this head's stop, mean over tokens.
        last_share: (N,) share of the tokens for which this head was the last to stop; tied heads share a token.
        coverage: (N,) share of the audio passed with the last token of an utterance, mean over utterances.
        at_end_share: (N,) share of the tokens before the last one written at the very last position: a head near 1
            found no boundary and waited for the end.
        order_violations: (N,) steps to the left; anything but 0 is an error in the model.
        waiting: (N, N) positions that head [row] waits for head [column], mean over tokens: max(0, column − row).
    """

    heads: tuple[Head, ...]
    tokens: int
    utterances: int
    lag: Tensor
    last_share: Tensor
    coverage: Tensor
    at_end_share: Tensor
    order_violations: Tensor
    waiting: Tensor


class MonotonicMeter:
    """Sums up the boundaries of all monotonic heads over a data set.

    >>> meter = MonotonicMeter()
    >>> boundaries = [torch.tensor([[[0, 2, 4], [1, 2, 7]]])]  # one layer, one utterance, two heads, three tokens
    >>> meter.update(boundaries, tokens=torch.tensor([3]), positions=torch.tensor([8]))
    >>> meter.summary().lag.tolist()
    [0.0, 1.3333333333333333]
    """

    def __init__(self, first_layer: int = 0, active: Sequence[Tensor] | None = None) -> None:
        """
        Args:
            first_layer: number of the first monotonic decoder layer.
            active: one boolean (H,) per layer, false for heads that take no part (gate 0) and for which nobody waits;
                they are measured against the others. None: all are active.
        """
        self.first_layer = first_layer
        self.active = None if active is None else torch.cat([layer.cpu().bool() for layer in active])
        if self.active is not None and not self.active.any():
            raise ValueError("no head is active; at least one must take part.")
        self._heads: tuple[Head, ...] = ()
        self._sums: dict[str, Tensor] = {}

    def update(self, boundaries: Sequence[Tensor], tokens: Tensor, positions: Tensor) -> None:
        """Adds a batch.

        Args:
            boundaries: one (B, H, U) tensor of encoder positions per monotonic layer.
            tokens: (B,) how many of the U tokens count, up to and with the end of the sentence.
            positions: (B,) valid encoder positions.

        Raises:
            ValueError: sizes that do not agree, or boundaries outside the audio.
        """
        if len(boundaries) == 0:
            raise ValueError("there are no boundaries; they need monotonic layers and monotonic_decoding='hard'.")
        stops = torch.cat([layer.detach().cpu() for layer in boundaries], 1).double()  # (B, N, U)
        tokens, positions = tokens.cpu().long(), positions.cpu().long()
        self._check(boundaries, stops, tokens, positions)
        index = torch.arange(stops.shape[2])
        real = (index < tokens[:, None])[:, None]  # (B, 1, U)
        active = self.active if self.active is not None else torch.ones(stops.shape[1], dtype=torch.bool)
        first = stops[:, active].amin(1, keepdim=True)
        is_last = (stops == stops[:, active].amax(1, keepdim=True)) & active[:, None]
        final = stops.gather(2, (tokens - 1).clamp(min=0)[:, None, None].expand(-1, stops.shape[1], 1)).squeeze(2)
        spoken = (tokens > 0)[:, None]
        before_last = (index < tokens[:, None] - 1)[:, None]
        waiting = torch.stack([((stops - stops[:, n : n + 1]).clamp(min=0) * real).sum((0, 2)) for n in self._rows()])
        sums = {
            "tokens": tokens.sum(),
            "utterances": spoken.sum(),
            "inner": before_last.sum(),
            "lag": ((stops - first) * real).sum((0, 2)),
            "last": (is_last.double() / is_last.sum(1, keepdim=True) * real).sum((0, 2)),
            "coverage": ((final + 1) / positions.clamp(min=1)[:, None] * spoken).sum(0),
            "at_end": ((stops == positions[:, None, None] - 1) & before_last).sum((0, 2)),
            "violations": ((stops.diff(dim=2) < 0) & real[:, :, 1:]).sum((0, 2)),
            "waiting": waiting,
        }
        self._sums = {name: value + self._sums.get(name, 0) for name, value in sums.items()}

    def summary(self) -> MonotonicSummary:
        """What was measured so far.

        Raises:
            ValueError: nothing was.
        """
        if not self._sums:
            raise ValueError("no boundaries were measured yet.")
        sums = self._sums
        return MonotonicSummary(
            heads=self._heads,
            tokens=int(sums["tokens"]),
            utterances=int(sums["utterances"]),
            lag=sums["lag"] / sums["tokens"],
            last_share=sums["last"] / sums["tokens"],
            coverage=sums["coverage"] / sums["utterances"],
            at_end_share=sums["at_end"].double() / sums["inner"],
            order_violations=sums["violations"],
            waiting=sums["waiting"] / sums["tokens"],
        )

    def _rows(self) -> range:
        return range(len(self._heads))

    def _check(self, boundaries: Sequence[Tensor], stops: Tensor, tokens: Tensor, positions: Tensor) -> None:
        heads = tuple((self.first_layer + i, h) for i, layer in enumerate(boundaries) for h in range(layer.shape[1]))
        if self._heads and heads != self._heads:
            raise ValueError(f"boundaries of the heads {heads} came after those of {self._heads}.")
        if self.active is not None and len(self.active) != len(heads):
            raise ValueError(f"active names {len(self.active)} heads; the boundaries are of {len(heads)}.")
        for name, values in (("tokens", tokens), ("positions", positions)):
            if values.shape != (len(stops),):
                raise ValueError(f"{name} has shape {tuple(values.shape)}; the batch needs ({len(stops)},).")
        if int(tokens.max()) > stops.shape[2]:
            raise ValueError(f"tokens holds {int(tokens.max())}, but the boundaries are of {stops.shape[2]} tokens.")
        real = (torch.arange(stops.shape[2]) < tokens[:, None])[:, None]
        outside = int((((stops < 0) | (stops >= positions[:, None, None])) & real).sum())
        if outside:
            raise ValueError(
                f"{outside} boundaries lie outside the audio. Give the valid encoder positions of the same batch."
            )
        self._heads = heads
