"""CTC alone in `generate`: the text of the likeliest path, or the likeliest texts by prefix beam search.

Position after position, a beam of texts is kept with the probability of all paths to each of them (Hannun et al. 2014,
arXiv 1408.2873), apart for those that end in a blank and in the last token. All beams of all utterances take a position
in one step. Logits processors, an n-gram language model among them, say what a token adds to the score of a text.

Axes: B utterances, S positions, V vocabulary, K beams, C candidates of a position, U tokens.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from .ctc_prefix import text_log_probabilities

FEWEST_CANDIDATES = 24  # of a position; what is less likely there begins no text
CANDIDATES_PER_BEAM = 2
HASH_FACTOR = 6364136223846793005  # odd, so that no text's key loses bits
NOTHING = -math.inf

Additions = Callable[[Tensor], Tensor]


class CtcTexts(NamedTuple):
    """tokens (B, K, U), of which lengths (B, K) count; scores (B, K), −∞ where there are fewer texts."""

    tokens: Tensor
    lengths: Tensor
    scores: Tensor


class _Beams(NamedTuple):
    """tokens (B, K, U) and lengths (B, K) of texts; key (B, K) of their tokens and last token (B, K), −1 at first; log
    probabilities (B, K) of the paths that end in a blank and in that token; what was added (B, K), and what each next
    token would add (B, K, V)."""

    tokens: Tensor
    lengths: Tensor
    key: Tensor
    last: Tensor
    in_blank: Tensor
    in_token: Tensor
    added: Tensor
    next_added: Tensor | None


def masked_scores(log_probs: Tensor, lengths: Tensor, blank: int, never: list[int]) -> Tensor:
    """log_probs (B, S, V) in float64, with nothing but blanks behind the audio (B,), and without the tokens `never`."""
    scores = log_probs.double()
    scores[..., [token for token in never if token != blank]] = NOTHING
    beyond = torch.arange(scores.shape[1], device=scores.device) >= lengths[:, None]  # (B, S)
    scores = scores.masked_fill(beyond[..., None], NOTHING)
    scores[..., blank].masked_fill_(beyond, 0.0)
    return scores


def best_path_texts(scores: Tensor, limits: Tensor, blank: int) -> CtcTexts:
    """Greedy: the texts (K = 1) of the likeliest paths, without their tokens beyond the limits (B,).
    scores: (B, S, V)."""
    path = scores.argmax(2)  # (B, S)
    counts = path != blank
    counts[:, 1:] &= path[:, 1:] != path[:, :-1]
    counts &= counts.cumsum(1) <= limits[:, None]
    lengths = counts.sum(1)
    order = (~counts).int().argsort(dim=1, stable=True)  # tokens of the text first
    texts = path.gather(1, order)[:, None, : int(lengths.max())]
    return CtcTexts(texts, lengths[:, None], torch.zeros_like(scores[:, :1, 0]))


def prefix_beam_search(
    scores: Tensor, limits: Tensor, blank: int, end: int, beams: int, additions: Additions | None = None
) -> CtcTexts:
    """The likeliest texts, in no order, with what was added to each.

    Args:
        scores: (B, S, V), see `masked_scores`.
        limits: (B,) tokens that a text can have.
        end: the token whose addition ends a text.
        beams: K.
        additions: of N texts of one length (N, U), what each next token adds (N, V); None: nothing.
    """
    state = _empty(scores, beams, additions)
    for position in scores.unbind(1):
        state, longer = _step(state, position, limits, blank)
        if additions is not None:
            _fill_in(state, longer, additions)
    added = state.added.masked_fill(torch.logaddexp(state.in_blank, state.in_token) == NOTHING, NOTHING)
    if state.next_added is not None:
        added = added + state.next_added[..., end]
    return CtcTexts(state.tokens, state.lengths, added)


def _empty(scores: Tensor, beams: int, additions: Additions | None) -> _Beams:
    """The empty text, in the first of the beams."""
    batch, _, vocabulary = scores.shape
    none = torch.full((batch, beams), NOTHING, dtype=scores.dtype, device=scores.device)
    first = none.clone()
    first[:, 0] = 0.0
    zeros = torch.zeros(batch, beams, dtype=torch.long, device=scores.device)
    next_added = None
    if additions is not None:
        start = additions(torch.zeros(1, 0, dtype=torch.long, device=scores.device))
        next_added = start.to(scores).expand(batch, beams, vocabulary).clone()
    return _Beams(
        zeros[..., None][..., :0], zeros, _no_keys(zeros), zeros - 1, first, none, torch.zeros_like(none), next_added
    )


def _step(state: _Beams, position: Tensor, limits: Tensor, blank: int) -> tuple[_Beams, Tensor]:
    """One position, with the log probabilities (B, V); also which beams (B, K) hold a text longer than before."""
    batch, beams = state.key.shape
    total = torch.logaddexp(state.in_blank, state.in_token)
    in_blank = total + position[:, [blank]]
    repeated = position.gather(1, state.last.clamp(min=0)).masked_fill(state.last < 0, NOTHING)
    in_token = state.in_token + repeated

    others = position.clone()
    others[:, blank] = NOTHING
    count = min(others.shape[1] - 1, max(FEWEST_CANDIDATES, CANDIDATES_PER_BEAM * beams))
    reached, candidates = others.topk(count, 1)  # (B, C)
    again = candidates[:, None] == state.last[..., None]  # (B, K, C): the same token needs a blank between
    longer = torch.where(again, state.in_blank[..., None], total[..., None]) + reached[:, None]
    longer = longer.masked_fill((state.lengths >= limits[:, None])[..., None], NOTHING)
    key = state.key[..., None] * HASH_FACTOR + candidates[:, None] + 1  # (B, K, C)
    # A longer text may be one of the beam already, to which these paths then belong.
    same = key.flatten(1)[:, :, None] == state.key[:, None]  # (B, K·C, K)
    joins = longer.flatten(1)[:, :, None].masked_fill(~same, NOTHING).logsumexp(1)  # (B, K)
    in_token = torch.logaddexp(in_token, joins)
    longer = longer.flatten(1).masked_fill(same.any(2), NOTHING)  # (B, K·C)

    added = state.added[..., None].expand(-1, -1, count)
    if state.next_added is not None:
        added = added + state.next_added.gather(2, candidates[:, None].expand(-1, beams, -1))
    added = added.flatten(1)
    ranks = torch.cat([torch.logaddexp(in_blank, in_token) + state.added, longer + added], 1)
    best, index = ranks.topk(beams, 1)  # (B, K)
    stays = index < beams
    extension = (index - beams).clamp(min=0)
    parent = torch.where(stays, index, extension // count)
    token = candidates.gather(1, extension % count)

    impossible = best == NOTHING
    lengths = state.lengths.gather(1, parent)
    grown = torch.cat([state.tokens, torch.zeros_like(token)[..., None]], 2)
    grown = grown.gather(1, parent[..., None].expand_as(grown))
    at = torch.where(stays, grown.shape[2] - 1, lengths)[..., None]  # those that stay write into the column to spare
    grown = grown.scatter(2, at, torch.where(stays, 0, token)[..., None])
    lengths = lengths + ~stays
    keys = torch.where(stays, state.key.gather(1, parent), key.flatten(1).gather(1, extension))
    beams_now = _Beams(
        grown[..., : int(lengths.max())],
        lengths,
        torch.where(impossible, _no_keys(keys), keys),
        torch.where(stays, state.last.gather(1, parent), token),
        torch.where(stays, in_blank.gather(1, parent), NOTHING),
        torch.where(stays, in_token.gather(1, parent), longer.gather(1, extension)).masked_fill(impossible, NOTHING),
        torch.where(stays, state.added.gather(1, parent), added.gather(1, extension)),
        None if state.next_added is None else state.next_added[torch.arange(batch)[:, None], parent],
    )
    return beams_now, ~stays & ~impossible


def _no_keys(like: Tensor) -> Tensor:
    """(B, K) keys of beams that hold no text, each its own, so that no path joins them."""
    return (-1 - torch.arange(like.shape[1], device=like.device)).expand_as(like)


def _fill_in(state: _Beams, longer: Tensor, additions: Additions) -> None:
    """What the next tokens add to the beams (B, K) whose texts have become longer."""
    assert state.next_added is not None
    for length in state.lengths[longer].unique().tolist():
        rows = longer & (state.lengths == length)
        state.next_added[rows] = additions(state.tokens[rows][:, :length]).to(state.next_added)


def likeliest_texts(
    log_probs: Tensor, lengths: Tensor, limits: Tensor, end: int, blank: int, beams: int, additions: Additions | None
) -> CtcTexts:
    """Best first, with log p(text | audio) and what was added: by prefix beam search, and with one beam and nothing to
    add those of the likeliest path.

    log_probs: (B, S, V); lengths, limits: (B,) positions of the audio, and tokens that a text can have.
    """
    scores = masked_scores(log_probs, lengths, blank, [end])
    if beams == 1 and additions is None:
        texts = best_path_texts(scores, limits, blank)
    else:
        texts = prefix_beam_search(scores, limits, blank, end, beams, additions)
    # The search has summed the paths that stayed in its beams; the score of a text is that of all.
    total = texts.scores + text_log_probabilities(scores, lengths, blank, texts.tokens, texts.lengths)
    total, order = total.sort(dim=1, descending=True, stable=True)
    tokens = texts.tokens.gather(1, order[..., None].expand_as(texts.tokens))
    return CtcTexts(tokens, texts.lengths.gather(1, order), total)


def additions_of(processors: LogitsProcessorList, given: Tensor, vocabulary: int) -> Additions | None:
    """What processors add to the scores of the next tokens, where all have the score 0; given (P,) before the text."""
    if not processors:
        return None

    def additions(texts: Tensor) -> Tensor:
        ids = torch.cat([given.expand(len(texts), -1), texts], 1)
        return processors(ids, torch.zeros(len(texts), vocabulary, device=texts.device))  # type: ignore[arg-type]

    return additions
