"""What `generate` is given, checked; how long a text can be, by its audio; and where it goes in circles.

Axes: B batch, T frames, S encoder positions, H heads, U tokens, F mel bins, V vocabulary.
"""

import functools
import math
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutput

from .configuration_entmax_asr import EntmaxAsrConfig

Generate = TypeVar("Generate", bound=Callable[..., Any])

LARGEST_INPUT = 1e6  # of features and encoder states; both are numbers around 1
NO_LIMIT = 1_000_000  # tokens: the max_length of a generation config that leaves the limit to the audio
MAX_REPEATS = 8  # 19,000 utterances of games have no phrase more often in a row ("yes" 6 times, "dubi" 8)
LONGEST_PHRASE = 16  # tokens


def gathers_shards(generate: Generate) -> Generate:
    """Decorator of `generate`: a model that is shared out over processes (fully_shard) gathers its weights for it.

    By itself it does so for `forward` alone, and `generate` runs the encoder and the decoder besides.
    """

    @functools.wraps(generate)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        fsdp = sys.modules.get("torch.distributed.fsdp")  # loaded by whoever sharded the model
        if fsdp is not None and isinstance(self, fsdp.FSDPModule) and "generate" not in vars(self):
            fsdp.register_fsdp_forward_method(self, "generate")
            return self.generate(*args, **kwargs)
        return generate(self, *args, **kwargs)

    return run  # type: ignore[return-value]


def check_source(
    config: EntmaxAsrConfig,
    features: Tensor | None,
    encoder_outputs: BaseModelOutput | tuple | None,
    attention_mask: Tensor | None,
    cache: Cache | None = None,
) -> None:
    """Refuses what the audio cannot be: numbers of no filterbank, states that are none, a mask or cache of other audio.

    What follows trusts these shapes, native code included; a text would come out of whatever it reads.

    Raises:
        ValueError: with the shape or value, and what it must be.
    """
    if encoder_outputs is not None:
        source, name, width = encoder_outputs[0], "encoder_outputs", config.d_model
    elif isinstance(features, Tensor):
        source, name, width = features, "input_features", config.num_mel_bins
    else:
        return
    if source.ndim != 3 or source.shape[2] != width or not source.numel():
        raise ValueError(f"{name} has the shape {tuple(source.shape)}; it must be (utterances, time, {width}).")
    peak = source.detach().abs().amax()  # NaN where any is
    if not peak < LARGEST_INPUT:
        raise ValueError(f"{name} reaches {peak:g}; it must hold finite numbers below {LARGEST_INPUT:g}.")
    rows, length = source.shape[:2]
    if cache is not None:
        check_cache(cache, length if encoder_outputs is not None else config.positions_of(length))
    if attention_mask is None:
        return
    attention_mask = of_frames(attention_mask)
    if attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}; it must be (utterances, frames)."
        )
    marked = attention_mask.shape[1] if encoder_outputs is None else config.positions_of(attention_mask.shape[1])
    if attention_mask.shape[0] != rows or marked != length:
        raise ValueError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, which is not that of {name} "
            f"{tuple(source.shape)}: it holds 1 or 0 for each of the feature frames of each utterance."
        )


def of_frames(attention_mask: Tensor) -> Tensor:
    """A mask of frames (B, T), also out of one of all features (B, T, F)."""
    return attention_mask[..., -1] if attention_mask.ndim == 3 else attention_mask


def check_cache(cache: Cache, positions: int) -> None:
    """Refuses a cache whose heads stand outside audio of so many encoder positions S, or that is of other audio.

    Raises:
        ValueError: with the layer.
    """
    for index, layer in enumerate(getattr(getattr(cache, "cross_attention_cache", None), "layers", ())):
        if layer.is_initialized and layer.keys.shape[2] not in (0, positions):
            raise ValueError(
                f"layer {index} of past_key_values holds keys of {layer.keys.shape[2]} encoder positions; this audio "
                f"has {positions}. Give the cache that belongs to it, or none."
            )
        progress = getattr(layer, "progress", None)  # (B, H, U) where heads stop, or (B, H, U, S)
        if progress is None or not progress.numel():
            continue
        if progress.ndim == 4:
            fits = progress.shape[3] == positions
        else:
            fits = not progress.is_floating_point() and bool((progress >= 0).all() and (progress < positions).all())
        if not fits:
            raise ValueError(
                f"layer {index} of past_key_values has heads that stand outside the {positions} encoder positions of "
                "this audio. Give the cache that belongs to it, or none."
            )


def without_text_inputs(options: dict[str, Any]) -> dict[str, Any]:
    """Without `input_ids` and `inputs_embeds`, which wrappers for text models (PEFT's of SEQ_2_SEQ_LM) hand on as None.

    Raises:
        ValueError: one of them holds something.
    """
    given = [name for name in ("input_ids", "inputs_embeds") if options.get(name) is not None]
    if given:
        raise ValueError(f"{given[0]} means nothing here: give input_features and decoder_{given[0]}.")
    return {name: value for name, value in options.items() if name not in ("input_ids", "inputs_embeds")}


def most_tokens(
    config: EntmaxAsrConfig,
    features: Tensor | None,
    encoder_outputs: BaseModelOutput | tuple | None,
    attention_mask: Tensor | None,
) -> Tensor | None:
    """(B,) tokens that the text of each utterance can have, the end of a sentence aside.

    As many for each encoder position as the densest text of the training had, and some more (see
    `max_tokens_per_position` of the configuration). Frames in which nothing sounds do not count; where all are such,
    there is no text.
    """
    if encoder_outputs is not None and features is None:
        states = encoder_outputs[0]
        frames = states.new_full((states.shape[0],), states.shape[1] * config.frames_per_position, dtype=torch.long)
        if attention_mask is not None:
            frames = of_frames(attention_mask).sum(dim=1)
    elif isinstance(features, Tensor):
        heard = sounds(features)
        frames = (heard if attention_mask is None else heard & of_frames(attention_mask).bool()).sum(dim=1)
    else:
        return None
    return tokens_of_frames(config, frames)


def tokens_of_frames(config: EntmaxAsrConfig, frames: Tensor) -> Tensor:
    """Tokens that a text can have for so many frames in which something sounds."""
    return (config.positions_of(frames) * config.max_tokens_per_position).ceil().long()


def sounds(features: Tensor) -> Tensor:
    """(..., T, F) -> (..., T), where something sounds: a frame of silence is as low as values go in all mel bins, which
    no sound is."""
    return (features != features[..., :1]).any(dim=-1)


class EndWithAudio(LogitsProcessor):
    """Ends each hypothesis when it has as many tokens as its utterance can have.

    Attributes:
        cut: (B,) whether a hypothesis of the utterance would have gone on.
    """

    def __init__(self, limits: Tensor, eos_token_ids: Tensor, given: int) -> None:
        """`limits` (B,); `given` tokens, start and prompt, stand before the text."""
        self.limits, self.eos_token_ids, self.given = limits, eos_token_ids, given
        self.first = int(limits.min())
        self.cut = torch.zeros_like(limits, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (B·beams, given + tokens so far), scores (B·beams, V)."""
        tokens = input_ids.shape[1] - self.given
        if tokens < self.first:
            return scores
        beams = len(scores) // len(self.limits)
        over = (tokens >= self.limits).to(scores.device).repeat_interleave(beams)  # (B·beams,)
        ends = self.eos_token_ids.to(scores.device)
        done = torch.isin(input_ids[:, self.given :], ends).any(dim=1) | torch.isin(scores.argmax(dim=-1), ends)
        self.cut |= (over & ~done).view(-1, beams).any(dim=1).to(self.cut.device)
        ended = torch.full_like(scores, -math.inf)
        ended[:, ends[0]] = 0.0
        return torch.where(over[:, None], ended, scores)


class Suppress(LogitsProcessor):
    """Forbids tokens, at one length of the text or at every one, at the cost of these tokens alone.

    Transformers' own looks for every token of the vocabulary among them: a tenth of the time of Whisper tiny.
    """

    def __init__(self, tokens: Tensor, at: int | None = None) -> None:
        self.tokens, self.at = tokens.long(), at  # none: transformers makes floats of them

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (N, U), scores (N, V)."""
        if self.at is not None and input_ids.shape[1] != self.at:
            return scores
        known = (self.tokens >= 0) & (self.tokens < scores.shape[1])
        return scores.index_fill(1, self.tokens[known].to(scores.device), -math.inf)


def with_cheap_suppression(processors: LogitsProcessorList) -> LogitsProcessorList:
    """The same processors, but for transformers' own that forbid tokens, which do it the cheap way."""
    cheap = LogitsProcessorList()
    for processor in processors:
        if type(processor) is SuppressTokensLogitsProcessor:
            processor = Suppress(processor.suppress_tokens)
        elif type(processor) is SuppressTokensAtBeginLogitsProcessor:
            processor = Suppress(processor.begin_suppress_tokens, at=processor.begin_index)
        cheap.append(processor)
    return cheap


class NoCircles(LogitsProcessor):
    """Behind a phrase of 1 to 16 tokens that stands `max_repeats` times in a row, its first token cannot follow again.

    Beams need it more than greedy search: repeating costs next to nothing, and a long text has the better mean.
    """

    def __init__(self, max_repeats: int) -> None:
        self.max_repeats = max_repeats

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (N, U), scores (N, V)."""
        for phrase in range(1, LONGEST_PHRASE + 1):
            if input_ids.shape[1] < self.max_repeats * phrase:
                break
            tail = input_ids[:, -self.max_repeats * phrase :]
            circles = (tail[:, phrase:] == tail[:, :-phrase]).all(dim=1, keepdim=True)  # (N, 1)
            first = tail[:, -phrase, None]
            scores = scores.scatter(1, first, scores.gather(1, first).masked_fill(circles, -math.inf))
        return scores


def no_circles(settings: GenerationConfig, asked: dict[str, Any]) -> list[NoCircles]:
    """By the `max_repeats` that is asked for, taken out of `asked`, else that of the settings; 0: none.

    Raises:
        ValueError: a number that is not 0, or 2 and more.
    """
    given = asked.pop("max_repeats", None)
    given = getattr(settings, "max_repeats", None) if given is None else given
    given = MAX_REPEATS if given is None else given
    if given == 0:
        return []
    if isinstance(given, bool) or not isinstance(given, int) or given < 2:
        raise ValueError(
            f"max_repeats = {given!r} must be 2 or more, the times that a phrase may stand in a row ({MAX_REPEATS} by "
            "default), or 0: as often as the model will."
        )
    return [NoCircles(given)]
