"""Proposals of layers that share a map, against a search through all groupings."""

import dataclasses
import itertools

import pytest
import torch

from hf_entmax_asr.analysis import map_groups_of, propose_map_groups, waited_for_heads
from support.analysis_document import document

UNIFORM = 0.7


def cads(*relative: float, heads: int = 2) -> list[torch.Tensor]:
    """Layers of equal heads, given by their relative CAD."""
    return [torch.full((heads,), UNIFORM + (1 - UNIFORM) * value, dtype=torch.float64) for value in relative]


def propose(cad, maps):
    return propose_map_groups(cad, [UNIFORM] * len(cad), maps)


def groupings(layers: int, maps: int):
    for cuts in itertools.combinations(range(1, layers), maps - 1):
        edges = (0, *cuts, layers)
        yield tuple(b - a for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("maps", range(2, 8))
@pytest.mark.parametrize("seed", range(4))
def test_the_best_of_all_groupings(maps, seed):
    generator = torch.Generator().manual_seed(seed)
    relative = torch.rand(7, 3, generator=generator, dtype=torch.float64) * 0.45
    relative[4:] += 0.5  # layers 4, 5, 6 are linguistic
    cad = UNIFORM + (1 - UNIFORM) * relative

    def change(sizes) -> float:
        total, first = 0.0, 0
        for size in sizes:
            for layer in range(first, first + size):
                pairs = zip(sorted(cad[layer].tolist()), sorted(cad[first].tolist()), strict=True)
                total += sum(abs(a - b) for a, b in pairs) / 3
            first += size
        return total / 7

    within = [sizes for sizes in groupings(7, maps) if 4 in itertools.accumulate(sizes)]
    found = propose(list(cad), maps)
    assert found.sizes in within
    assert found.change == pytest.approx(min(map(change, within)))
    assert change(found.sizes) == pytest.approx(found.change)
    assert found.linguistic == (False,) * 4 + (True,) * 3


def test_heads_of_equal_rank_belong_together():
    cad = [torch.tensor([0.7, 0.9, 0.8]), torch.tensor([0.91, 0.71, 0.81]), torch.tensor([0.72, 0.82, 0.92])]
    found = propose_map_groups(cad, [0.6] * 3, 1, diagonal_from=0.9)
    assert found.head_order == ((0, 1, 2), (1, 0, 2), (0, 2, 1))
    for layer, order in enumerate(found.head_order):
        torch.testing.assert_close(cad[layer][list(order)], cad[0] + 0.01 * layer)
    assert found.change == pytest.approx(0.01, rel=1e-5)


def test_a_layer_is_linguistic_from_half_of_its_heads_on():
    cad = [torch.tensor([0.0, 0.0, 0.9]), torch.tensor([0.0, 0.9]), torch.tensor([0.9, 0.9])]
    found = propose_map_groups(cad, [0.0] * 3, 3)
    assert found.linguistic == (False, True, True)
    assert found.sizes == (1, 1, 1)
    assert found.change == 0


def test_budgets_that_cannot_be():
    cad = cads(0.1, 0.2, 0.8, 0.1)
    assert propose(cad, 3).sizes == (2, 1, 1)
    with pytest.raises(ValueError, match=r"2 maps is too small.* changes at layer 2, 3\. Give at least 3"):
        propose(cad, 2)
    for maps in (0, 5):
        with pytest.raises(ValueError, match=f"a budget of {maps} maps must lie between 1 and the number of layers, 4"):
            propose(cad, maps)
    with pytest.raises(ValueError, match="NaN"):
        propose([*cad[:3], torch.tensor([float("nan"), 0.1])], 4)


def test_layers_of_other_head_counts_share_nothing():
    cad = [*cads(0.1, 0.1), *cads(0.1, 0.1, heads=1)]
    assert propose(cad, 2).sizes == (2, 2)
    with pytest.raises(ValueError, match="how many heads"):
        propose(cad, 1)


def test_from_a_document():
    given = document(layers=5)
    found = map_groups_of(given, 2)
    assert found.linguistic == tuple(
        given.modules[f"encoder.layers.{layer}.self_attn"].role[0] == "linguistic" for layer in range(5)
    )
    assert found.sizes == (3, 2)
    with pytest.raises(ValueError, match="no self-attention of the decoder"):
        map_groups_of(dataclasses.replace(given, modules={}), 1, "decoder")
    name = "encoder.layers.1.self_attn"
    unmeasured = {name: dataclasses.replace(given.modules[name], cad=[None, 0.8])}
    with pytest.raises(ValueError, match="NaN"):
        map_groups_of(dataclasses.replace(given, modules={**given.modules, **unmeasured}), 2)


def test_waited_for_heads():
    heads = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    last_share, lag = [0.1, 0.5, 0.1, 0.3, 0.0], [0.2, 0.9, 0.3, 0.8, 0.1]
    found = waited_for_heads(heads, last_share, lag, 3)
    # Of the two that are last for a tenth of the tokens the one with the greater lag; then layer 1 keeps its last head.
    assert [(h.layer, h.head) for h in found] == [(1, 1), (2, 0), (1, 2)]
    assert [(h.last_share, h.lag) for h in found] == [(0.5, 0.9), (0.3, 0.8), (0.1, 0.3)]
    assert waited_for_heads(heads, [0.0] * 5, [0.0] * 5, 3) == [(1, 0, 0, 0), (1, 1, 0, 0), (2, 0, 0, 0)]
    assert waited_for_heads(heads, last_share, lag, 0) == []
    for count in (-1, 4):
        with pytest.raises(ValueError, match=f"{count} heads to remove must lie between 0 and 3: each layer keeps one"):
            waited_for_heads(heads, last_share, lag, count)
    with pytest.raises(ValueError, match="was measured"):
        waited_for_heads(heads, [float("nan")] * 5, lag, 1)
