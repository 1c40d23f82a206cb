"""What the study compares: transforms, ways of reading the audio, and Whisper itself.

The standard library alone: the program reads its options, which choose from these, before it imports torch.
"""

from typing import Any

TRANSFORMS = ("softmax", "entmax")

# How the decoder reads -> what is set at conversion, and between which positions around a word's end a head may stop
# for free. Whisper has 50 positions a second.
MONOTONIC = {"cross_attention": "monotonic", "energy_bias_init": -2.5, "firing_rule": "cumulative"}
READINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lookback": {**MONOTONIC, "monotonic_chunk_size": None},
    "mocha": {**MONOTONIC, "monotonic_chunk_size": 16},
    "single": {**MONOTONIC, "monotonic_chunk_size": 1},
}
REFERENCE_WINDOWS = {"lookback": "[null,10]", "mocha": "[10,10]", "single": "[10,10]"}
PEERS = {
    "whisper": "Whisper itself, untouched, 30 s windows",
    "whisper-tuned": "Whisper itself, fine-tuned, 30 s windows",
}
