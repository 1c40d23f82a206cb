"""CTC beside the decoder in `generate`: the probability of all that may follow a prefix, for its best next tokens.

Joint decoding of Hori, Watanabe & Hershey 2017 (arXiv 1706.02737): each token costs

    (1 − weight) · log p(token | prefix, audio) of the decoder + weight · log (ψ(prefix, token) / ψ(prefix)) of CTC

with ψ the CTC probability of all texts that begin so, and at the end that of the text itself. The recursions over
positions are cumulative log-sum-exps, and all rows are scored at once, so that no loop is left.

Axes: B utterances, N rows (utterances times beams), S positions, K candidates, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

NEVER = -1e5  # log probability of what cannot be; finite, so that differences of sums stay numbers
CANDIDATES_PER_BEAM = 4
FEWEST_CANDIDATES = 40  # all of an alphabet


class State(NamedTuple):
    """Of N rows: log probabilities (N, S) of the paths to each position that end in the last token, and in a blank;
    the last token (N,), −1 at first; log ψ (N,) of the prefix."""

    in_token: Tensor
    in_blank: Tensor
    last: Tensor
    psi: Tensor


class CtcPrefixScorer(LogitsProcessor):
    """Adds CTC to the scores of the next tokens, greedy and with beams; tokens beyond the decoder's best few candidates
    are left out. Put it before other processors of your own: of greedy search it makes log probabilities."""

    def __init__(
        self, log_probs: Tensor, lengths: Tensor, weight: float, blank: int, end: Sequence[int], given: int, beams: int
    ) -> None:
        """log_probs (B, S, V) of CTC, lengths (B,) in positions; `given` tokens stand before the text."""
        beyond = torch.arange(log_probs.shape[1], device=log_probs.device) >= lengths[:, None]  # (B, S)
        self.scores = log_probs.double().clamp(min=NEVER).masked_fill(beyond[..., None], NEVER)
        self.scores[..., blank].masked_fill_(beyond, 0.0)
        self.weight, self.blank, self.given = weight, blank, given
        self.end = torch.tensor(list(end), device=log_probs.device)
        self.beams = beams
        self.candidates = max(FEWEST_CANDIDATES, CANDIDATES_PER_BEAM * beams)
        self._before: tuple[Tensor, State] | None = None  # texts (N, U) of the call before, and their states

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (N, given + U), scores (N, V) -> (N, V)."""
        # Beam search gives log probabilities, with tokens it has ruled out among them; greedy search gives logits.
        scores = scores.float() if self.beams > 1 else scores.float().log_softmax(-1)
        texts = input_ids[:, self.given :]
        state = self.states_of(texts)
        best = scores.topk(min(self.candidates, scores.shape[1])).indices
        tokens = torch.cat([best, self.end.expand(len(best), -1)], 1)  # (N, K)
        gained = (self.following(state, tokens, texts.shape[1] > 0) - state.psi[:, None]).clamp(min=NEVER).float()
        joint = (1 - self.weight) * scores.gather(1, tokens) + self.weight * gained
        if not torch.isin(self.blank, self.end):
            joint = joint.masked_fill(tokens == self.blank, -math.inf)
        fused = torch.full_like(scores, -math.inf).scatter(1, tokens, joint)
        ended = torch.isin(texts, self.end).any(1)  # (N,)
        return torch.where(ended[:, None], scores, fused)

    def states_of(self, texts: Tensor) -> State:
        """Behind the texts (N, U), rows of one utterance side by side; from the call before, where they go on."""
        rows = len(texts)
        state = self._continued(texts)
        if state is None:
            utterances = self._utterances(rows)
            blanks = self.scores[utterances, :, self.blank].cumsum(1)  # (N, S)
            nothing = torch.full_like(blanks, NEVER)
            last = torch.full((rows,), -1, dtype=torch.long, device=blanks.device)
            state = State(nothing, blanks, last, torch.zeros_like(blanks[:, 0]))
            for u, token in enumerate(texts.unbind(1)):
                state = self.longer(state, token, u > 0)
        self._before = texts, state
        return state

    def following(self, state: State, tokens: Tensor, begun: bool) -> Tensor:
        """log ψ (N, K) of each prefix with each of the tokens (N, K); of an end, log p(prefix is the text)."""
        in_token, in_blank, last, _ = state
        scores = self.scores[self._utterances(len(tokens))[:, None], :, tokens]  # (N, K, S)
        either = torch.logaddexp(in_token, in_blank)
        enters = torch.where((tokens == last[:, None])[..., None], in_blank[:, None], either[:, None])
        reached = (_later(enters, NEVER if begun else 0.0) + scores).logsumexp(-1)
        return torch.where(torch.isin(tokens, self.end), either[:, -1:], reached)

    def _continued(self, texts: Tensor) -> State | None:
        """States of texts that are each a token longer than one of their utterance in the call before, if all are."""
        if self._before is None or self._before[0].shape != (len(texts), texts.shape[1] - 1):
            return None
        before, state = self._before
        count, each = len(self.scores), len(texts) // len(self.scores)
        old, new = (t.view(count, each, -1) for t in (before, texts[:, :-1]))
        same = (new[:, :, None] == old[:, None]).all(-1)  # (B, rows now, rows before)
        if not same.any(-1).all():
            return None
        parents = same.int().argmax(-1) + each * torch.arange(count, device=texts.device)[:, None]
        return self.longer(State(*(part[parents.flatten()] for part in state)), texts[:, -1], texts.shape[1] > 1)

    def longer(self, state: State, token: Tensor, begun: bool) -> State:
        """The states with one token (N,) more; `begun`: there was one before."""
        in_token, in_blank, last, _ = state
        utterances = self._utterances(len(token))
        blanks = self.scores[utterances, :, self.blank].cumsum(1)
        stays = self.scores[utterances, :, token].cumsum(1)  # (N, S)
        enters = torch.where((token == last)[:, None], in_blank, torch.logaddexp(in_token, in_blank))
        enters = _later(enters, NEVER if begun else 0.0)
        new_token = stays + (enters - F.pad(stays[:, :-1], (1, 0))).logcumsumexp(1)
        new_blank = blanks + (_later(new_token, NEVER) - F.pad(blanks[:, :-1], (1, 0))).logcumsumexp(1)
        psi = (enters + self.scores[utterances, :, token]).logsumexp(1)
        return State(new_token, new_blank, token, psi)

    def _utterances(self, rows: int) -> Tensor:
        """(N,) the utterance of each row."""
        return torch.arange(rows, device=self.scores.device) // (rows // len(self.scores))


def text_log_probabilities(log_probs: Tensor, lengths: Tensor, blank: int, tokens: Tensor, counts: Tensor) -> Tensor:
    """log p(text | audio) (B, K) of the first `counts` (B, K) of tokens (B, K, U), by log_probs (B, S, V) of CTC in
    `lengths` (B,) positions."""
    scorer = CtcPrefixScorer(log_probs, lengths, 1.0, blank, [-1], given=0, beams=1)
    rows, ends = tokens.flatten(0, 1), counts.flatten()
    state = scorer.states_of(rows[:, :0])
    found = torch.logaddexp(state.in_token[:, -1], state.in_blank[:, -1])  # of the empty text
    for index, token in enumerate(rows.unbind(1)):
        state = scorer.longer(state, token, index > 0)
        whole = torch.logaddexp(state.in_token[:, -1], state.in_blank[:, -1])
        found = torch.where(ends == index + 1, whole, found)
    return found.view(counts.shape)


def _later(values: Tensor, first: float) -> Tensor:
    """Values (..., S) of the position before, `first` at the first."""
    return torch.cat([torch.full_like(values[..., :1], first), values[..., :-1]], -1)
