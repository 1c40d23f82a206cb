"""Small random Whisper checkpoints of every shape, with a tokenizer of their own, as transformers saves them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

TEXTS = ["the quick brown fox jumps over the lazy dog", "Pack my box with five dozen liquor jugs, please."]
SHAPES = {
    "english": {},
    "multilingual": {"languages": ("en", "de", "zh")},
    "large-v3": {"languages": ("en", "de"), "num_mel_bins": 128},
    "turbo": {"languages": ("en", "de"), "num_mel_bins": 128, "encoder_layers": 3, "decoder_layers": 1},
}


def make_whisper(folder: Path, languages: tuple[str, ...] = (), seed: int = 0, **options: int) -> Path:
    """A Whisper of width 16 in `folder`; English alone, or with these languages."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    specials = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages)]
    specials += ["<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer.add_special_tokens(specials)
    ids = {name: tokenizer.token_to_id(name) for name in specials}
    end, start, no_times = (ids[name] for name in ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"))
    shape = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 80, **options}
    config = WhisperConfig(
        vocab_size=tokenizer.get_vocab_size(),
        encoder_attention_heads=2,
        decoder_attention_heads=4,
        encoder_ffn_dim=24,
        decoder_ffn_dim=32,
        max_target_positions=40,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=start,
        **shape,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():  # so that tokens vary and attention is not flat
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "out_proj.weight", "fc2.weight", "bias")):
                parameter.copy_(torch.randn_like(parameter) * 0.4)
        model.model.decoder.embed_positions.weight.normal_()
    settings = {"suppress_tokens": [1, 2], "begin_suppress_tokens": [3, end], "max_length": 40}
    settings |= {"no_timestamps_token_id": no_times, "is_multilingual": bool(languages)}
    settings |= {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "decoder_start_token_id": start}
    if languages:
        settings["lang_to_id"] = {f"<|{code}|>": ids[f"<|{code}|>"] for code in languages}
        settings["task_to_id"] = {task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}
    model.generation_config = GenerationConfig(**settings)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=specials[0], eos_token=specials[0], pad_token=specials[0]
    ).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=shape["num_mel_bins"]).save_pretrained(folder)
    return folder
