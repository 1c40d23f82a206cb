"""Checkpoints that an earlier version wrote load and compute what they computed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

from hf_entmax_asr import kernels

CHECKPOINT = Path(__file__).parent / "checkpoint_of_0.1.0"


@pytest.fixture(scope="module")
def expected():
    return load_file(CHECKPOINT / "expected.safetensors")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(CHECKPOINT)


@pytest.fixture
def model():
    return AutoModelForSpeechSeq2Seq.from_pretrained(CHECKPOINT).eval()


def test_features_are_those_of_then(expected, processor):
    waveforms = [expected[f"waveform.{index}"].numpy() for index in range(2)]
    batch = processor(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt")
    torch.testing.assert_close(batch["input_features"], expected["input_features"], atol=1e-6, rtol=0)
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


@pytest.mark.parametrize("form", ["eager", "auto"])
def test_outputs_are_those_of_then(expected, model, form):
    batch = {name: expected[name] for name in ("input_features", "attention_mask", "labels")}
    with torch.no_grad(), kernels.use(form):
        outputs = model(**batch)
    for name in ("logits", "ctc_logits", "loss"):
        torch.testing.assert_close(outputs[name], expected[name], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("decoding", ["hard", "soft", "beams"])
def test_tokens_are_those_of_then(expected, model, decoding):
    options = {"num_beams": 3} if decoding == "beams" else {"min_new_tokens": 12}
    options["max_repeats"] = 0  # an untrained model repeats itself, and then nothing kept it from it
    model.config.monotonic_decoding = "soft" if decoding == "soft" else "hard"
    batch = {name: expected[name] for name in ("input_features", "attention_mask")}
    assert torch.equal(model.generate(**batch, max_new_tokens=12, **options), expected[decoding])
