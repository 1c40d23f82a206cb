"""A corpus that can be written anywhere: letters are tones. And a recipe that trains a tiny model on it."""

import csv
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from hf_entmax_asr.training.recipe import recipe_from_dict

TONES_HZ = dict(zip("abcdef", (300, 500, 800, 1250, 1900, 2800), strict=True))


def write_tones(folder: Path, count: int, seed: int) -> None:
    """A split whose letters are tones: 120 ms each, silence for spaces and at both ends."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    rows = [("file_name", "text")]
    time = np.arange(1920) / 16000
    for index in range(count):
        words = ["".join(generator.choice(list(TONES_HZ), generator.integers(1, 4))) for _ in range(2)]
        text = " ".join(words)
        pieces = [0.3 * np.sin(2 * np.pi * TONES_HZ[c] * time) if c != " " else np.zeros(1920) for c in text]
        audio = np.concatenate([np.zeros(1600), *pieces, np.zeros(1600)])
        soundfile.write(folder / f"{index:03d}.flac", audio + generator.normal(0, 0.002, len(audio)), 16000)
        rows.append((f"{index:03d}.flac", text))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_splits(root: Path, **splits: int) -> Path:
    """A corpus with so many utterances in each split."""
    for seed, (name, count) in enumerate(splits.items()):
        write_tones(root / name, count, seed)
    return root


def tiny_recipe(root: Path, /, **sections):
    """A model of a few thousand weights with every random part switched on, 4 batches an epoch."""
    tree = {
        "model": {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
            "subsampling_channels": 2,
            "ctc_loss_weight": 0.3,
            "label_smoothing": 0.1,
            "head_drop": 0.2,
            "energy_bias_init": "auto",
            "head_regularizer": "gate_l1",
            "head_regularizer_weight": 0.01,
            "head_regularizer_layers": [0],
        },
        "features": {"feature_size": 20},
        "data": {"path": str(root)},
        "batching": {"frames_per_batch": 700, "short_first_epochs": 1},
        "augmentation": {"frequency_mask_bins": 4, "time_mask_frames": 10},
        "schedule": {"warmup_steps": 4, "max_steps": 8},
        "evaluation": {"tensorboard": False, "log_every_steps": 2},
    }
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values
    return recipe_from_dict(tree)


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors")


def plain_recipe(tones: Path, **sections):
    """Without dropout, noise or masks, so that only the mathematics of a step is left."""
    model = {"dropout": 0.0, "head_drop": 0.0, "energy_noise_std": 0.0}
    tree = {
        "model": model | sections.pop("model", {}),
        "augmentation": {"frequency_masks": 0, "time_masks": 0},
        "data": {"path": str(tones), "validation_split": "test"},
    }
    return tiny_recipe(tones, **tree | sections)
