"""The systems of the paper's tables: which recipe each is of, and what it is in a size for a CPU and a few hours of
speech."""

from dataclasses import dataclass, field
from typing import Any

from experiments.real_speech.grid_options import RECIPES

from hf_entmax_asr.training.typed_yaml import read_tree

# About two million parameters each, as the recogniser of real_speech.yaml.
_TRANSFORMER = {
    "d_model": 144,
    "encoder_layers": 6,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 576,
    "decoder_ffn_dim": 576,
    "dropout": 0.1,
    "subsampling_channels": 16,
}
# Attention alone finds no alignment in a few hours of speech; in this size every attention head learns beside CTC.
_BESIDE_CTC = {"ctc_loss_weight": 0.3, "label_smoothing": 0.1}


@dataclass(frozen=True)
class System:
    """The model section of a recipe, with changes; `small` replaces its sizes."""

    recipe: str
    small: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)

    def model(self, size: str) -> dict[str, Any]:
        """The model section in one of `paper.SIZES`."""
        model = read_tree(RECIPES / f"{self.recipe}.yaml")["model"] | self.changes
        return model | self.small if size == "small" else model


def _proposed(transform: str, l1: bool = True) -> System:
    changes: dict[str, Any] = {"encoder_transform": transform, "decoder_transform": transform}
    if not l1:
        changes |= {"head_regularizer": "none", "head_regularizer_weight": 0.0, "head_regularizer_layers": []}
    # Probability is spread over several positions still when a short training ends.
    return System("paper_base", _TRANSFORMER | _BESIDE_CTC | {"firing_rule": "cumulative"}, changes)


SYSTEMS: dict[str, System] = {
    "transformer": System("baselines/transformer", _TRANSFORMER | _BESIDE_CTC),
    "explicit_sparse": System("baselines/explicit_sparse", _TRANSFORMER | _BESIDE_CTC),
    "factorized": System("baselines/factorized", _TRANSFORMER | _BESIDE_CTC),
    "combiner": System("baselines/combiner", _TRANSFORMER | _BESIDE_CTC),
    "las": System(
        "baselines/las",
        _BESIDE_CTC | {"d_model": 144, "encoder_lstm_size": 96, "decoder_layers": 1, "decoder_lstm_size": 144},
    ),
    "wav2letter": System(
        "baselines/wav2letter",
        {
            "d_model": 144,
            "conv_channels": [100, 100, 100, 120, 120, 120, 150, 150, 180, 180, 200, 200, 220, 240, 280],
            "conv_kernels": [13, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 21],
        },
    ),
    "jasper": System(
        "baselines/jasper",
        {
            "d_model": 144,
            "conv_block_repeats": 2,
            "conv_blocks_per_size": 1,
            "conv_channels": [48, 48, 64, 80, 96, 112, 128, 144],
            "conv_kernels": [11, 11, 13, 17, 21, 25, 29, 1],
        },
    ),
    "rnn_t": System(
        "baselines/rnn_t",
        {
            "d_model": 144,
            "encoder_layers": 3,
            "encoder_lstm_size": 128,
            "decoder_layers": 1,
            "decoder_embedding_size": 128,
            "decoder_lstm_size": 144,
            "joint_size": 144,
            "dropout": 0.1,
            "subsampling_channels": 16,
        },
    ),
    "sa_t": System("baselines/sa_t", _TRANSFORMER | {"joint_size": 144}),
    "sync_transformer": System("baselines/sync_transformer", _TRANSFORMER),
    "proposed": _proposed("entmax"),
    **{f"proposed-{transform}": _proposed(transform) for transform in ("softmax", "sparsemax", "entmax15")},
    **{
        f"proposed{'' if transform == 'entmax' else '-' + transform}-without-l1": _proposed(transform, l1=False)
        for transform in ("softmax", "sparsemax", "entmax")
    },
}
