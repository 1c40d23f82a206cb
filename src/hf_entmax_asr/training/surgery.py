"""Smaller models out of trained ones: layers that share attention maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration

HeadOrder = Mapping[str, Sequence[int]]


@torch.no_grad()
def share_maps(
    model: EntmaxAsrForConditionalGeneration,
    *,
    encoder_groups: Sequence[int] | None = None,
    decoder_groups: Sequence[int] | None = None,
    head_order: HeadOrder | None = None,
) -> EntmaxAsrForConditionalGeneration:
    """A copy of `model` in which layers share self-attention maps; all weights that are still used are copied.

    It transcribes worse than `model` until it is trained further: values and output projections of the layers that
    lost their maps have not seen the new ones.

    Args:
        encoder_groups, decoder_groups: as `EntmaxAsrConfig.encoder_map_groups`; None leaves that side as it is.
        head_order: by module ("encoder.layers.2.self_attn"), a permutation of its heads: the head that is to use map 0
            of its group, then map 1, … None, or a module not named: each head uses the map of its own number.

    Raises:
        ValueError: groups in which the first layer has no map of its own, because `model` shares maps already, or an
            order that is no permutation.
        huggingface_hub.errors.StrictDataclassError: sizes that do not fit the layers.
    """
    changed = {"encoder_map_groups": encoder_groups, "decoder_map_groups": decoder_groups}
    config = _changed(model.config, {name: list(sizes) for name, sizes in changed.items() if sizes is not None})
    for side in ("encoder", "decoder"):
        for layer in range(getattr(config, f"{side}_layers")):
            if config.map_layer(side, layer) == layer != (source := model.config.map_layer(side, layer)):
                raise ValueError(
                    f"{side} layer {layer} cannot begin a group: in this checkpoint it uses the map of layer {source} "
                    "and has no queries and keys. Choose groups that begin where those of the checkpoint do."
                )
    state = dict(model.state_dict())
    for name, order in (head_order or {}).items():
        _reorder_heads(state, name, order, model.get_submodule(f"model.{name}"))
    return _with_weights(model, config, state)


def _changed(config: EntmaxAsrConfig, changes: Mapping[str, object]) -> EntmaxAsrConfig:
    return EntmaxAsrConfig.from_dict({**config.to_dict(), **changes})


def _with_weights(
    model: EntmaxAsrForConditionalGeneration, config: EntmaxAsrConfig, state: Mapping[str, Tensor]
) -> EntmaxAsrForConditionalGeneration:
    """A model of `config` in the dtype, mode and device of `model`, with the weights in `state` that it has."""
    changed: Any = EntmaxAsrForConditionalGeneration(config)
    changed.to(model.device, model.dtype)
    changed.load_state_dict({name: state[name] for name in changed.state_dict()})
    changed.generation_config = model.generation_config
    return changed.train(model.training)


def _reorder_heads(state: dict[str, Tensor], name: str, order: Sequence[int], module: Any) -> None:
    """Puts the heads of a module in another order, in place; what it computes stays the same."""
    if sorted(order) != list(range(module.num_heads)):
        raise ValueError(
            f"head_order of {name} is {list(order)}; it must name each of its heads, 0 to {module.num_heads - 1}, once."
        )
    if list(order) == sorted(order):
        return
    if module.borrows_map or module.lends_map:
        raise ValueError(f"head_order of {name} is {list(order)}, but in this checkpoint its heads share maps already.")
    _keep_heads(state, f"model.{name}", order, module.num_heads)


def _keep_heads(state: dict[str, Tensor], module: str, kept: Sequence[int], heads: int) -> None:
    """Keeps the heads `kept` of an attention module, in that order, in place in a state dict."""
    index = torch.tensor(list(kept))
    for name in [name for name in state if name.startswith(f"{module}.")]:
        tensor, part = state[name], name.removeprefix(f"{module}.")
        if part == "out_proj.bias":
            continue
        dim = 1 if part == "out_proj.weight" else 0  # heads lie along the inputs of out_proj, else along the outputs
        by_head = tensor.unflatten(dim, (heads, -1)).index_select(dim, index.to(tensor.device))
        state[name] = by_head.flatten(dim, dim + 1)
