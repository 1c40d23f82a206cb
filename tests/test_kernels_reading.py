"""The native hard reading against the eager form, and generation with it against generation without."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_entmax_asr import kernels
from hf_entmax_asr.kernels import backend
from hf_entmax_asr.model.alignment import firing_limit
from hf_entmax_asr.model.cache import MonotonicLayer
from hf_entmax_asr.model.reading import hard_reading
from support.small_models import small_model

pytestmark = pytest.mark.skipif(not backend.cpu_available(), reason="no native kernels on this machine")

RULES = ("threshold", "cumulative")


def inputs(batch: int, heads: int, targets: int, positions: int, width: int, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    lengths = torch.randint(1, positions + 1, (batch,))
    return {
        "query": torch.randn(batch, heads, targets, width),
        "key": torch.randn(batch, heads, positions, width),
        "value": torch.randn(batch, heads, positions, width + 3),
        "bias": torch.randn(heads) - 2,
        "start": torch.randint(0, positions, (batch, heads)),
        "source_mask": torch.arange(positions) < lengths[:, None],
    }


def agree(rule: str, probability: float = 0.5, **given: Tensor | None) -> None:
    assert kernels.hard_reading(*given.values(), rule, firing_limit(rule, probability)) is not None
    context, boundary = hard_reading(**given, rule=rule, probability=probability)
    with kernels.use("eager"):
        expected, stops = hard_reading(**given, rule=rule, probability=probability)
    assert torch.equal(boundary, stops)
    assert torch.equal(context, expected)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(1, high) for high in (3, 4, 6, 70, 40)]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.5, 0.2, 0.8]),
    st.integers(0, 2**31),
)
def test_stops_and_values_are_those_of_the_eager_form(rule, sizes, padded, started, probability, seed):
    given = inputs(*sizes, seed)
    given["start"] = given["start"] if started else None
    given["source_mask"] = given["source_mask"] if padded else None
    agree(rule, probability, **given)


@pytest.mark.parametrize("rule", RULES)
def test_views_of_any_layout(rule):
    given = inputs(2, 3, 4, 30, 16, seed=0)
    for name in ("query", "key", "value"):
        given[name] = given[name].transpose(1, 2).contiguous().transpose(1, 2)
    given["start"] = torch.stack([given["start"]] * 3, 2)[:, :, 1]
    agree(rule, **given)
    given["key"] = given["key"].mT.contiguous().mT
    agree(rule, **given)


@pytest.mark.parametrize("rule", RULES)
def test_energies_without_bound_and_without_number(rule):
    given = inputs(1, 2, 3, 9, 4, seed=1)
    given |= {"start": None, "source_mask": None}
    for bias in (torch.inf, -torch.inf, torch.nan):
        given["bias"] = torch.full((2,), bias)
        agree(rule, **given)


def test_what_has_no_native_form():
    given = inputs(1, 2, 3, 9, 4, seed=1)
    arguments = [*given.values(), "threshold", 0.0]
    assert kernels.hard_reading(*[t.double() if t is given["query"] else t for t in arguments]) is None
    assert kernels.hard_reading(*[t.requires_grad_() if t is given["value"] else t for t in arguments]) is None
    with torch.no_grad():
        assert kernels.hard_reading(*arguments) is not None


WRONG = {
    "three dimensions": (lambda g: g | {"query": g["query"][0]}, "4 dimensions"),
    "fewer heads of keys": (lambda g: g | {"key": g["key"][:, 1:]}, "do not fit"),
    "fewer heads of queries": (lambda g: g | {"query": g["query"][:, 1:]}, "do not fit"),
    "another batch": (lambda g: g | {"value": torch.cat([g["value"]] * 2)}, "do not fit"),
    "narrower keys": (lambda g: g | {"key": g["key"][..., 1:]}, "do not fit"),
    "fewer values": (lambda g: g | {"value": g["value"][:, :, 1:]}, "do not fit"),
    "no audio": (lambda g: g | {"key": g["key"][:, :, :0], "value": g["value"][:, :, :0]}, "no position to read"),
    "short bias": (lambda g: g | {"bias": g["bias"][1:]}, r"bias has shape .* one number a head"),
    "bias of two dimensions": (lambda g: g | {"bias": g["bias"][None]}, r"bias has shape .* one number a head"),
    "integer bias": (lambda g: g | {"bias": g["bias"].long()}, "bias has dtype torch.int64.*floating"),
    "another dtype of keys": (lambda g: g | {"key": g["key"].half()}, "query has dtype torch.float32 and key"),
    "integer values": (lambda g: g | {"value": g["value"].long()}, "value has dtype torch.int64.*floating"),
    "short mask": (lambda g: g | {"source_mask": g["source_mask"][:, 1:]}, "source_mask is .* must be boolean of"),
    "mask of fewer rows": (lambda g: g | {"source_mask": g["source_mask"][1:]}, "source_mask is .* must be boolean of"),
    "integer mask": (lambda g: g | {"source_mask": g["source_mask"].long()}, "source_mask is torch.int64"),
    "start of fewer heads": (lambda g: g | {"start": g["start"][:, 1:]}, "start is .* must be a signed integer of"),
    "floating start": (lambda g: g | {"start": g["start"].float()}, "start is torch.float32"),
    "start beyond the audio": (lambda g: g | {"start": g["start"] + g["key"].shape[2]}, r"start lies in .* 0 … \d+ of"),
    "start far beyond": (lambda g: g | {"start": g["start"] + 2**40}, "start lies in"),
    "start in front": (lambda g: g | {"start": g["start"] - g["key"].shape[2]}, r"start lies in \[-"),
    "unknown rule": (lambda g: g | {"rule": "loudest"}, "rule = 'loudest' is not known"),
    "keys elsewhere": (lambda g: g | {"key": g["key"].to("meta")}, "key is on meta and query on cpu"),
    "mask elsewhere": (lambda g: g | {"source_mask": g["source_mask"].to("meta")}, "source_mask is on meta"),
    "start elsewhere": (lambda g: g | {"start": g["start"].to("meta")}, "start is on meta"),
}


@pytest.mark.parametrize("mode", ["auto", "eager"])
@pytest.mark.parametrize("wrong", WRONG)
@settings(max_examples=8, deadline=None)
@given(st.tuples(*[st.integers(1, high) for high in (3, 4, 3, 20, 9)]), st.integers(0, 2**31))
def test_wrong_arguments_are_refused_by_both_forms(wrong, mode, sizes, seed):
    change, message = WRONG[wrong]
    given = change({**inputs(*sizes, seed), "rule": "threshold"})
    assert kernels.hard_reading(*given.values(), 0.0) is None  # native code sees none of it
    with kernels.use(mode), pytest.raises(ValueError, match=message):
        hard_reading(**given)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16])
def test_starts_of_other_integer_types(dtype):
    given = inputs(2, 3, 4, 30, 16, seed=0)
    expected = hard_reading(**given)
    for got, right in zip(hard_reading(**(given | {"start": given["start"].to(dtype)})), expected, strict=True):
        assert torch.equal(got, right)


def test_gradients_reach_what_is_read():
    given = inputs(1, 2, 3, 9, 4, seed=1)
    value = given["value"].requires_grad_()
    context, boundary = hard_reading(**given)
    context.sum().backward()
    counts = torch.zeros(1, 2, 9).scatter_add(2, boundary, torch.ones(1, 2, 3))
    assert torch.equal(value.grad, counts.unsqueeze(-1).expand_as(value))


@pytest.mark.parametrize("num_beams", [1, 4])
def test_generation_is_the_same_with_and_without(num_beams):
    model = small_model(lively=True).eval()
    torch.manual_seed(0)
    features = torch.randn(3, 61, model.config.num_mel_bins)
    mask = torch.arange(61) < torch.tensor([[61], [40], [13]])
    arguments = {"attention_mask": mask.long(), "num_beams": num_beams, "max_new_tokens": 12, "do_sample": False}
    native = model.generate(features, return_dict_in_generate=True, **arguments)
    with kernels.use("eager"):
        eager = model.generate(features, return_dict_in_generate=True, **arguments)
    assert torch.equal(native.sequences, eager.sequences)
    for ours, theirs in zip(native.boundaries, eager.boundaries, strict=True):
        assert torch.equal(ours, theirs)


def test_reordering_beams_moves_positions_alone_within_an_utterance():
    keys, values = torch.randn(2, 1, 5, 3).repeat_interleave(2, 0), torch.randn(2, 1, 5, 3).repeat_interleave(2, 0)
    layer = MonotonicLayer(num_beams=2)
    layer.update(keys, values)
    layer.record(torch.arange(4).view(4, 1, 1), 0)
    held = layer.keys
    layer.reorder_cache(torch.tensor([1, 1, 2, 3]))
    assert layer.keys is held
    assert layer.progress.flatten().tolist() == [1, 1, 2, 3]
    layer.reorder_cache(torch.tensor([2, 3, 0, 1]))  # across utterances
    assert torch.equal(layer.keys, keys[[2, 3, 0, 1]])
    assert layer.progress.flatten().tolist() == [2, 3, 1, 1]
