"""Configuration of the systems that the paper compares with, each out of an encoder and a head."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_entmax_asr import EntmaxAsrConfig

ENCODERS = ("transformer", "constituent", "blstm", "pyramid", "glu_conv", "jasper")
HEADS = ("attention", "lstm_attention", "ctc", "transducer")
PREDICTORS = ("lstm", "self_attention", "chunk_decoder")
MODEL_CLASSES = {  # by head
    "attention": "EntmaxAsrBaselineForConditionalGeneration",
    "lstm_attention": "EntmaxAsrBaselineForConditionalGeneration",
    "ctc": "EntmaxAsrBaselineForCTC",
    "transducer": "EntmaxAsrBaselineForTransducer",
}
# (channels, kernels) of the published convolutional encoders. Gated: of each convolution before its gate, which halves
# them. Jasper: the first, five sizes of blocks, and the last two.
CONVOLUTIONS = {
    "glu_conv": (
        (200, 200, 200, 250, 250, 300, 350, 400, 450, 500, 500, 500, 600, 600, 750),
        (13, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 21),
    ),
    "jasper": ((256, 256, 384, 512, 640, 768, 896, 1024), (11, 11, 13, 17, 21, 25, 29, 1)),
}


@strict
class EntmaxAsrBaselineConfig(EntmaxAsrConfig):
    r"""
    What is not named here is as in `EntmaxAsrConfig`, but for softmax in place of α-entmax and full cross-attention in
    place of monotonic. `docs/baselines.md` says which fields make which system.

    encoder_type (`str`): `"transformer"` (the recogniser's), `"constituent"` (its stand-in for the Combiner),
        `"blstm"`, `"pyramid"` (BLSTMs of which each but the first halves the time), `"glu_conv"` or `"jasper"`. Of
        encoder_layers layers, but for the convolutional ones; all give states of width d_model.
    head (`str`): `"attention"` (the recogniser's decoder), `"lstm_attention"` (LAS), `"ctc"` or `"transducer"`; of
        decoder_layers layers. The blank is the padding token.
    predictor (`str`): of a transducer, what reads the text so far: `"lstm"` (RNN-T), `"self_attention"` (SA-T) or
        `"chunk_decoder"` (Sync-Transformer, whose decoder reads one chunk of encoder states at a time).

    encoder_lstm_size, decoder_lstm_size (`int`): cells of each direction of an encoder, and of a decoder or predictor.
    decoder_embedding_size (`int`): width of the token embeddings of the `"lstm"` predictor.
    encoder_window (`list[int]` or `None`): [L, R] of a transformer encoder whose position i reads i − L … i + R (SA-T's
        chunk-flow); `None`: everything.
    conv_channels, conv_kernels (`list[int]` or `None`): of the convolutional encoders, by default the published ones.
    conv_stride (`int`): of their first convolution, so frames per position.
    conv_block_repeats, conv_blocks_per_size (`int`): of Jasper, sub-blocks in a block, and blocks of each size.
    joint_size (`int`): width of the transducer's joint network.
    joint_frames (`int`): frames for which it makes logits at a time in training; more are faster and take more memory.
    path_loss_weight (`float`): λ of SA-T's path-aware loss, the negative log probability of the likeliest alignment.
    decoder_chunk_size, decoder_chunk_overlap (`int`): W encoder states in a chunk of `"chunk_decoder"`, of which it
        shares so many with the one before.
    max_symbols_per_position (`int`): tokens that a transducer may write at one position (or chunk).
    scheduled_sampling (`float`): of LAS, how often in training it reads its own last token in place of the true one.
    """

    model_type = "entmax_asr_baseline"

    cross_attention: str = "full"
    encoder_transform: str = "softmax"
    decoder_transform: str = "softmax"

    encoder_type: str = "transformer"
    head: str = "attention"
    predictor: str = "lstm"

    encoder_lstm_size: int = 320
    decoder_lstm_size: int = 512
    decoder_embedding_size: int = 512
    encoder_window: list[int] | tuple[int, ...] | None = None
    conv_channels: list[int] | tuple[int, ...] | None = None
    conv_kernels: list[int] | tuple[int, ...] | None = None
    conv_stride: int = 2
    conv_block_repeats: int = 3
    conv_blocks_per_size: int = 2
    joint_size: int = 512
    joint_frames: int = 8
    path_loss_weight: float | int = 0.0
    decoder_chunk_size: int = 12
    decoder_chunk_overlap: int = 3
    max_symbols_per_position: int = 3
    scheduled_sampling: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if not self.architectures and self.head in MODEL_CLASSES:
            self.architectures = [self.model_class]  # by which Auto classes choose

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """None: the stock pipeline of transformers serves these systems."""
        return {}

    @property
    def model_class(self) -> str:
        """Name of the class that this configuration is of."""
        return MODEL_CLASSES[self.head]

    @property
    def frames_per_position(self) -> int:
        """Feature frames from one encoder position to the next."""
        if self.encoder_type == "pyramid":
            return 2 ** (self.encoder_layers - 1)
        return self.conv_stride if self.encoder_type in CONVOLUTIONS else 2**self.subsampling_layers

    def convolutions(self) -> list[tuple[int, int]]:
        """(channels, kernel) of each size of a convolutional encoder."""
        channels, kernels = CONVOLUTIONS[self.encoder_type]
        return list(zip(self.conv_channels or channels, self.conv_kernels or kernels, strict=True))

    def validate_baseline(self) -> None:
        """Refuses names, sizes and combinations that no system has."""
        for name, known in (("encoder_type", ENCODERS), ("head", HEADS), ("predictor", PREDICTORS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} = {getattr(self, name)!r} is not known. Use one of: {', '.join(known)}.")
        for name in (
            *("encoder_lstm_size", "decoder_lstm_size", "decoder_embedding_size", "conv_stride", "conv_block_repeats"),
            *("conv_blocks_per_size", "joint_size", "joint_frames", "decoder_chunk_size", "max_symbols_per_position"),
        ):
            if not 1 <= getattr(self, name) <= 100_000:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1 and at most 100,000.")
        if not 0 <= self.decoder_chunk_overlap < self.decoder_chunk_size:
            raise ValueError(
                f"decoder_chunk_overlap = {self.decoder_chunk_overlap} must be at least 0 and below decoder_chunk_size "
                f"= {self.decoder_chunk_size}."
            )
        if not 0 <= self.scheduled_sampling <= 1 or self.path_loss_weight < 0:
            raise ValueError(
                f"scheduled_sampling = {self.scheduled_sampling} must lie in [0, 1], and path_loss_weight = "
                f"{self.path_loss_weight} must not be negative."
            )
        self._validate_encoder()
        self._validate_head()

    def _validate_encoder(self) -> None:
        if self.encoder_type != "transformer" and (self.encoder_chunk_size or self.encoder_pattern != "full"):
            raise ValueError(
                f"encoder_chunk_size and encoder_pattern are of encoder_type 'transformer', not {self.encoder_type!r}."
            )
        if (window := self.encoder_window) is not None:
            if len(window) != 2 or min(window) < 0:
                raise ValueError(f"encoder_window = {list(window)} must be two numbers of positions, [left, right].")
            if self.encoder_type != "transformer" or self.encoder_pattern != "full" or self.encoder_chunk_size:
                raise ValueError(
                    f"encoder_window = {list(window)} is of encoder_type = 'transformer', with encoder_pattern = "
                    "'full' and without chunks."
                )
        if self.encoder_type not in CONVOLUTIONS:
            return
        if len(self.conv_channels or ()) != len(self.conv_kernels or ()):
            raise ValueError(
                f"conv_channels = {self.conv_channels} and conv_kernels = {self.conv_kernels} must be of one length."
            )
        sizes = self.convolutions()
        if min(min(pair) for pair in sizes) < 1 or (self.encoder_type == "jasper" and len(sizes) < 4):
            raise ValueError(
                f"convolutions {sizes} must be numbers of at least 1; jasper has 4 or more: first, blocks, last two."
            )
        if self.encoder_type == "glu_conv" and any(channels % 2 for channels, _ in sizes):
            raise ValueError(f"conv_channels = {[c for c, _ in sizes]} must be even: a gate halves them.")

    def _validate_head(self) -> None:
        if self.head != "attention" and self.cross_attention == "monotonic":
            raise ValueError(f"cross_attention = 'monotonic' is of head = 'attention', not of {self.head!r}.")
        if self.head in ("ctc", "transducer") and self.ctc_loss_weight:
            raise ValueError(
                f"ctc_loss_weight = {self.ctc_loss_weight} is of the attention heads, not of {self.head!r}."
            )


__all__ = ["EntmaxAsrBaselineConfig"]
