"""`generate` for audio that comes in as an iterator of pieces, in the convention of transformers' streaming models.

    model.generate(input_features=pieces, processor=processor, encoder_chunk_size=32, streamer=TextStreamer(tokenizer))

A piece is audio (N,) of any length, or features (B, T, F) of B streams side by side, with any number of frames: what
`IncrementalFeatures` makes. The tokens are those of `generate` for the whole audio with that `encoder_chunk_size`.

Axes: B streams, N samples, T frames, F mel bins, S positions, U tokens, C width.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor
from transformers.generation import GenerateEncoderDecoderOutput

from .chunks import Chunks
from .hearing import TokenWriter, check_streamable
from .stepping import Task, run
from .streaming import Chunk, IncrementalEncoder

KNOWN_ARGUMENTS = {
    "input_features",
    "streamer",
    "processor",
    "logits_processor",
    "encoder_chunk_size",
    "encoder_left_chunks",
}


def check_live(model: Any, settings: Any, chunks: Chunks, ctc_weight: float, asked: Iterable[str]) -> None:
    """
    Raises:
        ValueError: what cannot be while audio comes in.
    """
    check_streamable(model)
    if not chunks.size:
        raise ValueError(
            "encoder_chunk_size = 0 reads the whole audio at once, which pieces that come in are not: give a number of "
            "encoder positions, for example generate(..., encoder_chunk_size=32)."
        )
    if settings.do_sample or (settings.num_beams or 1) > 1 or ctc_weight:
        raise ValueError(
            f"do_sample = {settings.do_sample}, num_beams = {settings.num_beams}, ctc_weight = {ctc_weight}: text is "
            "written greedily by the decoder while audio comes in. Leave them out, give the whole audio, or open a "
            "session with beams: model.stream(processor, num_beams=…)."
        )
    if refused := sorted(set(asked) - KNOWN_ARGUMENTS):
        raise ValueError(f"{', '.join(refused)} cannot be given while audio comes in.")


def generate_live(
    model: Any,
    pieces: Iterator[Any],
    chunks: Chunks,
    prompt: Sequence[int],
    settings: Any,
    limit: int,
    processor: Any = None,
    streamer: Any = None,
    processors: Sequence[LogitsProcessor] = (),
) -> Tensor | GenerateEncoderDecoderOutput:
    """Sequences (B, given + U) as `generate` returns them, with `return_dict_in_generate` in an object that holds
    `boundaries` too. Pieces behind the end of all texts are left where they are.

    Args:
        chunks: in which the encoder works.
        prompt: tokens behind the start token, before the text.
        settings, limit: the generation config, and so many new tokens at most.
        processor: of the model, for pieces of audio.
        streamer: of transformers; is told each token as soon as it is written.
        processors: of scores, before those of the settings.
    """
    first = next(pieces, None)
    if first is None:
        raise ValueError("input_features is an iterator without pieces; it must give at least one.")
    extractor = None if np.ndim(first) == 3 else _extractor(processor, first)
    rows = len(first) if extractor is None else 1
    encoders = [IncrementalEncoder(model.get_encoder(), extractor, chunks) for _ in range(rows)]
    writers = [TokenWriter(model, prompt, settings, limit, processors=processors) for _ in range(rows)]
    streams = [_Stream(extractor, *sides) for sides in zip(encoders, writers, strict=True)]
    if streamer is not None:
        streamer.put(torch.tensor([stream.writer.sequence for stream in streams]))
    told = [len(stream.writer.sequence) for stream in streams]
    for piece in itertools.chain([first], pieces):
        run([stream.feeding(row) for stream, row in zip(streams, piece if extractor is None else [piece], strict=True)])
        _tell(streamer, streams, told)
        if all(stream.writer.ended for stream in streams):
            break
    run([stream.finishing() for stream in streams])
    _tell(streamer, streams, told)
    if streamer is not None:
        streamer.end()
    sequences = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(stream.writer.sequence, device=model.device) for stream in streams],
        batch_first=True,
        padding_value=model.config.pad_token_id,
    )
    if not settings.return_dict_in_generate:
        return sequences
    output = GenerateEncoderDecoderOutput(sequences=sequences)  # type: ignore[arg-type]
    output["boundaries"] = _boundaries(streams, sequences.shape[1] - 1)
    return output


def _extractor(processor: Any, piece: Any) -> Any:
    """For pieces that are audio."""
    if np.ndim(piece) != 1:
        raise ValueError(
            f"a piece of input_features has the shape {tuple(np.shape(piece))}; it must be audio (samples,), or "
            "features (streams, frames, mel bins)."
        )
    if processor is None:
        raise ValueError("pieces of audio need generate(..., processor=processor); else give pieces of features.")
    return processor.feature_extractor


class _Stream:
    """One row of the batch: its encoder and its text."""

    def __init__(self, extractor: Any, encoder: IncrementalEncoder, writer: TokenWriter) -> None:
        self.extractor, self.encoder, self.writer = extractor, encoder, writer

    def feeding(self, piece: Any) -> Task[None]:
        """Takes audio (N,) or frames (T, F), and writes what can be written."""
        if self.extractor is not None:
            yield from self._read(self.encoder.take(self.extractor._waveform(piece, 0)))
        else:
            yield from self._read(self.encoder.take_frames(torch.as_tensor(piece)))

    def finishing(self) -> Task[None]:
        """Writes the rest."""
        yield from self._read(self.encoder.rest())
        self.writer.hear(None, self.encoder.sounding, more=False)
        yield from self._write()

    def _read(self, chunks: Iterator[Chunk]) -> Task[None]:
        for chunk in chunks:
            if self.writer.ended:
                return
            states = yield chunk
            self.writer.hear(states, self.encoder.sounding, more=True)
            yield from self._write()

    def _write(self) -> Task[None]:
        while (yield from self.writer.write()) is not None:
            pass


def _tell(streamer: Any, streams: Sequence[_Stream], told: list[int]) -> None:
    """The streamer learns what the streams have written since; of several, token by token in their order."""
    for index, stream in enumerate(streams):
        for token in stream.writer.sequence[told[index] :] if streamer is not None else ():
            streamer.put(torch.tensor([token]))
        told[index] = len(stream.writer.sequence)


def _boundaries(streams: Sequence[_Stream], tokens: int) -> tuple[Tensor, ...]:
    """(B, H, U) by monotonic layer; behind the end of a text its last ones stand."""
    layers = []
    for rows in zip(*(stream.writer.held for stream in streams), strict=True):
        index = torch.arange(tokens)
        layers.append(torch.cat([row.progress[:, :, index.clamp(max=row.progress.shape[2] - 1)] for row in rows]))
    return tuple(layers)
