"""Checks of the configuration that take several of its fields together, or one whenever it is set."""

from collections.abc import Callable
from typing import Any

ENCODER_PATTERNS = ("full", "strided", "fixed")


def check_layers(config: Any) -> None:
    """Refuses what does not fit the layers."""
    for check in (check_heads_per_layer, check_rotary, check_map_groups, check_chunks, check_pattern):
        check(config)


def check_heads_per_layer(config: Any) -> None:
    """Refuses lists that do not fit the layers, and heads that were never there."""
    for kind, side in (("encoder", "encoder"), ("decoder", "decoder"), ("cross", "decoder")):
        counts, layers = getattr(config, f"{kind}_heads_per_layer"), getattr(config, f"{side}_layers")
        if counts is None:
            continue
        most = config._all_heads(kind)
        if len(counts) != layers or any(not 1 <= count <= most for count in counts):
            raise ValueError(
                f"{kind}_heads_per_layer = {list(counts)} must hold one number for each of {side}_layers = "
                f"{layers}, between 1 and {side}_attention_heads = {most}; None gives every layer all heads."
            )


def check_map_groups(config: Any) -> None:
    """Refuses groups that do not cover the layers."""
    for side in ("encoder", "decoder"):
        sizes, layers = getattr(config, f"{side}_map_groups"), getattr(config, f"{side}_layers")
        if sizes is None:
            continue
        if any(size < 1 for size in sizes) or sum(sizes) != layers:
            raise ValueError(
                f"{side}_map_groups = {list(sizes)} must be sizes of at least 1 that add up to {side}_layers = "
                f"{layers}, not to {sum(sizes)}; None shares no map."
            )
        heads = [config.heads(side, layer) for layer in range(layers)]
        if any(heads[config.map_layer(side, layer)] != heads[layer] for layer in range(layers)):
            raise ValueError(
                f"{side}_heads_per_layer = {heads} differs within the groups of {side}_map_groups = {list(sizes)}: "
                "layers that share a map have equally many heads."
            )


def check_rotary(config: Any) -> None:
    """Refuses heads that cannot be turned."""
    width = config.head_width("encoder")
    if config.encoder_positions == "rotary" and width % 2:
        raise ValueError(
            f"encoder_positions = 'rotary' turns pairs of numbers, and d_model / encoder_attention_heads = {width} is "
            "odd: take another d_model or number of heads, or 'sinusoidal' positions."
        )


def check_chunks(config: Any) -> None:
    """Refuses sizes of chunks that are none."""
    if config.encoder_chunk_size < 0:
        raise ValueError(
            f"encoder_chunk_size = {config.encoder_chunk_size} must be a number of encoder positions, or 0 for the "
            "whole audio at once."
        )
    if config.encoder_left_chunks < -1:
        raise ValueError(f"encoder_left_chunks = {config.encoder_left_chunks} must be at least 0, or -1 for all.")
    if not 0 <= config.chunk_training_rate <= 1:
        raise ValueError(f"chunk_training_rate = {config.chunk_training_rate} must lie in [0, 1].")
    for name, least, meaning in (
        ("chunk_training_sizes", 1, "encoder positions, each at least 1"),
        ("chunk_training_left", -1, "chunks, each at least 0, or -1 for all"),
    ):
        values = list(getattr(config, name))
        if not values or min(values) < least:
            raise ValueError(f"{name} = {values} must be one or more numbers of {meaning}.")


def check_pattern(config: Any) -> None:
    """Refuses patterns of encoder self-attention that are none, and others beside what needs all of it."""
    if config.encoder_pattern not in ENCODER_PATTERNS:
        known = ", ".join(ENCODER_PATTERNS)
        raise ValueError(f"encoder_pattern = {config.encoder_pattern!r} is not known. Use one of: {known}.")
    for name in ("encoder_pattern_size", "encoder_pattern_columns"):
        if not 1 <= getattr(config, name) <= 1_000_000:
            raise ValueError(f"{name} = {getattr(config, name)} must be at least 1 and at most 1,000,000.")
    if config.encoder_pattern == "full":
        return
    if config.encoder_pattern == "fixed" and config.encoder_pattern_columns > config.encoder_pattern_size:
        raise ValueError(
            f"encoder_pattern_columns = {config.encoder_pattern_columns} must be at most encoder_pattern_size = "
            f"{config.encoder_pattern_size}, the block that they are of."
        )
    for name, off in (("encoder_chunk_size", 0), ("chunk_training_rate", 0), ("encoder_map_groups", None)):
        if getattr(config, name) != off:
            raise ValueError(
                f"{name} = {getattr(config, name)!r} does not go with encoder_pattern = {config.encoder_pattern!r}, "
                f"which reads the whole audio, in each layer other parts: set it to {off}, or the pattern to 'full'."
            )


def probability(value: float) -> None:
    """A check of a field whenever it is set: nothing is certain."""
    if not 0 < value < 1:
        raise ValueError(f"{value} must lie between 0 and 1, both excluded.")


def one_of(*choices: str) -> Callable[[str], None]:
    """A check of a field against a list, made whenever the field is set."""

    def check(value: str) -> None:
        if value not in choices:
            raise ValueError(f"{value!r} is not known. Use one of: {', '.join(choices)}.")

    return check
