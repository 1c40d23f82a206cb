"""The encoder while audio comes in: samples to frames, frames to positions, positions to states, each piece once.

What comes out is what the encoder gives for the whole audio at once under the same chunk mask. The mask holds for
attention; the convolutions of the front end, and the windows of the frames, look a fixed way ahead across the end of a
chunk, and `IncrementalEncoder.samples_for` says how far: chunk c is encoded once the audio up to there has come.

Axes: B batch (1), H heads, N samples, T frames, F mel bins, S positions, C width, D head width.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

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
    def numel(self) -> int:
        """Numbers held."""
        return sum(tensor.numel() for pair in self._kept.values() for tensor in pair)


class IncrementalEncoder:
    """Audio to encoder states, a chunk at a time: the same whatever pieces the audio comes in."""

    def __init__(self, encoder: Any, extractor: EntmaxAsrFeatureExtractor, chunks: Chunks):
        """encoder: an `EntmaxAsrEncoder` in evaluation mode."""
        self.encoder = encoder
        self.chunks = chunks
        self.stride = encoder.config.frames_per_position
        self.positions = 0  # encoded so far
        self.samples = 0  # heard so far
        self.sounding = 0  # frames so far in which something sounds
        self._features = IncrementalFeatures(extractor)
        self._waiting = torch.zeros(0)  # samples that the next chunk has not taken yet
        self._frames = torch.zeros(0, extractor.feature_size)  # those of the next chunk, behind those it looks back to
        self._back = 0  # positions that these begin before it
        self._context = LeftContext(None if chunks.left < 0 else chunks.left * chunks.size)

    def samples_for(self, positions: int) -> int:
        """Samples of audio from the beginning on that so many positions, whole chunks of them, need.

        With the front end "conv2d" these are the frames of the chunks themselves; Whisper's looks one frame further,
        10 ms. The window of the last frame ends 15 ms (Kaldi's) or 2.5 ms (Whisper's) behind it.
        """
        extractor = self._features.extractor
        ahead = max(0, self.encoder.subsampling.reach + 1 - self.stride)
        last_frame = positions * self.stride + ahead - 1
        return last_frame * extractor.hop_samples + extractor.window_samples - extractor.samples_before

    def feed(self, samples: Tensor) -> Iterator[Tensor]:
        """(N,) float32 in [-1, 1] -> states (1, S, C) of each chunk that is complete now, encoded when it is asked for.

        Chunks that are not asked for come with the next call.
        """
        self.samples += len(samples)
        self._waiting = torch.cat([self._waiting, samples])
        return self._complete()

    @torch.no_grad()
    def _complete(self) -> Iterator[Tensor]:
        while self.samples >= (end := self.samples_for(self.positions + self.chunks.size)):
            count = end - self._features.samples
            frames = self._features.feed(self._waiting[:count])
            self._waiting = self._waiting[count:]
            yield self._encode(frames, self.chunks.size)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """States (1, S, C) of what is left, behind which the audio ends: up to a chunk, and what stands behind one that
        lacked only what it looks ahead to."""
        frames = self._features.feed(self._waiting, last=True)
        self._waiting = self._waiting[:0]
        total = self.encoder.config.positions_of(self._features.frames)
        states = [self._encode(frames, min(self.chunks.size, total - self.positions))]
        while self.positions < total:
            states.append(self._encode(frames[:0], min(self.chunks.size, total - self.positions)))
        return torch.cat(states, 1)

    def _encode(self, frames: Tensor, count: int) -> Tensor:
        """States of the next `count` positions, for which these frames are new."""
        encoder, config = self.encoder, self.encoder.config
        self.sounding += int(sounds(frames).sum())
        self._frames = torch.cat([self._frames, frames])
        device = next(encoder.parameters()).device
        if count <= 0:
            return torch.zeros(1, 0, config.d_model, device=device)
        x, _ = encoder.subsampling(self._frames.unsqueeze(0).to(device))  # (1, S, C)
        x = x[:, self._back : self._back + count]
        x = encoder.embed_positions(x * encoder._embedding_scale(), self.positions)
        shared_map = None
        for layer in encoder.layers:
            x, shared_map = layer(x, None, shared_map, cache=self._context)
        self.positions += count
        back = min(self.positions, math.ceil(encoder.subsampling.reach / self.stride))
        self._frames = self._frames[(self._back + count - back) * self.stride :]
        self._back = back
        return encoder.layer_norm(x)

    @property
    def numel(self) -> int:
        """Numbers held between calls."""
        return self._waiting.numel() + self._frames.numel() + self._features._kept.numel() + self._context.numel
