"""Smaller models out of trained ones: layers that share attention maps, and heads removed for good."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_entmax_asr.analysis.document import AnalysedModel, AnalysisDocument, load_analysis, tensor_of
from hf_entmax_asr.analysis.reuse import RedundantHead, WaitedForHead, redundant_heads, waited_for_heads
from hf_entmax_asr.model.attention import MultiHeadAttention
from hf_entmax_asr.model.configuration_entmax_asr import EntmaxAsrConfig
from hf_entmax_asr.model.modeling_entmax_asr import EntmaxAsrForConditionalGeneration

HeadOrder = Mapping[str, Sequence[int]]
Removed = dict[str, set[int]]  # numbers of heads, by module

# Along which axis of a parameter of an attention module the heads lie one behind the other; None: they share it.
HEAD_AXIS: dict[str, int | None] = {
    **dict.fromkeys((f"{name}_proj.weight" for name in ("q", "k", "v", "window_q", "window_k")), 0),
    **dict.fromkeys((f"{name}_proj.bias" for name in ("q", "k", "v", "window_q", "window_k")), 0),
    "out_proj.weight": 1,  # heads are its inputs
    "out_proj.bias": None,
    "transform.alpha_logit": 0,
    "transform.log_scale": 0,
    "energy_bias": 0,
    "gate": 0,
    "cross_head.score.weight": 0,
    "cross_head.score.bias": 0,
    "cross_head.transform.alpha_logit": None,
    "cross_head.transform.log_scale": None,
}


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
        ValueError: groups in which the first layer has no map of its own, because `model` shares maps already; an
            order that is no permutation; or parameters that are not those of an EntmaxAsrForConditionalGeneration.
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


@torch.no_grad()
def remove_heads(
    model: EntmaxAsrForConditionalGeneration, removed: Mapping[str, Sequence[int]]
) -> EntmaxAsrForConditionalGeneration:
    """A copy of `model` without some of its heads: smaller projections, fewer heads for decoding to wait for.

    It computes what `model` does when the outputs of these heads are zero: nothing changes if their gates are zero.

    Args:
        removed: by module ("encoder.layers.0.self_attn", "decoder.layers.1.encoder_attn"), the numbers of its heads.

    Raises:
        ValueError: a module or head that is not there, the last head of a layer, layers that share a map but not the
            heads to remove, cross-attention with cross-head attention, whose weights are shared among all heads, or
            with shared stops (closed gates excepted), or parameters that are not those of an
            EntmaxAsrForConditionalGeneration.
    """
    modules = attention_modules(model)
    for name, heads in removed.items():
        _check_removal(model.config, modules, name, heads)
    state, config = dict(model.state_dict()), model.config
    counts = {"encoder": [0] * config.encoder_layers, "decoder": [0] * config.decoder_layers}
    counts["cross"] = [0] * config.decoder_layers
    for name, module in modules.items():
        gone = removed.get(name, ())
        kept = [head for head in range(module.num_heads) if head not in gone]
        kind, layer = _kind_and_layer(name)
        counts[kind][layer] = len(kept)
        if gone:
            _check_group(config, kind, layer, removed)
            _keep_heads(state, f"model.{name}", kept, module.num_heads)
    full = {kind: config.d_model // config.head_width(kind) for kind in counts}
    changes = {
        f"{kind}_heads_per_layer": None if set(numbers) == {full[kind]} else numbers for kind, numbers in counts.items()
    }
    return _with_weights(model, _changed(config, changes), state)


def attention_modules(model: EntmaxAsrForConditionalGeneration) -> dict[str, Any]:
    """All self- and cross-attention modules, by the names that `alphas()` and an analysis give them."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, MultiHeadAttention))
    return {name.removeprefix("model."): module for name, module in found}


def gated_off(model: EntmaxAsrForConditionalGeneration) -> dict[str, list[int]]:
    """The heads whose gate is exactly 0, by module, for `remove_heads`. Of a layer in which all are, one is left out:
    a layer keeps a head, and decoding does not wait for one whose gate is 0."""
    off = {}
    for name, gate in model.gates().items():
        heads = (gate == 0).nonzero().flatten().tolist()
        heads = heads[1:] if len(heads) == len(gate) else heads
        if heads:
            off[name] = heads
    return off


def most_redundant_heads(
    config: EntmaxAsrConfig, document: AnalysisDocument, count: int
) -> tuple[Removed, list[RedundantHead]]:
    """The `count` encoder heads that an analysis found most redundant, for `remove_heads`, and why they are.

    Those of layers that share a map go together and count once.

    Raises:
        ValueError: as for `redundant_heads`.
    """
    agreement = document.agreement
    layers = range(config.encoder_layers)
    names = {f"encoder.layers.{layer}.self_attn": config.map_layer("encoder", layer) for layer in layers}
    own = [i for i, (name, _) in enumerate(agreement.heads) if name == f"encoder.layers.{names[name]}.self_attn"]
    js_bits = tensor_of(agreement.js_bits)[own][:, own]
    found = redundant_heads([agreement.heads[i] for i in own], js_bits, count)
    removed: Removed = {}
    for head in found:
        for name, source in names.items():
            if head.module == f"encoder.layers.{source}.self_attn":
                removed.setdefault(name, set()).add(head.head)
    return removed, found


def most_waited_for_heads(
    model: EntmaxAsrForConditionalGeneration, document: AnalysisDocument, count: int
) -> tuple[Removed, list[WaitedForHead]]:
    """The `count` monotonic heads that decoding waited for most in an analysis, for `remove_heads`, and how much.

    Heads whose gate is 0, for which nobody waits, are not among them.

    Raises:
        ValueError: as for `waited_for_heads`, or a model or a document without monotonic heads.
    """
    measured = document.monotonic
    if measured is None:
        raise ValueError("the analysis holds no monotonic heads: nothing waits for the heads of full cross-attention.")
    off = gated_off(model)
    rows = [
        i
        for i, (layer, head) in enumerate(measured.heads)
        if head not in off.get(f"decoder.layers.{layer}.encoder_attn", ())
    ]
    last_share, lag = (tensor_of(values)[rows].tolist() for values in (measured.last_share, measured.lag_seconds))
    found = waited_for_heads([measured.heads[i] for i in rows], last_share, lag, count)
    removed: Removed = {}
    for head in found:
        removed.setdefault(f"decoder.layers.{head.layer}.encoder_attn", set()).add(head.head)
    return removed, found


def load_matching_analysis(path: Path, config: EntmaxAsrConfig) -> AnalysisDocument:
    """An analysis that scripts/analyze.py wrote, if it can be one of a model with this configuration.

    Raises:
        ValueError: it cannot be read (`DocumentError`), or is of another model.
    """
    document = load_analysis(path)
    there, here = (dataclasses.asdict(model) for model in (document.model, AnalysedModel.of(config)))
    for name, value in there.items():
        if value != here[name]:
            raise ValueError(f"{path} is of another model: {name} is {value} there and {here[name]} here.")
    return document


def _kind_and_layer(name: str) -> tuple[str, int]:
    """("encoder", "decoder" or "cross"; layer) of an attention module."""
    side, _, layer, module = name.split(".")
    return ("cross" if module == "encoder_attn" else side), int(layer)


def _check_removal(config: EntmaxAsrConfig, modules: Mapping[str, Any], name: str, heads: Sequence[int]) -> None:
    if name not in modules:
        raise ValueError(f"{name!r} is no attention module of this model; it has {', '.join(modules)}.")
    count = modules[name].num_heads
    if absent := [head for head in heads if not 0 <= head < count]:
        raise ValueError(f"{name} has the heads 0 to {count - 1}, and no head {absent[0]}.")
    if len(set(heads)) == count:
        raise ValueError(f"{name} would lose all of its {count} heads; at least one must stay.")
    if heads and _kind_and_layer(name)[0] == "cross" and config.cross_head_transform != "none":
        raise ValueError(
            f"the heads of {name} cannot be removed: cross_head_transform = {config.cross_head_transform!r} weighs "
            "each head against the others, so that all would change."
        )
    if _kind_and_layer(name)[0] == "cross" and config.monotonic_shared_stops:
        active = modules[name].active_heads()
        if heard := [head for head in heads if active[head]]:
            raise ValueError(
                f"head {heard[0]} of {name} cannot be removed: monotonic_shared_stops lets the mean of all heads say "
                "where they stop, so that the others would stop elsewhere. Only a head whose gate is 0 has no say."
            )


def _check_group(config: EntmaxAsrConfig, kind: str, layer: int, removed: Mapping[str, Sequence[int]]) -> None:
    if kind == "cross":
        return
    layers = range(getattr(config, f"{kind}_layers"))
    group = [other for other in layers if config.map_layer(kind, other) == config.map_layer(kind, layer)]
    named = [f"{kind}.layers.{other}.self_attn" for other in group]
    if len({frozenset(removed.get(name, ())) for name in named}) > 1:
        raise ValueError(f"{', '.join(named)} share a map, so the same heads must be removed from each of them.")


def _changed(config: EntmaxAsrConfig, changes: Mapping[str, object]) -> EntmaxAsrConfig:
    return EntmaxAsrConfig.from_dict({**config.to_dict(), **changes})


def _with_weights(
    model: EntmaxAsrForConditionalGeneration, config: EntmaxAsrConfig, state: Mapping[str, Tensor]
) -> EntmaxAsrForConditionalGeneration:
    """A model of `config` in the dtype, mode and device of `model`, with the weights in `state` that it has."""
    changed: Any = EntmaxAsrForConditionalGeneration(config)
    changed.to(model.device, model.dtype)
    kept = changed.state_dict().keys()
    # Queries, keys and α of layers that share a map go; whatever else would be lost is not ours to drop.
    if lost := [name for name in state if name not in kept and name.partition("_attn.")[2] not in HEAD_AXIS]:
        raise ValueError(
            f"{lost[0]} would be lost: the new model is an {type(changed).__name__} made from the configuration alone, "
            "which has no such parameter. Let the configuration make it, or take it off the model first."
        )
    changed.load_state_dict({name: state[name] for name in kept})
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
    """Keeps the heads `kept` of an attention module, in that order, in place in a state dict.

    Raises:
        ValueError: the module has a parameter that is not in `HEAD_AXIS`.
    """
    index = torch.tensor(list(kept))
    for name in [name for name in state if name.startswith(f"{module}.")]:
        tensor, part = state[name], name.removeprefix(f"{module}.")
        if part not in HEAD_AXIS:
            raise ValueError(
                f"{module} has a parameter {part} of shape {tuple(tensor.shape)}, and along which axis its heads lie "
                "is not known: name it in HEAD_AXIS of hf_entmax_asr/recognition/surgery.py, with that axis, or with "
                "None if the heads share it."
            )
        if (axis := HEAD_AXIS[part]) is not None:
            by_head = tensor.unflatten(axis, (heads, -1)).index_select(axis, index.to(tensor.device))
            state[name] = by_head.flatten(axis, axis + 1)
