"""The phoneme probe: against Gaussian densities written out, and what a linear classifier can and cannot know."""

import pytest
import torch

from hf_entmax_asr.analysis import PhonemeProbe, split_disjoint
from reference_analysis import discriminant_loop


def clusters(frames: int = 300, width: int = 5, classes: int = 4, distance: float = 1.0, seed: int = 0):
    """States around one centre for each class, with a covariance that is not round; unequal classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = distance * torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    mixing = torch.randn(width, width, generator=torch.Generator().manual_seed(8))
    labels = torch.multinomial(torch.tensor([0.4, 0.3, 0.2, 0.1]), frames, True, generator=generator)
    return centres[labels] + torch.randn(frames, width, generator=generator) @ mixing, labels


def test_answers_equal_gaussian_densities():
    states, labels = clusters()
    new, truth = clusters(seed=1)
    expected = discriminant_loop(states, labels.tolist(), new, 0.01)
    probe = PhonemeProbe(1, 5, 6, shrinkage=0.01)  # two classes never come
    probe.train([states], labels)
    probe.test([new], torch.tensor(expected))
    assert probe.result().accuracy.item() == 1
    right = sum(e == t for e, t in zip(expected, truth.tolist(), strict=True))
    assert 0.3 < right / 300 < 0.95  # a task on which answers differ
    honest = PhonemeProbe(1, 5, 6, shrinkage=0.01)
    honest.train([states], labels)
    honest.test([new], truth)
    result = honest.result()
    assert result.accuracy.item() == pytest.approx(right / 300)
    assert (result.train_frames, result.test_frames, result.classes) == (300, 300, 4)
    assert result.majority_rate == pytest.approx((truth == labels.bincount().argmax()).double().mean().item())


def test_layers_are_apart_and_batches_do_not_matter():
    states, labels = clusters(distance=3)
    new, truth = clusters(distance=3, seed=1)
    noise = torch.randn(600, 5, generator=torch.Generator().manual_seed(4))
    whole, pieces = PhonemeProbe(2, 5, 4), PhonemeProbe(2, 5, 4)
    whole.train([states, noise[:300]], labels)
    whole.test([new, noise[300:]], truth)
    for part in (slice(0, 120), slice(120, 300)):
        shape = (-1, 20)  # (B, T, C) and (B, T)
        pieces.train([states[part].view(*shape, 5), noise[:300][part].view(*shape, 5)], labels[part].view(shape))
    for part in (slice(0, 40), slice(40, 300)):
        pieces.test([new[part], noise[300:][part]], truth[part])
    informed, ignorant = whole.result().accuracy.tolist()
    assert informed > 0.8
    assert ignorant < whole.result().majority_rate + 0.05
    assert pieces.result().accuracy.tolist() == [informed, ignorant]


def test_offset_and_scale_change_nothing():
    states, labels = clusters()
    new, truth = clusters(seed=1)
    accuracies = []
    for offset, scale in ((0, 1), (1000, 1), (0, 1e-3), (50, 100)):
        probe = PhonemeProbe(1, 5, 4)
        probe.train([states.double() * scale + offset], labels)
        probe.test([new.double() * scale + offset], truth)
        accuracies.append(probe.result().accuracy.item())
    assert len(set(accuracies)) == 1


def test_frames_without_class_are_left_out():
    states, labels = clusters()
    marked = labels.clone()
    marked[::3] = -1
    some, chosen = PhonemeProbe(1, 5, 4), PhonemeProbe(1, 5, 4)
    some.train([states.where((marked >= 0)[:, None], torch.nan)], marked)
    chosen.train([states[marked >= 0]], labels[marked >= 0])
    for probe in (some, chosen):
        probe.test([states], labels)
    assert torch.equal(some.result().accuracy, chosen.result().accuracy)
    assert some.result().train_frames == 200


def test_a_feature_that_never_varies_is_no_obstacle():
    states, labels = clusters(distance=3)
    states[:, 2] = 7.0
    probe = PhonemeProbe(1, 5, 4)
    probe.train([states], labels)
    probe.test([states], labels)
    assert probe.result().accuracy.item() > 0.7


def test_without_test_frames_there_is_no_accuracy():
    states, labels = clusters()
    probe = PhonemeProbe(1, 5, 4)
    probe.train([states], labels)
    assert probe.result().accuracy.isnan().all()
    assert probe.result().majority_rate != probe.result().majority_rate


def test_bad_input_is_refused():
    states, labels = clusters()
    with pytest.raises(ValueError, match=r"shrinkage = 0 must lie in \(0, 1\]"):
        PhonemeProbe(1, 5, 4, shrinkage=0)
    probe = PhonemeProbe(2, 5, 4)
    with pytest.raises(ValueError, match="hidden states are 1 of shapes"):
        probe.train([states], labels)
    with pytest.raises(ValueError, match=r"needs 2 of shape \(299, 5\)"):
        probe.train([states, states], labels[1:])
    with pytest.raises(ValueError, match="labels hold 7; the probe has 4"):
        probe.train([states, states], labels + 4)
    with pytest.raises(ValueError, match="frames of two classes"):
        probe.test([states, states], labels)
    probe.train([states, states], labels)
    probe.test([states, states], labels)
    with pytest.raises(ValueError, match="must come before"):
        probe.train([states, states], labels)


# who is tested


def test_speakers_are_kept_apart():
    speakers = [f"s{i % 7}" for i in range(70)]
    texts = [f"text {i % 3}" for i in range(70)]
    train, test, by = split_disjoint(speakers, texts)
    assert by == "speaker"
    assert sorted(train + test) == list(range(70))
    assert not {speakers[i] for i in train} & {speakers[i] for i in test}
    assert len(test) == 30  # whole speakers of 10 utterances, at least 30 %
    assert split_disjoint(speakers, texts) == (train, test, by)


@pytest.mark.parametrize("speakers", [[None] * 20, ["Anna"] * 20, ["Anna"] * 10 + ["Ben"] * 9 + [None]])
def test_without_speakers_sentences_are_kept_apart(speakers):
    texts = [f"text {i % 5}" for i in range(20)]
    train, test, by = split_disjoint(speakers, texts, test_share=0.5)
    assert by == "sentence"
    assert sorted(train + test) == list(range(20))
    assert not {texts[i] for i in train} & {texts[i] for i in test}
    assert len(test) == 12


def test_something_is_always_left_to_learn_from():
    train, test, _ = split_disjoint(["a", "b"], ["x", "x"], test_share=0.99)
    assert len(train) == len(test) == 1
    with pytest.raises(ValueError, match="two speakers, or two different sentences"):
        split_disjoint([None, None], ["same", "same"])
    with pytest.raises(ValueError, match="test_share = 1"):
        split_disjoint(["a", "b"], ["x", "y"], test_share=1)
    with pytest.raises(ValueError, match="1 speakers and 2 texts"):
        split_disjoint(["a"], ["x", "y"])
