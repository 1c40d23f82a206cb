"""How well phonemes can be told apart, layer by layer: a linear classifier on hidden states.

Linear discriminant analysis, because its training needs only sums (class means and one covariance): a data set of any
size streams through in bounded memory, in one pass, without iterations or chance. Logistic regression would need every
frame at hand.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy of a probe on frames that it was not trained on.

    Attributes:
        accuracy: (layers,) share of the test frames whose class was found. NaN without test frames.
        majority_rate: share of the test frames that always answering the most frequent class of training would find.
        train_frames, test_frames: frames with a class.
        classes: classes seen in training.
    """

    accuracy: Tensor
    majority_rate: float
    train_frames: int
    test_frames: int
    classes: int


class PhonemeProbe:
    """A linear classifier per layer, trained and tested on a stream: first `train`, then `test`, then `result`.

    Classes are Gaussian with one covariance (shrunk towards a multiple of the identity) and the prior of training.
    """

    def __init__(self, layers: int, width: int, classes: int, shrinkage: float = 1e-3) -> None:
        """
        Args:
            layers: number of hidden states per frame (subsampling's output and each layer's).
            width: C.
            classes: K; labels are 0 … K − 1, and −1 for frames to leave out.
            shrinkage: share of the covariance that is replaced by its mean variance times the identity, in (0, 1].
        """
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage = {shrinkage} must lie in (0, 1]; 0.001 is usual.")
        self.shrinkage = shrinkage
        self._shape = (layers, width)
        self._frames = torch.zeros(classes, dtype=torch.float64)
        self._sums = torch.zeros(layers, classes, width, dtype=torch.float64)
        self._products = torch.zeros(layers, width, width, dtype=torch.float64)
        self._weights: tuple[Tensor, Tensor] | None = None  # (layers, K, C), (layers, K)
        self._correct = torch.zeros(layers, dtype=torch.float64)
        self._majority = self._tested = 0

    def train(self, hidden_states: Sequence[Tensor], labels: Tensor) -> None:
        """Adds frames to learn from: (…, C) per layer, and their labels (…).

        Raises:
            ValueError: shapes that do not fit, or frames after the first test.
        """
        if self._weights is not None:
            raise ValueError("the probe was tested already; all of train() must come before test().")
        states, labels = self._chosen(hidden_states, labels)
        one_hot = torch.nn.functional.one_hot(labels, len(self._frames)).double()  # (N, K)
        self._frames += one_hot.sum(0)
        self._sums += one_hot.T @ states  # (layers, K, C)
        self._products += states.mT @ states

    def test(self, hidden_states: Sequence[Tensor], labels: Tensor) -> None:
        """Counts what is found among other frames; arguments as for `train`.

        Raises:
            ValueError: shapes that do not fit, or nothing was learned.
        """
        if self._weights is None:
            self._weights = self._solve()
        states, labels = self._chosen(hidden_states, labels)
        weight, bias = self._weights
        found = (states @ weight.mT + bias[:, None]).argmax(-1)  # (layers, N)
        self._correct += (found == labels).sum(1)
        self._majority += int((labels == int(self._frames.argmax())).sum())
        self._tested += len(labels)

    def result(self) -> ProbeResult:
        """The accuracies so far."""
        return ProbeResult(
            accuracy=self._correct / self._tested,
            majority_rate=self._majority / self._tested if self._tested else float("nan"),
            train_frames=int(self._frames.sum()),
            test_frames=self._tested,
            classes=int((self._frames > 0).sum()),
        )

    def _solve(self) -> tuple[Tensor, Tensor]:
        """log p(k | x) = w_k · x + b_k + const, w_k = Σ⁻¹ μ_k, b_k = log π_k − ½ μ_k · w_k."""
        total = self._frames.sum()
        if int((self._frames > 0).sum()) < 2:
            raise ValueError(f"a probe needs frames of two classes to learn from; it saw {int(total)} frames of fewer.")
        origin = (self._sums.sum(1) / total)[:, None]  # (layers, 1, C): rounding is least around the mean
        means = self._sums / self._frames.clamp(min=1)[:, None] - origin
        within = self._products / total - origin.mT @ origin - (means * self._frames[:, None] / total).mT @ means
        variance = within.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=torch.finfo(torch.float64).tiny)
        identity = torch.eye(within.shape[-1], dtype=torch.float64)
        covariance = (1 - self.shrinkage) * within + self.shrinkage * variance[:, None, None] * identity
        weight = torch.linalg.solve(covariance, means.mT).mT  # (layers, K, C)
        bias = (self._frames / total).log() - 0.5 * (weight * means).sum(-1)  # a class never seen: −∞
        return weight, bias - (weight * origin).sum(-1)

    def _chosen(self, hidden_states: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
        """States (layers, N, C) in float64 and labels (N,) of the frames that have a class, on the CPU."""
        layers, width = self._shape
        shapes = {tuple(state.shape) for state in hidden_states}
        if len(hidden_states) != layers or shapes != {(*labels.shape, width)}:
            raise ValueError(
                f"hidden states are {len(hidden_states)} of shapes {sorted(shapes)}; the probe needs {layers} of shape "
                f"{(*labels.shape, width)}, from labels {tuple(labels.shape)} and its width."
            )
        if labels.numel() and int(labels.max()) >= len(self._frames):
            raise ValueError(f"labels hold {int(labels.max())}; the probe has {len(self._frames)} classes.")
        chosen = labels >= 0
        states = torch.stack([state.detach()[chosen.to(state.device)].double().cpu() for state in hidden_states])
        return states, labels[chosen].cpu()


def split_disjoint(
    speakers: Sequence[str | None], texts: Sequence[str], test_share: float = 0.3
) -> tuple[list[int], list[int], str]:
    """Utterances to train on, to test on, and what the two never share: "speaker" or "sentence".

    Whole speakers go to one side where at least two are known and none is unknown, else whole sentences (equal texts).
    The order depends on a hash of the names alone, so that a run can be repeated.

    Raises:
        ValueError: fewer than two groups, sizes that do not agree, or a share outside (0, 1).
    """
    if len(speakers) != len(texts):
        raise ValueError(f"{len(speakers)} speakers and {len(texts)} texts must be as many.")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share = {test_share} must lie between 0 and 1.")
    known = {speaker for speaker in speakers if speaker}
    by_speaker = len(known) >= 2 and all(speakers)
    members: dict[str, list[int]] = {}
    for index, name in enumerate(speakers if by_speaker else texts):
        members.setdefault(str(name), []).append(index)
    if len(members) < 2:
        raise ValueError("a probe needs two speakers, or two different sentences, to train and test on disjoint ones.")
    ordered = sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest())
    test: list[int] = []
    while len(ordered) > 1 and len(test) < test_share * len(texts):
        test += members[ordered.pop()]
    train = [index for name in ordered for index in members[name]]
    return sorted(train), sorted(test), "speaker" if by_speaker else "sentence"
