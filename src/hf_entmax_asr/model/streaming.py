"""The encoder while audio comes in: samples to frames, frames to positions, positions to states, each piece once.

What comes out is what the encoder gives for the whole audio at once under the same chunk mask. The mask holds for
attention; the convolutions of the front end, and the windows of the frames, look a fixed way ahead across the end of a
chunk, and `IncrementalEncoder.samples_for` says how far: chunk c is encoded once the audio up to there has come.

Axes: B streams, H heads, N samples, T frames, F mel bins, S positions, C width, D head width.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .chunks import Chunks
from .feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from .generation_inputs import sounds


class IncrementalFeatures:
    """Audio to normalised frames, in pieces of any length. It keeps less than a window and a piece of audio."""

    def __init__(self, extractor: EntmaxAsrFeatureExtractor):
        """
        Raises:
            ValueError: features that need the whole recording.
        """
        if extractor.min_seconds > 0:
            raise ValueError(
                f"min_seconds is {extractor.min_seconds}: recordings are filled up to that length, which audio that "
                "comes in cannot be. Set feature_extractor.min_seconds = 0, with a model trained so."
            )
        self.extractor = extractor
        self.normalize = extractor.normalizer()
        self.samples = self.frames = 0  # heard and made so far
        self._kept = torch.zeros(0)  # from the first sample of the next window on
        self._begun = False

    def feed(self, samples: Tensor, last: bool = False) -> Tensor:
        """(N,) float32 in [-1, 1] -> the frames (T, F) that are whole now; with `last` all that the audio still gives.

        Where the extractor mirrors the beginning, nothing comes out before that is there.
        """
        extractor = self.extractor
        window, hop, lead = extractor.window_samples, extractor.hop_samples, extractor.samples_before
        self.samples += len(samples)
        self._kept = torch.cat([self._kept, samples])
        if not self._begun and (len(self._kept) > lead or last):
            silence = torch.zeros(max(0, lead + 1 - len(self._kept)))
            self._kept = torch.cat([self._kept, silence])
            self._kept = torch.cat([self._kept[1 : lead + 1].flip(0), self._kept])
            self._begun = True
        count = max(0, 1 + (len(self._kept) - window) // hop) if self._begun else 0
        if last:
            count = extractor.num_frames(self.samples) - self.frames if self.samples else 0
            silence = torch.zeros(max(0, (count - 1) * hop + window - len(self._kept)))
            self._kept = torch.cat([self._kept, silence])
        if count <= 0:
            return torch.zeros(0, extractor.feature_size)
        frames = extractor.windows_log_mel(self._kept[: (count - 1) * hop + window])
        self._kept = self._kept[count * hop :]
        self.frames += count
        return self.normalize(frames)


class LeftContext:
    """Keys and values of the chunks before, for each layer."""

    def __init__(self, positions: int | None):
        """positions: so many are kept; None: all."""
        self.positions = positions
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Those of a chunk (B, H, S, D) -> with those before it, of which the last are kept for the next chunk."""
        if layer_idx in self._kept:
            key, value = (
                torch.cat([old, new], 2) for old, new in zip(self._kept[layer_idx], (key, value), strict=True)
            )
        first = 0 if self.positions is None else max(0, key.shape[2] - self.positions)
        self._kept[layer_idx] = (key[:, :, first:].clone() if first else key, value[:, :, first:].clone())
        return key, value

    @property
    def held(self) -> int:
        """Positions before the next chunk that it will read."""
        return next((key.shape[2] for key, _ in self._kept.values()), 0)

    @property
    def numel(self) -> int:
        """Numbers held."""
        return sum(tensor.numel() for pair in self._kept.values() for tensor in pair)


class Chunk(NamedTuple):
    """What an encoder has to compute: so many `positions` from `first` on, out of frames (T, F) that begin `back`
    positions before them."""

    owner: "IncrementalEncoder"
    frames: Tensor
    back: int
    first: int
    positions: int


class IncrementalEncoder:
    """Audio to encoder states, a chunk at a time: the same whatever pieces the audio comes in."""

    def __init__(self, encoder: Any, extractor: EntmaxAsrFeatureExtractor | None, chunks: Chunks):
        """encoder: an `EntmaxAsrEncoder` in evaluation mode; extractor: of its features, None if frames come in."""
        self.encoder = encoder
        self.chunks = chunks
        self.stride = encoder.config.frames_per_position
        self.positions = 0  # encoded so far
        self.samples = self.frames = 0  # heard so far
        self.sounding = 0  # frames so far in which something sounds
        self._features = None if extractor is None else IncrementalFeatures(extractor)
        self._waiting = torch.zeros(0)  # samples that the next chunk has not taken yet
        nothing = torch.zeros(0, encoder.config.num_mel_bins)
        self._coming = nothing  # frames that came in as such, likewise
        self._frames = nothing  # those of the next chunk, behind those it looks back to
        self._back = 0  # positions that these begin before it
        self.context = LeftContext(None if chunks.left < 0 else chunks.left * chunks.size)

    def frames_for(self, positions: int) -> int:
        """Frames from the beginning on that so many positions, whole chunks of them, need: with the front end "conv2d"
        those of the chunks themselves; Whisper's looks one frame further, 10 ms."""
        return positions * self.stride + max(0, self.encoder.subsampling.reach + 1 - self.stride)

    def samples_for(self, positions: int) -> int:
        """Samples of audio that so many positions need. The window of the last frame ends 15 ms (Kaldi's) or 2.5 ms
        (Whisper's) behind it."""
        assert self._features is not None
        extractor = self._features.extractor
        last_frame = self.frames_for(positions) - 1
        return last_frame * extractor.hop_samples + extractor.window_samples - extractor.samples_before

    def feed(self, samples: Tensor) -> Iterator[Tensor]:
        """(N,) float32 in [-1, 1] -> states (1, S, C) of each chunk that is complete now, encoded when it is asked for.

        Chunks that are not asked for come with the next call.
        """
        return (encode([chunk])[0] for chunk in self.take(samples))

    def finish(self) -> Tensor:
        """States (1, S, C) of what is left, behind which the audio ends: up to a chunk, and what stands behind one that
        lacked only what it looks ahead to."""
        states = [encode([chunk])[0] for chunk in self.rest()]
        return torch.cat(states, 1) if states else self.no_states()

    def take(self, samples: Tensor) -> Iterator[Chunk]:
        """As `feed`, what is to be encoded; each is to be encoded before the next is asked for."""
        assert self._features is not None
        self.samples += len(samples)
        self._waiting = torch.cat([self._waiting, samples])
        return self._complete_of_samples(self._features)

    def _complete_of_samples(self, features: IncrementalFeatures) -> Iterator[Chunk]:
        while self.samples >= (end := self.samples_for(self.positions + self.chunks.size)):
            count = end - features.samples
            frames = features.feed(self._waiting[:count])
            self._waiting = self._waiting[count:]
            yield self._chunk(frames, self.chunks.size)

    def take_frames(self, frames: Tensor) -> Iterator[Chunk]:
        """As `take`, of frames (T, F)."""
        self.frames += len(frames)
        self._coming = torch.cat([self._coming, frames.to(self._coming)])
        while self.frames >= (end := self.frames_for(self.positions + self.chunks.size)):
            count = len(self._coming) - (self.frames - end)
            frames, self._coming = self._coming[:count], self._coming[count:]
            yield self._chunk(frames, self.chunks.size)

    def rest(self) -> Iterator[Chunk]:
        """As `finish`, what is to be encoded."""
        frames, heard = self._coming, self.frames
        if self._features is not None:
            frames = self._features.feed(self._waiting, last=True)
            heard = self._features.frames
        self._waiting, self._coming = self._waiting[:0], self._coming[:0]
        total = self.encoder.config.positions_of(heard)
        while self.positions < total:
            yield self._chunk(frames, min(self.chunks.size, total - self.positions))
            frames = frames[:0]

    def _chunk(self, frames: Tensor, count: int) -> Chunk:
        """The next `count` positions, for which these frames are new."""
        self.encoder.embed_positions.check(self.positions + count)
        self.sounding += int(sounds(frames).sum())
        self._frames = torch.cat([self._frames, frames])
        chunk = Chunk(self, self._frames, self._back, self.positions, count)
        self.positions += count
        back = min(self.positions, math.ceil(self.encoder.subsampling.reach / self.stride))
        self._frames = self._frames[(self._back + count - back) * self.stride :]
        self._back = back
        return chunk

    def no_states(self) -> Tensor:
        """(1, 0, C)."""
        return torch.zeros(1, 0, self.encoder.config.d_model, device=next(self.encoder.parameters()).device)

    @property
    def numel(self) -> int:
        """Numbers held between calls."""
        kept = 0 if self._features is None else self._features._kept.numel()
        held = (self._waiting, self._coming, self._frames)
        return kept + sum(tensor.numel() for tensor in held) + self.context.numel


class LeftContexts:
    """The left contexts of several streams as one, the shorter ones padded in front."""

    def __init__(self, contexts: Sequence[LeftContext]):
        self.contexts = contexts

    def update(self, key: Tensor, value: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Those of a chunk of each (B, H, S, D), as `LeftContext.update`."""
        rows = zip(self.contexts, key.split(1), value.split(1), strict=True)
        pairs = [context.update(k, v, layer_idx) for context, k, v in rows]
        return padded_in_front([k for k, _ in pairs]), padded_in_front([v for _, v in pairs])

    def mask(self, count: int, device: torch.device) -> Tensor:
        """(B, 1, 1, S) true where a key is one, with the `count` of a chunk."""
        held = torch.tensor([context.held for context in self.contexts], device=device) + count
        longest = int(held.max())
        return (torch.arange(longest, device=device) >= longest - held[:, None])[:, None, None]


def padded_in_front(rows: Sequence[Tensor]) -> Tensor:
    """Of each (1, H, S, D) -> (B, H, S of the longest, D)."""
    longest = max(row.shape[2] for row in rows)
    return torch.cat([nn.functional.pad(row, (0, 0, longest - row.shape[2], 0)) for row in rows])


@torch.no_grad()
def encode(chunks: Sequence[Chunk]) -> list[Tensor]:
    """States (1, S, C) of each chunk, of different streams of one encoder: in one pass those of one shape."""
    states: dict[int, Tensor] = {}
    shapes: dict[tuple[int, int, int], list[int]] = {}
    for index, chunk in enumerate(chunks):
        shapes.setdefault((len(chunk.frames), chunk.back, chunk.positions), []).append(index)
    for indices in shapes.values():
        states |= zip(indices, _encode_alike([chunks[index] for index in indices]).split(1), strict=True)
    return [states[index] for index in range(len(chunks))]


def _encode_alike(chunks: Sequence[Chunk]) -> Tensor:
    """(B, S, C) of B chunks of one shape."""
    encoder, (_, _, back, _, count) = chunks[0].owner.encoder, chunks[0]
    device = next(encoder.parameters()).device
    x, _ = encoder.subsampling(torch.stack([chunk.frames for chunk in chunks]).to(device))  # (B, S, C)
    x = x[:, back : back + count] * encoder._embedding_scale()
    rows = list(zip(x.split(1), chunks, strict=True))
    x = torch.cat([encoder.embed_positions(row, chunk.first) for row, chunk in rows])
    rotations = [encoder.embed_positions.rotation(row, chunk.first) for row, chunk in rows]
    rotation = None if rotations[0] is None else [torch.cat(parts) for parts in zip(*rotations, strict=True)]
    cache: Any = chunks[0].owner.context
    mask = shared_map = None
    if len(chunks) > 1:
        cache = LeftContexts([chunk.owner.context for chunk in chunks])
        mask = cache.mask(count, device)
    for layer in encoder.layers:
        x, shared_map = layer(x, mask, shared_map, cache=cache, rotation=rotation)
    return encoder.layer_norm(x)
