"""A start from a checkpoint with another tokenizer: what is kept, what is made anew."""

import torch

from hf_entmax_asr.recognition.checkpoint import load_recogniser
from hf_entmax_asr.tokenization import train_character_tokenizer
from hf_entmax_asr.training import train
from hf_entmax_asr.training.new_tokenizer import with_tokenizer
from support.small_models import small_model
from support.tones import tiny_recipe, write_splits


def test_what_both_tokenizers_know_keeps_its_weights():
    old, new = train_character_tokenizer(["abcdef"]), train_character_tokenizer(["de fgh"])
    for tied in (True, False):
        model = small_model(vocab_size=len(old), ctc_loss_weight=0.3, tie_word_embeddings=tied)
        changed = with_tokenizer(model, old, new)
        assert changed.config.vocab_size == len(new) == changed.get_input_embeddings().weight.shape[0]
        assert model.config.vocab_size == len(old)
        for get in (
            lambda m: m.get_input_embeddings().weight,
            lambda m: m.lm_head.weight,
            lambda m: m.ctc_head.weight,
            lambda m: m.ctc_head.bias[:, None],
        ):
            for token, index in new.get_vocab().items():
                if token in old.get_vocab():
                    assert torch.equal(get(changed)[index], get(model)[old.get_vocab()[token]])
        rest = {n: p for n, p in model.named_parameters() if n.startswith(("model.encoder", "model.decoder.layer"))}
        assert all(torch.equal(p, changed.state_dict()[n]) for n, p in rest.items())
        assert (changed.lm_head.weight is changed.get_input_embeddings().weight) == tied


def test_a_recipe_starts_from_a_checkpoint_with_new_letters(tmp_path, caplog):
    tones = write_splits(tmp_path / "tones", train=12, validation=3)
    start = train(tiny_recipe(tones, schedule={"max_steps": 1}), tmp_path / "start").last
    for split in ("train", "validation"):
        file = tones / split / "metadata.csv"
        file.write_text(file.read_text().replace("d", "ß"))
        assert "ß" in file.read_text()
    tree = {"schedule": {"max_steps": 1}, "tokenizer": {"train_anew": True}}
    recipe = tiny_recipe(tones, **tree)
    recipe.start_from, recipe.model = str(start), {}
    with caplog.at_level("INFO", logger="hf_entmax_asr"):
        model, processor = load_recogniser(train(recipe, tmp_path / "run").last, "cpu")
    assert "keep their weights" in caplog.text
    assert "ß" in processor.tokenizer.get_vocab()
    assert model.config.vocab_size == len(processor.tokenizer)
