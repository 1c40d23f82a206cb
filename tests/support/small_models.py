"""Small models and inputs for the tests of the model."""

import torch
from torch import Tensor

from hf_entmax_asr import EntmaxAsrConfig, EntmaxAsrForConditionalGeneration

CHUNKS = (1, 4, None)
SMALL = {
    "vocab_size": 24,
    "num_mel_bins": 12,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "subsampling_channels": 3,
    "dropout": 0.0,
    "energy_noise_std": 0.0,
    "energy_bias_init": -0.5,
}


def small_config(**options) -> EntmaxAsrConfig:
    return EntmaxAsrConfig(**{**SMALL, **options})


def small_model(seed: int = 0, lively: bool = False, **options) -> EntmaxAsrForConditionalGeneration:
    """A model in eval mode. An untrained one repeats its first token and stays where it starts in the audio; a `lively`
    one has larger weights, so that tokens vary and heads walk."""
    torch.manual_seed(seed)
    if lively:
        options = {"tie_word_embeddings": False, **options}
    model = EntmaxAsrForConditionalGeneration(small_config(**options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if lively and "decoder" in name and name.endswith(("q_proj.weight", "out_proj.weight", "fc2.weight")):
                parameter.mul_(4)
            if lively and name in ("lm_head.weight", "model.encoder.layer_norm.weight"):
                parameter.mul_(3)
    return model


def features(batch: int = 3, frames: int = 61, seed: int = 1, mel_bins: int = 12) -> tuple[Tensor, Tensor]:
    """Random input_features (B, T, F) and their attention_mask: each utterance a fifth shorter than the one before."""
    generator = torch.Generator().manual_seed(seed)
    input_features = torch.randn(batch, frames, mel_bins, generator=generator)
    lengths = torch.tensor([round(frames * 0.8**index) for index in range(batch)])
    mask = (torch.arange(frames) < lengths[:, None]).long()
    return input_features * mask.unsqueeze(-1), mask


def targets(batch: int = 3, tokens: int = 6, vocab_size: int = 24) -> Tensor:
    """Random labels (B, U) that end with </s>, one token shorter from utterance to utterance."""
    labels = torch.randint(4, vocab_size, (batch, tokens), generator=torch.Generator().manual_seed(2))
    for index in range(batch):
        labels[index, tokens - 1 - index] = 2
        labels[index, tokens - index :] = -100
    return labels
