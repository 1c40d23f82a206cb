"""Whisper itself in transformers, with its 30 s windows: untouched, and tuned for as many CPU-minutes as a cell."""

import json
import re
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from experiments.from_whisper.cell import Plan
from experiments.real_speech.grid_cell import RESULT
from experiments.real_speech.spoken_text import Speaker, UnspeakableError
from transformers import (
    AutoProcessor,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    WhisperForConditionalGeneration,
)
from transformers.trainer_utils import get_last_checkpoint

from hf_entmax_asr.atomic_files import write_text_atomically
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.metrics import Scores
from hf_entmax_asr.model.losses import IGNORED_LABEL
from hf_entmax_asr.recognition.utterances import read_split

RATE = 16_000
TUNED_UTTERANCES = 480  # about as many CPU-minutes as a cell of 400 steps: 30 s windows cost ten times as much
TUNED_BATCH = 8
RECOGNISED_BATCH = 8
MOST_TOKENS = 200


_speaker = Speaker({}, numbers=True)  # the rule by which the corpus's own texts were made


def spoken(text: str) -> str:
    """What Whisper writes, as the corpus writes it: numbers in words, no punctuation, lower case."""
    try:
        return _speaker(text).lower()
    except UnspeakableError:
        return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower()).split())


def run_peer(name: str, plan: Plan) -> dict[str, Any]:
    """ "whisper" or "whisper-tuned": recognise the test split, train before that for the second."""
    folder = plan.output / name
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    torch.set_num_threads(plan.threads)
    processor = AutoProcessor.from_pretrained(plan.whisper)
    result: dict[str, Any] = {}
    if name == "whisper":
        model = WhisperForConditionalGeneration.from_pretrained(plan.whisper)
    else:
        model, result = _tune(processor, plan, folder)
    result |= _recognise(model.eval(), processor, plan, folder)
    write_text_atomically(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return result


def _features(processor: Any, audios: Sequence[Any]) -> torch.Tensor:
    waveforms = [read_audio(audio, RATE) for audio in audios]
    return processor.feature_extractor(waveforms, sampling_rate=RATE, return_tensors="pt").input_features


def _tune(processor: Any, plan: Plan, folder: Path) -> tuple[Any, dict[str, Any]]:
    rows = read_split(str(plan.data), "train")
    order = np.random.default_rng(0).permutation(len(rows))[:TUNED_UTTERANCES].tolist()
    tokenizer = processor.tokenizer

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = tokenizer([example["text"].lower() for example in examples]).input_ids
        labels = [row[1:] for row in labels]  # the model itself prepends the start token
        padded = [torch.tensor(row) for row in labels]
        return {
            "input_features": _features(processor, [example["audio"] for example in examples]),
            "labels": torch.nn.utils.rnn.pad_sequence(padded, batch_first=True, padding_value=IGNORED_LABEL),
        }

    model = WhisperForConditionalGeneration.from_pretrained(plan.whisper)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder / "run"),
        per_device_train_batch_size=TUNED_BATCH,
        num_train_epochs=1,
        learning_rate=2e-5,
        warmup_steps=10,
        save_steps=20,
        save_total_limit=1,
        logging_steps=10,
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        dataloader_num_workers=0,
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(model=model, args=arguments, train_dataset=rows.select(order), data_collator=collate)
    last = get_last_checkpoint(str(folder / "run")) if (folder / "run").is_dir() else None
    before = resource.getrusage(resource.RUSAGE_SELF)
    trainer.train(resume_from_checkpoint=last)
    after = resource.getrusage(resource.RUSAGE_SELF)
    minutes = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 60
    return model, {"steps": trainer.state.global_step, "cpu_minutes": None if last else round(minutes, 2)}


@torch.no_grad()
def _recognise(model: Any, processor: Any, plan: Plan, folder: Path) -> dict[str, Any]:
    rows = read_split(str(plan.data), plan.test_split)
    texts: list[str] = []
    began = time.process_time()
    for start in range(0, len(rows), RECOGNISED_BATCH):
        batch = rows[start : start + RECOGNISED_BATCH]
        ids = model.generate(_features(processor, batch["audio"]), max_new_tokens=MOST_TOKENS, num_beams=1)
        texts += processor.batch_decode(ids, skip_special_tokens=True)
    seconds = (time.process_time() - began) / len(rows)
    references = [text.lower() for text in rows["text"]]
    texts = [spoken(text) for text in texts]
    records = zip(rows["id"], references, texts, strict=True)
    lines = (json.dumps({"id": i, "reference": r, "hypothesis": h}) + "\n" for i, r, h in records)
    write_text_atomically(folder / "full.jsonl", "".join(lines))
    scores = {"full": Scores.of(references, texts).as_dict()}
    return {"scores": scores, "cpu_seconds_per_utterance": round(seconds, 4), "parameters": model.num_parameters()}
