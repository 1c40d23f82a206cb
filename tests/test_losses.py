"""The training objective against computations by hand."""

import itertools

import pytest
import torch

from hf_entmax_asr.model.losses import recognition_losses, summed_ctc_loss
from support.small_models import features, small_config, small_model, targets


def test_cross_entropy_with_label_smoothing_by_hand():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[4, 3, 2], [3, 2, -100]])
    log_p = logits.double().log_softmax(-1)
    expected = 0.0
    for b, u in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)):
        expected -= 0.9 * log_p[b, u, labels[b, u]] + 0.1 * log_p[b, u].mean()
    losses = recognition_losses(small_config(vocab_size=5), logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(losses["loss"], (expected / 5).float())
    assert set(losses) == {"loss", "cross_entropy_loss"}
    assert not losses["cross_entropy_loss"].requires_grad


def test_labels_are_smoothed_in_training_only():
    model, smoothed = (small_model(label_smoothing=smoothing) for smoothing in (0.0, 0.2))
    input_features, _ = features()
    assert model(input_features, labels=targets()).loss == smoothed(input_features, labels=targets()).loss
    losses = [m.train()(input_features, labels=targets()).loss.item() for m in (model, smoothed)]
    assert abs(losses[0] - losses[1]) > 1e-3


def ctc_by_enumeration(log_p, target: list[int]):
    """−log of the sum over all paths that collapse to `target`; blank 0."""
    total = torch.zeros((), dtype=torch.float64)
    for path in itertools.product(range(log_p.shape[1]), repeat=log_p.shape[0]):
        collapsed = [token for token, _ in itertools.groupby(path) if token != 0]
        if collapsed == target:
            total += log_p[range(len(path)), path].sum().exp()
    return -total.log()


@pytest.mark.parametrize("eos", [2, [2, 3], None])
def test_ctc_by_enumeration(eos):
    config = small_config(vocab_size=5, eos_token_id=eos)
    logits = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[4, 1, 4, 2], [1, 2, -100, -100]])
    source_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    log_p = logits.double().log_softmax(-1)
    ends = [] if eos is None else [2]
    expected = sum(
        ctc_by_enumeration(log_p[b, :length], [token for token in target if token not in ends])
        for b, length, target in ((0, 5, [4, 1, 4, 2]), (1, 2, [1, 2]))
    )
    torch.testing.assert_close(summed_ctc_loss(config, logits, labels, source_mask).double(), expected)


def test_ctc_leaves_out_what_is_too_short_and_takes_empty_text():
    config = small_config(vocab_size=5)
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[4, 4, 4, 2], [2, -100, -100, -100]])  # 4 4 4 needs 5 positions; nothing needs none
    loss = summed_ctc_loss(config, logits, labels)
    torch.testing.assert_close(loss, -logits[1].log_softmax(-1)[:, 0].sum())
    loss.backward()
    assert (logits.grad[0] == 0).all()
    assert logits.grad.isfinite().all()


def test_the_parts_add_up():
    options = {"head_regularizer": "gate_l1", "head_regularizer_layers": [0, 1], "head_regularizer_weight": 0.5}
    model = small_model(ctc_loss_weight=0.25, **options).train()
    input_features, mask = features()
    output = model(input_features, attention_mask=mask, labels=targets())
    torch.testing.assert_close(output.head_penalty, torch.tensor(8.0))  # two layers of four gates, all 1
    expected = 0.75 * output.cross_entropy_loss + 0.25 * output.ctc_loss + 0.5 * output.head_penalty
    torch.testing.assert_close(output.loss, expected)
    assert output.ctc_logits.shape == (3, 16, 24)
    assert model.eval()(input_features, labels=targets()).head_penalty is None


@pytest.mark.parametrize("regularizer", ["none", "gate_l1", "quantity", "boundary_consensus"])
def test_parts_of_a_step_add_up_to_the_whole_batch(regularizer):
    options = {} if regularizer == "none" else {"head_regularizer_layers": [0], "head_regularizer_weight": 0.5}
    model = small_model(ctc_loss_weight=0.25, head_regularizer=regularizer, **options).train()
    input_features, mask = features(batch=4)
    labels = targets(batch=4)
    labels[2:] = labels[:2]  # halves of equally many tokens: the penalty is a mean over utterances
    whole = model(input_features, attention_mask=mask, labels=labels)
    expected = torch.autograd.grad(whole.loss, list(model.parameters()))
    items = (labels != -100).sum()
    halves = [
        model(input_features[part], attention_mask=mask[part], labels=labels[part], num_items_in_batch=items).loss
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(halves[0] + halves[1], whole.loss)
    gradients = torch.autograd.grad(halves[0] + halves[1], list(model.parameters()))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-6)


def test_decoder_inputs_are_the_labels_shifted():
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    shifted = small_model().prepare_decoder_input_ids_from_labels(labels)
    assert shifted.tolist() == [[1, 5, 6], [1, 7, 2]]


def test_a_frozen_encoder_is_not_trained():
    model = small_model()
    model.freeze_encoder()
    model(features()[0], labels=targets()).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained
    assert not any("encoder." in name and "decoder." not in name for name in trained)
