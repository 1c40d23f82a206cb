"""transformers' own Seq2SeqTrainer with this model, its collator and its callback."""

from pathlib import Path

import pytest
import torch

from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.recognition import SpeechSeq2SeqCollator
from hf_entmax_asr.recognition.utterances import prepare_split
from hf_entmax_asr.training import HeadGateCallback, word_error_metrics
from hf_entmax_asr.training.preparation import build_config, build_model, build_processor, load_rows
from support.tones import tiny_recipe, write_splits


@pytest.fixture(scope="module")
def tones(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("tones"), train=24, validation=5)


def test_seq2seq_trainer_trains_and_generates(tones, tmp_path):
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    recipe = tiny_recipe(tones)
    splits = load_folder(tones)
    processor = build_processor(recipe, load_rows(recipe))
    model = build_model(recipe, build_config(recipe, processor), prepare_split(splits["train"], processor))
    model.config.head_regularizer_weight = 100.0  # any step closes a gate that the callback thresholds
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        predict_with_generate=True,
        generation_max_length=8,
        remove_unused_columns=False,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        data_collator=SpeechSeq2SeqCollator(processor),
        processing_class=processor,
        compute_metrics=word_error_metrics(processor.tokenizer),
        callbacks=[HeadGateCallback()],
    )
    trainer.train()
    trainer.args.predict_with_generate, trainer.compute_metrics = False, None
    assert trainer.evaluate()["eval_loss"] > 0
    evaluation = [entry for entry in trainer.state.log_history if "eval_wer" in entry]
    assert len(evaluation) == 1
    assert evaluation[0]["eval_wer"] > 0
    assert evaluation[0]["eval_reference_words"] == 10
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) > 0.9 * len(before)
    assert all(bool((gate == 0).all()) for gate in model.gates().values())


def test_trainers_own_label_smoothing(tones, tmp_path):
    from transformers import Trainer, TrainingArguments

    recipe = tiny_recipe(
        tones,
        model={
            "ctc_loss_weight": 0.0,
            "label_smoothing": 0.0,
            "head_regularizer": "none",
            "head_regularizer_layers": [],
        },
    )
    splits = load_folder(tones)
    processor = build_processor(recipe, load_rows(recipe))
    model = build_model(recipe, build_config(recipe, processor), prepare_split(splits["train"], processor))
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        label_smoothing_factor=0.1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = SpeechSeq2SeqCollator(processor, decoder_inputs_by=model)
    Trainer(model=model, args=arguments, train_dataset=splits["train"], data_collator=collator).train()
    batch = collator([splits["train"][i] for i in range(3)])
    model.eval()
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        given = {name: batch[name] for name in ("input_features", "attention_mask", "labels")}
        torch.testing.assert_close(logits, model(**given).logits)
    model.config.decoder_prompt_ids = [4]
    with pytest.raises(ValueError, match=r"set config\.label_smoothing instead"):
        SpeechSeq2SeqCollator(processor, decoder_inputs_by=model)


def test_wrappers_of_text_models_may_hand_on_inputs_that_are_none(tones):
    from support.small_models import features, small_model, targets

    model, (x, mask) = small_model(), features()
    plain = model(x, attention_mask=mask, labels=targets())
    wrapped = model(input_features=x, attention_mask=mask, labels=targets(), input_ids=None, inputs_embeds=None)
    assert torch.equal(plain.loss, wrapped.loss)
    with pytest.raises(ValueError, match="input_ids means nothing here"):
        model(x, labels=targets(), input_ids=targets())
