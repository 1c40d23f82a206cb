"""The transducer's lattice: published values, all alignments one by one, gradients, memory, and its special case."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_entmax_asr.model.alignment import expected_alignment
from hf_entmax_asr.model.transducer_lattice import (
    alignment_log_probability,
    best_alignment,
    emissions,
    forward_variables,
    streamed_emissions,
    transducer_log_probability,
)

PUBLISHED = torch.tensor(  # of warp-transducer's tests: T = 2, labels [1, 2], blank 0
    [
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.6, 0.1, 0.1], [0.1, 0.1, 0.2, 0.8, 0.1]],
        [[0.1, 0.6, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1], [0.7, 0.1, 0.2, 0.1, 0.1]],
    ]
)[None]


def alignments(frames: int, tokens: int):
    """Every alignment: the frame of each label, in order."""
    return itertools.combinations_with_replacement(range(frames), tokens)


def scores_of(blank, label, frames: int, written) -> float:
    """One alignment step by step: labels of a frame, then its blank."""
    total, u = 0.0, 0
    for t in range(frames):
        while u < len(written) and written[u] == t:
            total, u = total + float(label[t, u]), u + 1
        total += float(blank[t, u])
    return total


@pytest.fixture(scope="module")
def ragged():
    """log probabilities (B, T, W) and (B, T, U) of three utterances, their frames and tokens, padding full of NaN."""
    torch.manual_seed(0)
    frames, tokens = torch.tensor([4, 3, 1]), torch.tensor([2, 3, 0])
    blank, label = torch.randn(3, 4, 4, dtype=torch.float64), torch.randn(3, 4, 3, dtype=torch.float64)
    for row in range(3):
        blank[row, frames[row] :], label[row, frames[row] :] = math.nan, math.nan
        blank[row, :, tokens[row] + 1 :], label[row, :, tokens[row] :] = math.nan, math.nan
    return blank, label, frames, tokens


def test_the_published_values():
    logits = PUBLISHED.double().requires_grad_()
    labels, sizes = torch.tensor([[1, 2]]), (torch.tensor([2]), torch.tensor([2]))
    loss = -transducer_log_probability(*emissions(logits, labels, 0), *sizes)
    assert loss.item() == pytest.approx(4.495666, abs=1e-6)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(
        grad[0, 0, 0], torch.tensor([-0.131167, -0.399927, *[0.177031] * 3]).double(), atol=1e-6, rtol=0
    )
    assert grad[0, 1, 2, 0].item() == pytest.approx(-0.692588, abs=1e-6)


@pytest.mark.parametrize(("frames", "tokens", "vocabulary"), [(5, 3, 7), (1, 4, 3), (6, 0, 2)])
def test_uniform_scores_count_the_alignments(frames, tokens, vocabulary):
    logits = torch.zeros(1, frames, tokens + 1, vocabulary, dtype=torch.float64)
    found = transducer_log_probability(
        *emissions(logits, torch.ones(1, tokens, dtype=torch.long), 0), torch.tensor([frames]), torch.tensor([tokens])
    )
    expected = math.log(math.comb(frames + tokens - 1, tokens)) - (frames + tokens) * math.log(vocabulary)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_all_alignments_one_by_one(ragged):
    """Their sum, the best of them, and its score; what is padding changes nothing."""
    blank, label, frames, tokens = ragged
    total = transducer_log_probability(*ragged)
    written = best_alignment(*ragged)
    of_best = alignment_log_probability(blank, label, frames, written)
    for row in range(3):
        t, u = int(frames[row]), int(tokens[row])
        each = {way: scores_of(blank[row], label[row], t, way) for way in alignments(t, u)}
        assert total[row].item() == pytest.approx(torch.tensor(list(each.values())).logsumexp(0).item(), abs=1e-6)
        best = max(each, key=each.get)
        assert written[row].tolist() == [*best, *[4] * (3 - u)]
        assert of_best[row].item() == pytest.approx(each[best], abs=1e-9)


def test_an_utterance_without_frames_has_no_alignment_and_no_gradient():
    blank, label = torch.zeros(2, 3, 3, requires_grad=True), torch.zeros(2, 3, 2, requires_grad=True)
    found = transducer_log_probability(blank, label, torch.tensor([0, 3]), torch.tensor([2, 2]))
    assert found[0] == -math.inf
    found.where(found > -math.inf, 0.0).sum().backward()
    assert (blank.grad[0] == 0).all()
    assert (blank.grad[1] > 0).any()


def test_gradients():
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    labels, sizes = torch.randint(1, 5, (2, 3)), (torch.tensor([3, 2]), torch.tensor([3, 1]))
    assert torch.autograd.gradcheck(
        lambda x: transducer_log_probability(*emissions(x, labels, 0), *sizes), logits, fast_mode=False
    )
    written = torch.tensor([[0, 0, 2], [1, 3, 3]])
    assert torch.autograd.gradcheck(
        lambda x: alignment_log_probability(*emissions(x, labels, 0), sizes[0], written), logits
    )


class Largest(TorchDispatchMode):
    """The most numbers that any tensor holds which an operation makes."""

    numel = 0

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def test_streamed_logits_give_the_same_and_are_never_all_there():
    torch.manual_seed(0)
    batch, length, width, vocabulary, size = 2, 24, 6, 40, 8
    joint = torch.nn.Linear(size, vocabulary)
    frames, written = torch.randn(batch, length, size), torch.randn(batch, width, size)
    labels = torch.randint(1, vocabulary, (batch, width - 1))
    sizes = (torch.tensor([24, 17]), torch.tensor([5, 3]))

    def results(frames_at_once: int) -> tuple[list[torch.Tensor], int]:
        inputs = [x.clone().requires_grad_() for x in (frames, written)]
        with Largest() as largest:
            found = streamed_emissions(
                lambda part: joint((part[:, :, None] + inputs[1][:, None]).tanh()), inputs[0], labels, 0, frames_at_once
            )
            loss = -transducer_log_probability(*found, *sizes).sum()
            grads = torch.autograd.grad(loss, [*inputs, joint.weight])
        return [loss, *grads], largest.numel

    whole, all_at_once = results(length)
    streamed, largest = results(3)
    for ours, expected in zip(streamed, whole, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert all_at_once == batch * length * width * vocabulary
    assert largest == batch * 3 * width * vocabulary


def test_half_precision_logits_are_computed_in_float32():
    logits = PUBLISHED.bfloat16().requires_grad_()
    found = emissions(logits, torch.tensor([[1, 2]]), 0)
    assert found[0].dtype == torch.float32
    found[0].sum().backward()
    assert logits.grad.dtype == torch.bfloat16


def test_monotonic_attention_is_a_special_case():
    """A head that stops with probability σ(e) and may stay writes a label where it stops: exp(α + y)."""
    torch.manual_seed(0)
    energies = torch.randn(2, 4, 9, dtype=torch.float64)  # (B, U, S)
    go = torch.nn.functional.logsigmoid(-energies).transpose(1, 2)  # (B, S, U)
    stop = torch.nn.functional.logsigmoid(energies).transpose(1, 2)
    blank = torch.nn.functional.pad(go, (0, 1))  # behind the last label nothing is asked any more
    expected = expected_alignment(energies[:, None])[:, 0]  # (B, U, S)
    found = (forward_variables(blank, stop)[:, :, :-1] + stop).exp().transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
