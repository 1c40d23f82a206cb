"""Checkpoints: the best and the last, averages."""

import pytest
import torch
from safetensors.torch import save_file

from hf_entmax_asr.recognition.checkpoint import CheckpointError
from hf_entmax_asr.training import average_checkpoints
from hf_entmax_asr.training.checkpointing import CheckpointStore
from support.tones import weights


def test_the_store_keeps_the_last_and_the_best(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_best=1)
    scores: dict[int, float] = {}
    for step, score in ((10, 5.0), (20, 3.0), (30, 4.0), (40, None), (50, 6.0)):
        if score is not None:
            scores[step] = score
        store.save(step, lambda folder, step=step: (folder / "step").write_text(str(step)), scores)
    assert store.steps() == [20, 40, 50]
    assert (tmp_path / "best" / "step").read_text() == "20"
    assert (tmp_path / "last" / "step").read_text() == "50"
    assert store.ranked(scores) == [20, 50]


def test_the_average_is_the_mean(tmp_path):
    for index, value in enumerate((1.0, 2.0, 6.0)):
        folder = tmp_path / str(index)
        (folder / "training_state").mkdir(parents=True)
        (folder / "config.json").write_text(str(index))
        save_file({"w": torch.full((2,), value), "half": torch.full((1,), value).half()}, folder / "model.safetensors")
    average_checkpoints([tmp_path / str(i) for i in range(3)], tmp_path / "mean")
    mean = weights(tmp_path / "mean")
    torch.testing.assert_close(mean["w"], torch.full((2,), 3.0))
    assert mean["half"].dtype == torch.float16
    assert sorted(p.name for p in (tmp_path / "mean").iterdir()) == ["config.json", "model.safetensors"]
    save_file({"other": torch.zeros(1)}, tmp_path / "1" / "model.safetensors")
    with pytest.raises(CheckpointError, match="another model"):
        average_checkpoints([tmp_path / "0", tmp_path / "1"], tmp_path / "mean")
