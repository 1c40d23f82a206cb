"""Configuration of the EntmaxAsr model: every knob, validated once, with the section of the paper it stands for.

"The paper" is Zhao et al., "Adaptive Sparse and Monotonic Attention for Transformer-based Automatic Speech
Recognition", arXiv 2209.15176. Where it is silent, the reading is ours and says so.
"""

import math
from typing import TypeVar

import numpy as np
from huggingface_hub.dataclasses import strict, validated_field
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .configuration_checks import check_layers, one_of, probability

Counts = TypeVar("Counts", int, np.ndarray, Tensor)

# What each name stands for: transforms.py.
TRANSFORMS = ("softmax", "sparsemax", "entmax15", "entmax", "topk")
CROSS_HEAD_TRANSFORMS = ("none", *(name for name in TRANSFORMS if name != "topk"))
# The largest of each that is built; far beyond any model, and far below what takes all memory before it is noticed.
LARGEST_SIZES = {
    **dict.fromkeys(("vocab_size", "attention_topk", "max_source_positions", "max_target_positions"), 10_000_000),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 1_000_000),
    **dict.fromkeys(("d_model", "subsampling_channels"), 100_000),
    **dict.fromkeys(("num_mel_bins", "encoder_attention_heads", "decoder_attention_heads"), 10_000),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1_000),
}
FRONT_ENDS = ("conv2d", "whisper")
POSITIONS = ("sinusoidal", "learned")
ENCODER_POSITIONS = (*POSITIONS, "rotary")
FRACTIONS = (
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "head_drop",
    "label_smoothing",
    "ctc_loss_weight",
)
HEAD_REGULARIZERS = ("none", "gate_l1", "quantity", "group_lasso", "boundary_consensus", "delay", "reference")


@strict
class EntmaxAsrConfig(PreTrainedConfig):
    r"""
    The defaults are the paper's model (Sec. IV-A): 12 + 6 blocks, width 512, 8 heads, feed-forward 1024, dropout 0.1,
    α-entmax self-attention on both sides and monotonic cross-attention.

    Size:
        vocab_size (`int`): number of output tokens, special tokens included.
        num_mel_bins (`int`): log-mel filterbank channels of the input.
        d_model (`int`): model width C; a multiple of both head counts, and even.
        encoder_layers, decoder_layers (`int`): number of blocks.
        encoder_attention_heads, decoder_attention_heads (`int`): heads H of each block.
        encoder_heads_per_layer, decoder_heads_per_layer, cross_heads_per_layer (`list[int]` or `None`): how many of
            those heads each layer has, in encoder self-attention, decoder self-attention and cross-attention, after
            others were removed for good (`scripts/prune.py`). A head keeps its width D = C / H. `None`: all.
        encoder_ffn_dim, decoder_ffn_dim (`int`): width of the feed-forward layers.
        activation_function (`str`): of the feed-forward layers, a name that transformers knows.
        dropout, attention_dropout, activation_dropout (`float`): of sublayer outputs, attention maps, and inside the
            feed-forward layers.
        front_end (`str`): `"conv2d"`, convolutions over time and mel bins, or `"whisper"`, Whisper's two over time
            (50 positions a second; subsampling_layers is 1).
        subsampling_layers, subsampling_channels (`int`): 1 or 2 convolutions 3x3 of stride 2 in front (50 or 25
            positions a second at a 10 ms hop), of so many channels. The paper gives no numbers; they are our reading.

    Sparse attention (Sec. III-A; Table I):
        encoder_transform, decoder_transform (`str`): what turns self-attention scores into weights: `"softmax"`,
            `"sparsemax"`, `"entmax15"`, `"entmax"` (α learned per head and layer, α = 1 + sigmoid(a)) or `"topk"`.
        cross_transform (`str`): the same for cross-attention layers that are not monotonic.
        softmax_temperature (`float`): T of softmax(scores / T), for every place that uses `"softmax"`.
        attention_topk (`int`): k of `"topk"`.
        encoder_pattern (`str`): which positions encoder self-attention reads: `"full"`, `"strided"` or `"fixed"`, of
            blocks of encoder_pattern_size, of which encoder_pattern_columns are read by all (see patterns.py).
        entmax_alpha_init (`float`): α of `"entmax"` before training, inside (1, 2).
        entmax_logit_scale (`bool`): a learned factor of the scores beside each α (ours; for `scripts/sparsify.py`).

    Attention map reuse (Shim, Choi, Sung, ICLR 2022; not in the paper):
        encoder_map_groups, decoder_map_groups (`list[int]` or `None`): sizes of groups of consecutive layers, from the
            first layer on, that share one self-attention map: `[1, 3, 2]` computes three maps for six layers. The
            first layer of a group computes the map and holds it in memory; the others have values and an output
            projection alone, and drop weights out anew. `None`: each layer has its own map.

    Encoding in chunks, so that text can be written while audio comes in (not in the paper; `docs/streaming.md`):
        encoder_chunk_size (`int`): at inference, a position reads those of its own chunk of so many positions and of
            the chunks before it; 0: all of the audio. It may be set on a living model, or for one call:
            `generate(..., encoder_chunk_size=16)`.
        encoder_left_chunks (`int`): how many chunks before its own a position reads; -1: all.
        chunk_training_rate (`float`): share of the training batches that are encoded in chunks, so that one model
            works at full context and at each chunk size.
        chunk_training_sizes, chunk_training_left (`list[int]`): what size and left chunks are drawn from, evenly.

    Monotonic cross-attention (Sec. III-B):
        cross_attention (`str`): `"monotonic"` or `"full"`.
        first_monotonic_layer (`int`): decoder layers below it keep full cross-attention.
        monotonic_chunk_size (`int` or `None`): 1 reads the one position where a head stops (MMA-H), w > 1 a soft
            window that ends there (MoChA), `None` everything up to there (MILK, infinite lookback).
        energy_bias_init (`float`): learned bias of the energies before training. Best −log(positions per token) of
            the data, because a head of stopping probability p advances 1/p − 1 positions a token.
        energy_noise_std (`float`): Gaussian noise on the energies, in training only.
        monotonic_straight_through (`bool`): in training (its last part), read hard; the gradient is the expected's.
        monotonic_decoding (`str`): `"hard"` (each head stops at one position; what streams) or `"soft"` (the
            expected alignment), for inference.
        firing_rule (`str`), firing_probability (`float`): a hard head stops at the first position where its p
            (`"threshold"`) or 1 − Π(1 − p) since the last stop (`"cumulative"`) reaches the probability.
        monotonic_head_wait (`int` or `None`): with hard heads at inference, none stops more than so many positions
            behind the leftmost of its layer (head-synchronous decoding, Inaguma et al. 2020, arXiv 2005.09394), so
            that slow heads hold up no text; 0: all stop together. `None`: each stops where it will.
        monotonic_shared_stops (`bool`): the heads of a layer stop together, by the mean of their energies (ours).
        head_drop (`float`): HeadDrop probability of a monotonic head, per utterance, in training.

    Head regularisation (Sec. III-B names an L1 term and gives no formula; all are our readings):
        head_regularizer (`str`): `"gate_l1"` (one gate per head, Σ|g|), `"quantity"` (|Σα − U|), `"group_lasso"`
            (norms of each head's output slice), `"boundary_consensus"` (spread of the heads' expected positions),
            `"delay"` (how far, as a share of the audio, a head's expected position lies behind an even pace through
            the audio; a start from full attention needs it or the next, or stops stay at the end), `"reference"` (how
            many positions it lies outside a window around the token's true end), or `"none"`.
        head_regularizer_weight (`float`): λ.
        head_regularizer_layers (`list[int]`): the decoder layers it applies to ("shallow layers"; layers without
            monotonic attention are refused).
        reference_window (`list[float]`): for `"reference"`, how many encoder positions before and after a token's end
            a head may stop at no cost; `None` is no bound on that side.

    Cross-head attention (Sec. IV-C):
        cross_head_transform (`str`): weights over the heads' outputs, computed from the query: `"none"` or a
            transform.

    Training objective:
        ctc_loss_weight (`float`): weight of a CTC loss on the encoder, blank = pad token; 0 builds no CTC head.
        label_smoothing (`float`): of the cross entropy, in training only.
        sparsity_weight (`float`): price of dense attention (ours), times the mean of 2 − α over all learned α.

    Positions and prompts (not in the paper; a pretrained start needs them):
        encoder_positions, decoder_positions (`str`): `"sinusoidal"`, of any length, or `"learned"`, a table of
            max_source_positions and max_target_positions rows, beyond which nothing can be read or written. The
            encoder's may be `"rotary"`: queries and keys are turned by their positions (Su et al. 2021, arXiv
            2104.09864), so that weights depend on distances alone and audio of any length sounds alike.
        max_source_positions, max_target_positions (`int`): those lengths, in encoder positions and in tokens.
        scale_embedding (`bool`): multiply what comes out of the front end and the token embeddings by √C before
            positions are added.
        decoder_prompt_ids (`list[int]`): tokens between the start token and the text, given and never predicted, as
            Whisper's language and task.
        max_tokens_per_position (`float`): a text has at most so many tokens for each encoder position; `generate` ends
            it there. Training sets it from its texts.

    Blocks are pre-norm; `tie_word_embeddings` shares the output projection with the token embedding.
    """

    model_type = "entmax_asr"
    keys_to_ignore_at_inference = [  # noqa: RUF012 (Trainer adds a list to it)
        "past_key_values",
        "cross_entropy_loss",
        "ctc_loss",
        "head_penalty",
        "ctc_logits",
    ]
    attribute_map = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    vocab_size: int = 5000
    num_mel_bins: int = 80
    d_model: int = 512
    encoder_layers: int = 12
    decoder_layers: int = 6
    encoder_attention_heads: int = 8
    decoder_attention_heads: int = 8
    encoder_heads_per_layer: list[int] | tuple[int, ...] | None = None
    decoder_heads_per_layer: list[int] | tuple[int, ...] | None = None
    cross_heads_per_layer: list[int] | tuple[int, ...] | None = None
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    activation_function: str = "relu"
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    activation_dropout: float | int = 0.0
    front_end: str = "conv2d"
    subsampling_layers: int = 2
    subsampling_channels: int = 128
    encoder_positions: str = "sinusoidal"
    decoder_positions: str = "sinusoidal"
    max_source_positions: int = 1500
    max_target_positions: int = 448
    scale_embedding: bool = True

    encoder_transform: str = "entmax"
    decoder_transform: str = "entmax"
    cross_transform: str = "softmax"
    softmax_temperature: float | int = 1.0
    attention_topk: int = 16
    encoder_pattern: str = "full"
    encoder_pattern_size: int = 16
    encoder_pattern_columns: int = 4
    entmax_alpha_init: float | int = 1.5
    entmax_logit_scale: bool = False

    encoder_map_groups: list[int] | tuple[int, ...] | None = None
    decoder_map_groups: list[int] | tuple[int, ...] | None = None

    encoder_chunk_size: int = 0
    encoder_left_chunks: int = -1
    chunk_training_rate: float | int = 0.0
    chunk_training_sizes: list[int] | tuple[int, ...] = (8, 16, 32, 64)
    chunk_training_left: list[int] | tuple[int, ...] = (-1,)

    cross_attention: str = "monotonic"
    first_monotonic_layer: int = 0
    monotonic_chunk_size: int | None = 1
    energy_bias_init: float | int = -2.0
    energy_noise_std: float | int = 1.0
    monotonic_straight_through: bool = False
    # These are switched on a living model, where a slip of the pen would go unnoticed.
    monotonic_decoding: str = validated_field(one_of("hard", "soft"), default="hard")
    firing_rule: str = validated_field(one_of("threshold", "cumulative"), default="threshold")
    firing_probability: float = validated_field(probability, default=0.5)
    monotonic_head_wait: int | None = None
    monotonic_shared_stops: bool = False
    head_drop: float | int = 0.0

    head_regularizer: str = "none"
    head_regularizer_weight: float | int = 0.0
    head_regularizer_layers: list[int] | tuple[int, ...] = ()
    reference_window: list[float | int | None] | tuple[float | int | None, ...] = (None, 10)
    cross_head_transform: str = "none"

    ctc_loss_weight: float | int = 0.0
    label_smoothing: float | int = 0.0
    sparsity_weight: float | int = 0.0

    is_encoder_decoder: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int = 1
    decoder_prompt_ids: list[int] | tuple[int, ...] = ()
    max_tokens_per_position: float | int = 1.0

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """For `pipeline("entmax-asr", …)`; the stock task, claimed, would be refused without trust_remote_code."""
        impl = "pipeline_entmax_asr.EntmaxAsrPipeline"
        return {"entmax-asr": {"impl": impl, "pt": ["AutoModelForSpeechSeq2Seq"], "tf": [], "type": "multimodal"}}

    @property
    def frames_per_position(self) -> int:
        """Feature frames from one encoder position to the next: the stride of the front end."""
        return 2**self.subsampling_layers

    def positions_of(self, frames: Counts) -> Counts:
        """Encoder positions S of T feature frames, for a number, an array or a tensor of them.

        T / frames_per_position, rounded up. Everything that needs lengths of the encoder's output asks here.
        """
        return (frames + self.frames_per_position - 1) // self.frames_per_position

    def heads(self, kind: str, layer: int) -> int:
        """Heads of layer `layer` in "encoder" or "decoder" self-attention, or in "cross"-attention."""
        counts = getattr(self, f"{kind}_heads_per_layer")
        return self._all_heads(kind) if counts is None else counts[layer]

    def head_width(self, kind: str) -> int:
        """D of each head, by the same names."""
        return self.d_model // self._all_heads(kind)

    def _all_heads(self, kind: str) -> int:
        return self.encoder_attention_heads if kind == "encoder" else self.decoder_attention_heads

    def map_layer(self, side: str, layer: int) -> int:
        """The layer whose self-attention map layer `layer` of `side` ("encoder" or "decoder") uses: itself or an
        earlier one."""
        first = layer
        if (sizes := getattr(self, f"{side}_map_groups")) is not None:
            first = 0
            for size in sizes:
                if layer < first + size:
                    break
                first += size
        return first

    def lends_map(self, side: str, layer: int) -> bool:
        """Whether a later layer of `side` ("encoder" or "decoder") uses the map of layer `layer`."""
        last = layer + 1 == getattr(self, f"{side}_layers")
        return not last and self.map_layer(side, layer + 1) == layer

    def is_monotonic(self, layer: int) -> bool:
        """Whether decoder layer `layer` reads the audio with monotonic attention."""
        return self.cross_attention == "monotonic" and layer >= self.first_monotonic_layer

    def has_gates(self, layer: int) -> bool:
        """Whether the monotonic heads of decoder layer `layer` carry learned gates."""
        return self.head_regularizer == "gate_l1" and layer in self.head_regularizer_layers

    def validate_choices(self) -> None:
        """Refuses a name outside its list."""
        for name, known in (
            ("encoder_transform", TRANSFORMS),
            ("decoder_transform", TRANSFORMS),
            ("cross_transform", TRANSFORMS),
            ("cross_head_transform", CROSS_HEAD_TRANSFORMS),
            ("cross_attention", ("full", "monotonic")),
            ("front_end", FRONT_ENDS),
            ("encoder_positions", ENCODER_POSITIONS),
            ("decoder_positions", POSITIONS),
            ("head_regularizer", HEAD_REGULARIZERS),
            ("activation_function", tuple(ACT2FN)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r} is not known. Use one of: {', '.join(known)}.")

    def validate_sizes(self) -> None:
        """Refuses numbers outside their range."""
        for name, largest in LARGEST_SIZES.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1 and at most {largest:,}.")
        for name in ("softmax_temperature", "energy_bias_init", "energy_noise_std", "head_regularizer_weight"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)} must be a finite number.")
        for name in FRACTIONS:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must lie in [0, 1).")
        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            if self.d_model % getattr(self, name):
                raise ValueError(f"d_model = {self.d_model} must be a multiple of {name} = {getattr(self, name)}.")
        if self.d_model % 2:
            raise ValueError(f"d_model = {self.d_model} must be even: half of a position is sines, half cosines.")
        if self.subsampling_layers not in (1, 2):
            raise ValueError(f"subsampling_layers = {self.subsampling_layers} must be 1 or 2.")
        if self.front_end == "whisper" and self.subsampling_layers != 1:
            raise ValueError(
                f"subsampling_layers = {self.subsampling_layers} must be 1 with front_end = 'whisper', of whose two "
                "convolutions one has stride 2."
            )
        if outside := [token for token in self.decoder_prompt_ids if not 0 <= token < self.vocab_size]:
            raise ValueError(
                f"decoder_prompt_ids = {list(self.decoder_prompt_ids)} holds {outside[0]}, which is no token: "
                f"vocab_size = {self.vocab_size}."
            )
        if not 0 < self.max_tokens_per_position <= 1000:
            raise ValueError(
                f"max_tokens_per_position = {self.max_tokens_per_position} must be above 0 and at most 1000."
            )
        if self.softmax_temperature <= 0:
            raise ValueError(f"softmax_temperature = {self.softmax_temperature} must be above 0.")
        if not 1 < self.entmax_alpha_init < 2:
            raise ValueError(
                f"entmax_alpha_init = {self.entmax_alpha_init} must lie strictly between 1 and 2 (α = 1 + sigmoid(a)); "
                "for the ends use the transforms 'softmax' and 'sparsemax'."
            )

    def validate_layers(self) -> None:
        """Refuses heads, groups, positions, chunks and patterns that do not fit the layers."""
        check_layers(self)

    def validate_monotonic(self) -> None:
        """Refuses monotonic and head options that contradict each other."""
        if self.monotonic_chunk_size is not None and self.monotonic_chunk_size < 1:
            raise ValueError(
                f"monotonic_chunk_size = {self.monotonic_chunk_size} must be at least 1, or None for infinite lookback."
            )
        if self.monotonic_head_wait is not None and self.monotonic_head_wait < 0:
            raise ValueError(
                f"monotonic_head_wait = {self.monotonic_head_wait} must be 0 or more, or None for no limit."
            )
        if self.energy_noise_std < 0:
            raise ValueError(f"energy_noise_std = {self.energy_noise_std} must not be negative.")
        for name in ("head_regularizer_weight", "sparsity_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)} must not be negative.")
        if len(self.reference_window) != 2 or any(bound is not None and bound < 0 for bound in self.reference_window):
            raise ValueError(
                f"reference_window = {list(self.reference_window)} must be two numbers of positions, before and after, "
                "not negative; None is no bound."
            )
        if self.cross_attention == "monotonic" and not 0 <= self.first_monotonic_layer < self.decoder_layers:
            raise ValueError(
                f"first_monotonic_layer = {self.first_monotonic_layer} must lie in [0, {self.decoder_layers - 1}] "
                f"(decoder_layers = {self.decoder_layers}); for none, set cross_attention='full'."
            )
        if self.head_regularizer == "none":
            return
        if not self.head_regularizer_layers:
            raise ValueError(
                f"head_regularizer = {self.head_regularizer!r} needs head_regularizer_layers, for example [0]."
            )
        for layer in self.head_regularizer_layers:
            if not (0 <= layer < self.decoder_layers and self.is_monotonic(layer)):
                raise ValueError(
                    f"head_regularizer_layers = {list(self.head_regularizer_layers)} names layer {layer}, which has no "
                    f"monotonic attention (cross_attention = {self.cross_attention!r}, first_monotonic_layer = "
                    f"{self.first_monotonic_layer}, decoder_layers = {self.decoder_layers})."
                )


__all__ = ["EntmaxAsrConfig"]
