"""Single utterances to look at and to listen to, for the report of an analysis."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_entmax_asr.analysis.report import Example
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.recognition.collating import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.evaluation import decoding_as, is_monotonic
from hf_entmax_asr.tokenization import writes_bytes


def written_tokens(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Names of tokens (U,), written as this package's tokenizers do, whatever the tokenizer: "▁" where a word begins,
    "</s>" the end, "<s>" another special token. Whisper's, of bytes, write Ġ for a space and bytes for letters."""
    names: list[str] = tokenizer.convert_ids_to_tokens(ids)
    if not writes_bytes(tokenizer):
        return names
    special = dict.fromkeys(tokenizer.get_added_vocab().values(), "<s>") | {tokenizer.eos_token_id: "</s>"}
    return [
        special.get(id_) or "▁" * name.startswith("Ġ") + tokenizer.decode([id_]).strip()
        for id_, name in zip(ids, names, strict=True)
    ]


@torch.no_grad()
def example_of(model: Any, processor: Any, row: Mapping[str, Any], head: tuple[int, int] | None = None) -> Example:
    """One row of a data set as an `Example` for the report: recognised greedily, with maps and hard stops.

    Args:
        row: with the columns id, audio and text, as `load_folder` gives it.
        head: (layer, head) whose stops carry the tokens; the first one by default.
    """
    rate = processor.feature_extractor.sampling_rate
    waveform = read_audio(row["audio"], sampling_rate=rate)
    batch = SpeechSeq2SeqCollator(processor)([{"audio": waveform}])
    inputs = {key: value.to(model.device) for key, value in batch.items()}
    was_training = model.training
    model.eval()
    try:
        with decoding_as(model, "hard" if is_monotonic(model) else None):
            most = int(model.position_mask(inputs["attention_mask"]).sum()) + 1
            sequences = model.generate(**inputs, max_new_tokens=most, do_sample=False, num_beams=1)
            boundaries = model.head_boundaries(sequences, **inputs)
            maps = model.model.encoder(**inputs, output_attentions=True).attentions
    finally:
        model.train(was_training)
    first = model.config.first_monotonic_layer
    alphas = model.alphas()
    sources = [model.config.map_layer("encoder", layer) for layer in range(len(maps))]
    names = [f"encoder.layers.{layer}.self_attn" for layer in sources]
    return Example(
        name=row["id"],
        reference=row["text"],
        hypothesis=processor.tokenizer.batch_decode(sequences, skip_special_tokens=True)[0],
        waveform=waveform,
        sampling_rate=rate,
        features=batch["input_features"][0],
        maps=[weights[0].cpu() for weights in maps],
        alphas=[alphas[name].cpu() for name in names] if names[0] in alphas else None,
        tokens=written_tokens(processor.tokenizer, sequences[0, 1:].tolist()),
        boundaries=[layer[0].cpu() for layer in boundaries] if boundaries else None,
        head=(first, 0) if head is None else head,
        first_layer=first,
    )
