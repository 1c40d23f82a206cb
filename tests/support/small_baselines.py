"""The systems of the paper's Tables II and III in a few thousand weights."""

import torch

from hf_entmax_asr.model.configuration_entmax_asr_baselines import EntmaxAsrBaselineConfig
from hf_entmax_asr.model.modeling_entmax_asr_baselines import recogniser_class
from support.small_models import SMALL

SIZES = {
    "encoder_lstm_size": 6,
    "decoder_lstm_size": 7,
    "decoder_embedding_size": 5,
    "joint_size": 9,
    "joint_frames": 5,
    "decoder_chunk_size": 4,
    "decoder_chunk_overlap": 1,
}
SYSTEMS = {  # what sets each apart; of the recogniser's own class where no key of a baseline stands in it
    "transformer": {},
    "explicit_sparse": {"encoder_transform": "topk", "decoder_transform": "topk", "attention_topk": 2},
    "factorized": {"encoder_pattern": "fixed", "encoder_pattern_size": 3, "encoder_pattern_columns": 1},
    "combiner": {"encoder_type": "constituent", "ctc_loss_weight": 0.3},
    "las": {"encoder_type": "pyramid", "encoder_layers": 3, "head": "lstm_attention", "scheduled_sampling": 0.5},
    "wav2letter": {"encoder_type": "glu_conv", "head": "ctc", "conv_channels": [8, 6], "conv_kernels": [5, 4]},
    "jasper": {
        "encoder_type": "jasper",
        "head": "ctc",
        "conv_block_repeats": 2,
        "conv_blocks_per_size": 1,
        "conv_channels": [6, 8, 12, 16],
        "conv_kernels": [5, 3, 5, 1],
    },
    "rnn_t": {"encoder_type": "blstm", "head": "transducer"},
    "sa_t": {
        "head": "transducer",
        "predictor": "self_attention",
        "encoder_window": [3, 1],
        "encoder_type": "transformer",
        "path_loss_weight": 0.3,
    },
    "sync_transformer": {"head": "transducer", "predictor": "chunk_decoder"},
}


def baseline_config(name: str, **options) -> EntmaxAsrBaselineConfig:
    sizes = {key: value for key, value in SMALL.items() if not key.startswith("energy")}
    return EntmaxAsrBaselineConfig(**{**sizes, **SIZES, **SYSTEMS[name], **options})


def baseline(name: str, **options):
    """A model in eval mode."""

    torch.manual_seed(0)
    config = baseline_config(name, **options)
    return recogniser_class(config)(config).eval()
