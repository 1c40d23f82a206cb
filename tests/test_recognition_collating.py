"""Examples to batches: speeds, and what may not pass for perturbed."""

import numpy as np
import pytest
import torch

from hf_entmax_asr.augmentation import WaveformPerturbation, change_speed
from hf_entmax_asr.model.feature_extraction_entmax_asr import EntmaxAsrFeatureExtractor
from hf_entmax_asr.model.processing_entmax_asr import EntmaxAsrProcessor
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator
from hf_entmax_asr.tokenization import train_character_tokenizer

RATE = 16_000


def tone(frequency_hz: float, seconds: float = 0.5) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def processor() -> EntmaxAsrProcessor:
    return EntmaxAsrProcessor(EntmaxAsrFeatureExtractor(feature_size=20), train_character_tokenizer(["abcdef"]))


def test_the_collator_plays_each_example_at_its_speed(processor):
    examples = [{"audio": tone(400), "speed": 0.8}, {"audio": tone(400)}]
    batch = SpeechSeq2SeqCollator(processor)(examples)
    extractor = processor.feature_extractor
    assert batch["attention_mask"].sum(1).tolist() == [extractor.num_frames(10_000), extractor.num_frames(8000)]
    slow = extractor([change_speed(tone(400), 0.8)], sampling_rate=RATE, return_tensors="pt")["input_features"]
    assert torch.equal(batch["input_features"][0], slow[0])


def test_the_collator_does_not_pass_cached_features_off_as_perturbed(processor):
    collator = SpeechSeq2SeqCollator(processor, perturb=WaveformPerturbation(volume_db=3.0))
    with pytest.raises(ValueError, match="an example needs 'audio'; this one has"):
        collator([{"input_features": torch.zeros(9, 20)}])


def test_audio_without_speech_has_no_text(processor):
    collator = SpeechSeq2SeqCollator(processor, perturb=WaveformPerturbation(no_speech_share=0.5))
    examples = [{"audio": tone(400), "text": "abc"}] * 40
    batch = collator(examples, torch.Generator().manual_seed(0))
    end = processor.tokenizer.eos_token_id
    silent = batch["labels"][:, 0] == end
    assert 10 < silent.sum() < 30
    assert (batch["labels"][silent, 1:] == -100).all()
    assert (batch["labels"][~silent, -1] == end).all()
    features = batch["input_features"]
    assert torch.equal(features[~silent], features[~silent][:1].expand_as(features[~silent]))
    assert not any(torch.equal(row, features[~silent][0]) for row in features[silent])


def test_features_that_are_there_are_taken_where_the_audio_stays_as_it_is(processor):
    collator = SpeechSeq2SeqCollator(processor, perturb=WaveformPerturbation(noise_share=0.2, silence_share=0.2))
    there = torch.full((48, 20), 3.5, dtype=torch.float16)
    batch = collator([{"audio": tone(400), "input_features": there}] * 60, torch.Generator().manual_seed(0))
    taken = (batch["input_features"][:, :48] == 3.5).all(dim=2).all(dim=1)
    assert 25 < taken.sum() < 50
    assert (batch["attention_mask"].sum(1)[taken] == 48).all()
    made = SpeechSeq2SeqCollator(processor, perturb=collator.perturb)(
        [{"audio": tone(400)}] * 60, torch.Generator().manual_seed(0)
    )
    lengths = made["attention_mask"].sum(1)
    assert torch.equal(lengths[~taken], batch["attention_mask"].sum(1)[~taken])
    for row in (~taken).nonzero()[:, 0].tolist():
        frames = lengths[row]
        torch.testing.assert_close(batch["input_features"][row, :frames], made["input_features"][row, :frames])
    slow = {"audio": tone(400), "input_features": there, "speed": 0.8}
    assert SpeechSeq2SeqCollator(processor)([slow])["attention_mask"].shape[1] > 48
