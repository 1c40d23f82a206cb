"""Loading: the model first, ready to recognise; and folders that hold no recogniser."""

from pathlib import Path

import pytest
import torch

from hf_entmax_asr import EntmaxAsrForConditionalGeneration, EntmaxAsrProcessor, load_recogniser
from hf_entmax_asr.recognition import CheckpointError

CHECKPOINT = Path(__file__).parent / "checkpoint_of_0.1.0"


@pytest.mark.parametrize("place", [CHECKPOINT, str(CHECKPOINT)])
def test_a_recogniser_is_a_model_and_its_processor(place):
    model, processor = load_recogniser(place, "cpu")
    assert isinstance(model, EntmaxAsrForConditionalGeneration)
    assert isinstance(processor, EntmaxAsrProcessor)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.device == torch.device("cpu")
    assert not model.training


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder nowhere; a Hub repository would be named owner/name"):
        load_recogniser("nowhere")
    with pytest.raises(CheckpointError, match=f"{tmp_path} is not a checkpoint of hf_entmax_asr"):
        load_recogniser(tmp_path)
