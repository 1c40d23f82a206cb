"""CTC beside the decoder in `generate`: the probability of all that may follow a prefix, for its best next tokens.

Joint decoding of Hori, Watanabe & Hershey 2017 (arXiv 1706.02737): each token costs

    (1 − weight) · log p(token | prefix, audio) of the decoder + weight · log (ψ(prefix, token) / ψ(prefix)) of CTC

with ψ the CTC probability of all texts that begin so, and at the end that of the text itself. The recursions over
positions are cumulative log-sum-exps, so that no loop over positions is left.

Axes: B utterances, N rows (utterances times beams), S positions, K candidates, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

NEVER = -1e5  # log probability of what cannot be; finite, so that differences of sums stay numbers
CANDIDATES_PER_BEAM = 4
FEWEST_CANDIDATES = 16

State = tuple[Tensor, Tensor, int]  # paths that end in a token, in a blank (S,); the last token


class CtcPrefixScorer(LogitsProcessor):
    """Adds CTC to the scores of the next tokens, greedy and with beams; tokens beyond the decoder's best few candidates
    are left out. Put it before other processors of your own: of greedy search it makes log probabilities."""

    def __init__(
        self, log_probs: Tensor, lengths: Tensor, weight: float, blank: int, end: Sequence[int], given: int, beams: int
    ) -> None:
        """log_probs (B, S, V) of CTC, lengths (B,) in positions; `given` tokens stand before the text.

        Raises:
            ValueError: a weight outside [0, 1].
        """
        if not 0 <= weight <= 1:
            raise ValueError(f"ctc_weight = {weight} must lie in [0, 1]: 0 is the decoder alone, 1 CTC alone.")
        beyond = torch.arange(log_probs.shape[1], device=log_probs.device) >= lengths[:, None]  # (B, S)
        self.scores = log_probs.double().clamp(min=NEVER).masked_fill(beyond[..., None], NEVER)
        self.scores[..., blank].masked_fill_(beyond, 0.0)
        self.weight, self.blank, self.end, self.given = weight, blank, set(end), given
        self.beams = beams
        self.candidates = max(FEWEST_CANDIDATES, CANDIDATES_PER_BEAM * beams)
        self._states: dict[tuple[int, tuple[int, ...]], tuple[State, float]] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (N, given + tokens so far), scores (N, V) -> (N, V)."""
        # Beam search gives log probabilities, with tokens it has ruled out among them; greedy search gives logits.
        scores = scores.float() if self.beams > 1 else scores.float().log_softmax(-1)
        rows_each = len(scores) // len(self.scores)
        fused = torch.full_like(scores, float("-inf"))
        states: dict[tuple[int, tuple[int, ...]], tuple[State, float]] = {}
        for row, ids in enumerate(input_ids[:, self.given :].tolist()):
            utterance, prefix = row // rows_each, tuple(ids)
            if self.end & set(prefix):
                fused[row] = scores[row]
                continue
            state, before = states[utterance, prefix] = self._state(utterance, prefix)
            best = scores[row].topk(min(self.candidates, scores.shape[1])).indices.tolist()
            tokens = sorted({token for token in best if token != self.blank} | self.end)
            index = torch.tensor(tokens, device=scores.device)
            gained = self.following(utterance, state, tokens, bool(prefix)) - before
            ctc = self.weight * gained.clamp(min=NEVER).float() if self.weight else 0.0
            fused[row, index] = (1 - self.weight) * scores[row, index] + ctc
            if self.weight == 1:  # nothing of 0 · −inf
                fused[row, index] = gained.float()
        self._states = states
        return fused

    def following(self, utterance: int, state: State, tokens: Sequence[int], begun: bool) -> Tensor:
        """log ψ of the prefix with each of the tokens (K,); of an end, log p(prefix is the text)."""
        in_token, in_blank, last = state
        index = torch.tensor(list(tokens), device=in_token.device)
        scores = self.scores[utterance][:, index]  # (S, K)
        enters = torch.logaddexp(in_token, in_blank)[:, None].expand(-1, len(index)).clone()
        enters[:, index == last] = in_blank[:, None]
        reached = (_later(enters, NEVER if begun else 0.0) + scores).logsumexp(0)
        whole = torch.logaddexp(in_token[-1], in_blank[-1])
        ends = torch.tensor([token in self.end for token in tokens], device=index.device)
        return torch.where(ends, whole, reached)

    def _state(self, utterance: int, prefix: tuple[int, ...]) -> tuple[State, float]:
        """The state behind a prefix, and its log ψ."""
        if (utterance, prefix) in self._states:
            return self._states[utterance, prefix]
        blanks = self.scores[utterance][:, self.blank].cumsum(0)
        if not prefix:
            return (torch.full_like(blanks, NEVER), blanks, -1), 0.0
        before, _ = self._state(utterance, prefix[:-1])
        in_token, in_blank, last = before
        token = prefix[-1]
        enters = in_blank if token == last else torch.logaddexp(in_token, in_blank)
        stays = self.scores[utterance][:, token].cumsum(0)
        start = NEVER if len(prefix) > 1 else 0.0
        new_token = stays + (_later(enters, start) - F.pad(stays[:-1], (1, 0))).logcumsumexp(0)
        new_blank = blanks + (_later(new_token, NEVER) - F.pad(blanks[:-1], (1, 0))).logcumsumexp(0)
        total = float(self.following(utterance, before, [token], len(prefix) > 1)[0])
        return (new_token, new_blank, token), total


def _later(values: Tensor, first: float) -> Tensor:
    """Values (S, …) of the position before, `first` at the first."""
    return torch.cat([torch.full_like(values[:1], first), values[:-1]])
