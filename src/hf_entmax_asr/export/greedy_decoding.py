"""Greedy decoding with exported graphs: numpy and, for ONNX, onnxruntime; made to be copied and changed.

`scripts/export.py` puts a copy of this file beside the graphs that it writes:

    recogniser = OnnxRecogniser("exported")
    ids = recogniser.generate(input_features, attention_mask)

The token ids are those of the model's own `generate`, greedy: start token and prompt, the text, its end, then padding.

Axes: B batch, T frames, F mel bins, U tokens, V vocabulary.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Graph = Callable[..., dict[str, Any]]  # tensors by name -> tensors by name


class OnnxRecogniser:
    """The folder that `scripts/export.py` has written, with ONNX graphs."""

    def __init__(self, folder: str | Path, threads: int = 0):
        """threads: of onnxruntime; 0: as many as there are cores."""
        folder = Path(folder)
        self.settings = json.loads((folder / "decoding.json").read_text(encoding="utf-8"))
        self.encoder = onnx_graph(folder / self.settings["encoder"]["file"], threads)
        self.decoder = onnx_graph(folder / self.settings["decoder"]["file"], threads)

    def generate(self, input_features: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
        """As `greedy`."""
        return greedy(self.settings, self.encoder, self.decoder, input_features, attention_mask)


def onnx_graph(file: Path, threads: int = 0) -> Graph:
    """A graph of the file, to be called with its inputs by name."""
    import onnxruntime  # here, for `greedy` does without it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options)
    outputs = [output.name for output in session.get_outputs()]
    return lambda **tensors: dict(zip(outputs, session.run(outputs, tensors), strict=True))


def greedy(
    settings: dict[str, Any],
    encoder: Graph,
    decoder: Graph,
    input_features: np.ndarray,
    attention_mask: np.ndarray | None = None,
) -> np.ndarray:
    """The likeliest token after the likeliest token.

    Args:
        settings: decoding.json.
        encoder, decoder: the graphs.
        input_features: (B, T, F) of the feature extractor.
        attention_mask: (B, T), 1 where a frame is real; None: all are.

    Returns:
        (B, U) token ids.

    Raises:
        ValueError: more audio than the model can read at a time.
    """
    features, mask = padded(settings, np.asarray(input_features, np.float32), attention_mask)
    limits = most_tokens(settings, features, mask)  # (B,)
    heard = encoder(input_features=features, attention_mask=mask)
    heard = {name: tensor for name, tensor in heard.items() if name in settings["decoder"]["inputs"]}
    carried = {each["input"]: nothing_yet(each, len(features)) for each in settings["carried"]}
    given = len(settings["start_ids"])
    ids = np.tile(np.asarray(settings["start_ids"], np.int64), (len(features), 1))  # (B, U)
    ended = np.zeros(len(features), bool)
    for place in range(longest(settings, limits) - 1):
        outputs = decoder(token_ids=ids[:, place : place + 1], **heard, **carried)
        carried = {each["input"]: outputs[each["output"]] for each in settings["carried"]}
        if place + 1 < given:  # of start token and prompt the next is known
            continue
        following = choose(settings, np.asarray(outputs["logits"]), ids, limits)
        following = np.where(ended, settings["pad_id"], following)
        ids = np.concatenate([ids, following[:, None]], 1)
        ended |= np.isin(following, settings["end_ids"])
        if ended.all():
            break
    return ids


def choose(settings: dict[str, Any], logits: np.ndarray, ids: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Logits (B, V) -> the next ids (B,) behind ids (B, U): the likeliest of those that are allowed, and the end where
    the audio cannot hold more."""
    scores, tokens = logits.copy(), ids.shape[1] - len(settings["start_ids"])
    scores[:, settings["suppressed_ids"]] = -np.inf
    if tokens == 0:
        scores[:, settings["suppressed_at_start_ids"]] = -np.inf
    forbid_circles(settings, scores, ids)
    following = scores.argmax(1)
    return np.where(tokens >= limits, settings["end_ids"][0], following) if settings["end_ids"] else following


def forbid_circles(settings: dict[str, Any], scores: np.ndarray, ids: np.ndarray) -> None:
    """Scores (B, V) behind ids (B, U): where a phrase stands as often in a row as one may, it cannot begin again."""
    most = settings["max_repeats"]
    for phrase in range(1, min(settings["longest_phrase"], ids.shape[1] // most if most else 0) + 1):
        tail = ids[:, -most * phrase :]
        circles = (tail[:, phrase:] == tail[:, :-phrase]).all(1)
        scores[circles, tail[circles, -phrase]] = -np.inf


def padded(
    settings: dict[str, Any], features: np.ndarray, attention_mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Features (B, T, F) and mask (B, T) of as many frames as the encoder takes: whole positions, and two at least."""
    frames, step, most = features.shape[1], settings["frames_per_position"], settings["most_frames"]
    if most is not None and frames > most:
        raise ValueError(f"{frames} frames of audio are more than the {most} that the model reads; cut it at pauses.")
    mask = np.ones(features.shape[:2]) if attention_mask is None else attention_mask
    more = (0, max(-frames % step, 2 * step - frames))
    return np.pad(features, ((0, 0), more, (0, 0))), np.pad(np.asarray(mask, np.int64), ((0, 0), more))


def most_tokens(settings: dict[str, Any], features: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(B,) tokens that a text can have, its end aside: by the positions in which something sounds, which in silence,
    the same in all mel bins, nothing does."""
    sounding = (features != features[..., :1]).any(2) & (mask != 0)
    positions = -(-sounding.sum(1) // settings["frames_per_position"])
    return np.ceil(positions.astype(np.float32) * np.float32(settings["max_tokens_per_position"])).astype(np.int64)


def longest(settings: dict[str, Any], limits: np.ndarray) -> int:
    """Most ids of a row, start and end included."""
    given = len(settings["start_ids"])
    result = given + int(limits.max()) + 1
    if settings["max_new_tokens"] is not None:
        result = min(result, given + settings["max_new_tokens"])
    return result if settings["max_length"] is None else min(result, settings["max_length"])


def nothing_yet(carried: dict[str, Any], batch: int) -> np.ndarray:
    """What the first step of the decoder takes in the place of what the step before would have returned."""
    return np.zeros([batch if size == "batch" else size for size in carried["shape"]], carried["dtype"])
