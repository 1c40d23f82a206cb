"""The pipeline of transformers for speech recognition, with times of words and characters and recordings of any length.

pipeline("automatic-speech-recognition", model, pipeline_class=EntmaxAsrPipeline)    # with the package
pipeline("entmax-asr", model, trust_remote_code=True)                                # from a checkpoint alone
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from transformers import AutomaticSpeechRecognitionPipeline
from transformers.modeling_outputs import BaseModelOutput
from transformers.pipelines.audio_utils import ffmpeg_read

from .long_audio import PieceRule, pieces_at_pauses
from .times import token_times
from .words import TimedText, joined, text_mask, timed_texts

LONGEST_PIECE_S = 30.0
BLOCK_S = 60
UNITS = ("word", "char")


class EntmaxAsrPipeline(AutomaticSpeechRecognitionPipeline):
    """As in transformers, and beyond it:

    - `return_timestamps="word"` or `"char"`: under `chunks`, each with text, timestamp (start, end) in seconds and
      confidence;
    - `chunk_length_s` (30 by default): longer audio is cut at pauses into pieces of at most so many seconds, which are
      recognised one by one (or `batch_size` together), so that memory does not grow with its length.
    """

    # Any: transformers types them as what any pipeline may lack.
    model: Any
    feature_extractor: Any
    tokenizer: Any

    def _sanitize_parameters(  # type: ignore[override]
        self, chunk_length_s: float | None = None, return_timestamps: str | bool | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if return_timestamps not in (None, False, *UNITS):
            raise ValueError(f"return_timestamps = {return_timestamps!r} is not known. Use one of: {', '.join(UNITS)}.")
        if "stride_length_s" in kwargs:
            raise ValueError("stride_length_s: pieces are cut at pauses and do not overlap; leave it out.")
        before, forward, after = super()._sanitize_parameters(**kwargs)
        if chunk_length_s is not None:
            before["chunk_length_s"] = chunk_length_s
        if return_timestamps is not None:
            forward["return_timestamps"] = after["return_timestamps"] = return_timestamps
        return before, forward, after

    def preprocess(self, inputs: Any, chunk_length_s: float = LONGEST_PIECE_S) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """One item a piece: its features and where it starts."""
        waveform, rate = self._waveform(inputs), self.feature_extractor.sampling_rate
        blocks = (waveform[first : first + BLOCK_S * rate] for first in range(0, len(waveform), BLOCK_S * rate))
        pieces = pieces_at_pauses(blocks, rate, PieceRule(longest_seconds=chunk_length_s))
        nothing = np.zeros(self.feature_extractor.shortest_samples, np.float32)
        piece: tuple[int, np.ndarray] | None = next(pieces, (0, nothing))
        while piece is not None:
            start, samples = piece
            processed = self.feature_extractor(
                samples, sampling_rate=rate, return_tensors="pt", return_attention_mask=True
            )
            processed = processed if self.dtype is None else processed.to(dtype=self.dtype)
            piece = next(pieces, None)
            yield {"is_last": piece is None, "starts_at": start / rate, **processed}

    def _waveform(self, inputs: Any) -> np.ndarray:
        """(samples,) mono at the sampling rate of the features."""
        rate = self.feature_extractor.sampling_rate
        if isinstance(inputs, dict) and inputs and inputs.keys() <= {"path", "bytes"}:  # a row of a corpus, undecoded
            inputs = inputs.get("path") if inputs.get("bytes") is None else inputs["bytes"]
        if isinstance(inputs, str):
            with open(inputs, "rb") as file:
                inputs = file.read()
        if isinstance(inputs, bytes):
            inputs = ffmpeg_read(inputs, rate)
        if isinstance(inputs, dict):
            given = inputs.get("sampling_rate")
            inputs = inputs["raw"] if "raw" in inputs else inputs.get("array")
            if given != rate or inputs is None:
                raise ValueError(
                    f"a dictionary must hold the audio under 'raw' or 'array' and its sampling_rate, which is {given} "
                    f"and must be {rate}: resample first, for example with hf_entmax_asr.audio.resample."
                )
        waveform = torch.as_tensor(inputs).float().cpu()
        if waveform.dim() == 2:  # channels and samples, in either order
            waveform = waveform.mean(0 if waveform.shape[0] < waveform.shape[1] else 1)
        return waveform.numpy()

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], return_timestamps: str | bool = False, **generate_kwargs: Any
    ) -> dict[str, Any]:
        features, mask = model_inputs.pop("input_features"), model_inputs.pop("attention_mask", None)
        options = self._prepare_generate_kwargs(generate_kwargs)
        encoder_outputs: BaseModelOutput = self.model.get_encoder()(features, attention_mask=mask, return_dict=True)
        tokens: Any = self.model.generate(
            input_features=features, encoder_outputs=encoder_outputs, attention_mask=mask, **options
        )
        tokens = getattr(tokens, "sequences", tokens)
        tokens = tokens[:: len(tokens) // len(features)]  # of several hypotheses the best
        result = {**model_inputs, "tokens": tokens}
        if return_timestamps:
            is_text = torch.tensor([text_mask(self.tokenizer, row) for row in tokens[:, 1:].tolist()])
            seconds = self.model.config.frames_per_position * self.feature_extractor.seconds_per_frame
            times = token_times(self.model, tokens, is_text.to(tokens.device), encoder_outputs, mask, seconds)
            result |= {"starts": times.start, "ends": times.end, "confidences": times.confidence}
        return result

    def postprocess(  # type: ignore[override]
        self, model_outputs: list[dict[str, Any]], return_timestamps: str | bool | None = None
    ) -> dict[str, Any]:
        """The pieces of one recording, joined."""
        texts, chunks = list[str](), list[dict[str, Any]]()
        for output in model_outputs:
            ids = output["tokens"][0].tolist()
            texts.append(self.tokenizer.decode(ids, skip_special_tokens=True))
            if return_timestamps:
                starts, ends, sure = (output[name][0].tolist() for name in ("starts", "ends", "confidences"))
                timed = timed_texts(self.tokenizer, ids[1:], starts, ends, sure, str(return_timestamps))
                chunks += [_chunk(item, output["starts_at"]) for item in timed]
        result: dict[str, Any] = {"text": joined(texts)}
        return {**result, "chunks": chunks} if return_timestamps else result


def _chunk(item: TimedText, starts_at: float) -> dict[str, Any]:
    times = (round(starts_at + item.start, 3), round(starts_at + item.end, 3))
    return {"text": item.text, "timestamp": times, "confidence": round(item.confidence, 4)}
