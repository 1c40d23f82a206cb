"""Search for the text of an utterance by a transducer: greedy, and with beams that sum over alignments.

A beam holds texts, not alignments: what is the same text is one hypothesis with the sum of the probabilities. Language
models, and whatever else judges the next token as a logits processor of transformers, have their say when a token is
added to a text and when the text ends; blanks say nothing to them. CTC has its own search (`ctc_search.py`).

Axes: B utterances, T steps, V vocabulary, N hypotheses.
"""

import heapq
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from .transducer import TransducerHead

NEVER = -math.inf
Text = tuple[int, ...]


class Symbols(NamedTuple):
    """The blank, tokens that are no text, and where a text starts and ends for logits processors."""

    blank: int
    never: list[int]
    start: int
    end: int

    def texts_only(self, scores: Tensor) -> Tensor:
        """Scores (…, V) with −∞ for the blank and for what is no text."""
        scores = scores.clone()
        scores[..., [self.blank, *self.never]] = NEVER
        return scores


class TextScorer:
    """What logits processors add to the score of a text at each of its tokens, and at its end."""

    def __init__(self, processors: LogitsProcessorList | None, symbols: Symbols) -> None:
        self.processors = processors or None
        self.symbols = symbols

    def added(self, text: Text, scores: Tensor) -> Tensor:
        """For each next token (V,), whose scores without it are `scores` (V,), −∞ where it is not asked for."""
        if self.processors is None:
            return torch.zeros_like(scores)
        ids: Any = torch.tensor([[self.symbols.start, *text]], device=scores.device)
        given: Any = scores[None].clone()
        judged = self.processors(ids, given)
        return torch.where(scores == NEVER, NEVER, judged[0] - scores)

    def at_end(self, text: Text, like: Tensor) -> float:
        """For the end of the text; `like` (V,) tells dtype and device."""
        scores = torch.full_like(like, NEVER)
        scores[self.symbols.end] = 0.0
        return 0.0 if self.processors is None else float(self.added(text, scores)[self.symbols.end])


def transducer_greedy(
    head: TransducerHead,
    sources: Tensor,
    steps: Sequence[int],
    limits: Sequence[int],
    symbols: Symbols,
    most_symbols: int,
) -> list[Text]:
    """The likeliest symbol again and again, up to `most_symbols` tokens at one of the steps (B, T, …): a token does not
    move on, a blank does."""
    texts: list[list[int]] = [[] for _ in steps]
    states = head.extend([None] * len(steps), [None] * len(steps))
    for step in range(max(steps)):
        rows = [row for row, count in enumerate(steps) if step < count]
        for _ in range(most_symbols):
            rows = [row for row in rows if len(texts[row]) < limits[row]]
            if not rows:
                break
            scores = head.next_logits(sources[rows, step], [states[row] for row in rows])
            scores[:, symbols.never] = NEVER
            chosen = zip(rows, scores.argmax(1).tolist(), strict=True)
            written = [(row, token) for row, token in chosen if token != symbols.blank]
            rows = [row for row, _ in written]
            if not rows:
                break
            grown = head.extend([states[row] for row in rows], [token for _, token in written])
            for (row, token), state in zip(written, grown, strict=True):
                texts[row].append(token)
                states[row] = state
    return [tuple(text) for text in texts]


class _Hypothesis(NamedTuple):
    text: Text
    log_prob: float  # of all its alignments so far
    added: float  # by the scorer
    state: Any  # of the head

    @property
    def score(self) -> float:
        return self.log_prob + self.added


def transducer_beams(
    head: TransducerHead, sources: Tensor, limit: int, beams: int, most_symbols: int, scorer: TextScorer
) -> list[tuple[Text, float]]:
    """Texts of one utterance, steps (T, …), with their scores, best first.

    At each step every text of the beam ends it with a blank, or grows by up to `most_symbols` tokens before. Growing
    stops where even the best grown text scores below the beam's worst that has ended the step.
    """
    beam = [_Hypothesis((), 0.0, 0.0, head.start())]
    scores = None
    for source in sources:
        ended: dict[Text, _Hypothesis] = {}
        growing = beam
        for written in range(most_symbols + 1):
            scores = head.next_logits(source.expand(len(growing), *source.shape), [h.state for h in growing])
            scores = scores.float().log_softmax(1)
            blanks = scores[:, scorer.symbols.blank].tolist()
            for hypothesis, blank in zip(growing, blanks, strict=True):
                before = ended.get(hypothesis.text)
                total = _log_sum(hypothesis.log_prob + blank, NEVER if before is None else before.log_prob)
                ended[hypothesis.text] = hypothesis._replace(log_prob=total)
            if written == most_symbols:
                break
            best = _grown(growing, scores, limit, beams, scorer)
            worst = heapq.nlargest(beams, (h.score for h in ended.values()))[-1] if len(ended) >= beams else NEVER
            best = [pair for pair in best if pair[1].score > max(worst, NEVER)]
            if not best:
                break
            states = head.extend([h.state for h, _ in best], [grown.text[-1] for _, grown in best])
            growing = [grown._replace(state=state) for (_, grown), state in zip(best, states, strict=True)]
        beam = heapq.nlargest(beams, ended.values(), key=lambda h: h.score)
    if scores is None:
        return [((), 0.0)]
    found = [(h.text, h.score + scorer.at_end(h.text, scores[0])) for h in beam]
    return sorted(found, key=lambda pair: -pair[1])


def _grown(
    growing: Sequence[_Hypothesis], scores: Tensor, limit: int, beams: int, scorer: TextScorer
) -> list[tuple[_Hypothesis, _Hypothesis]]:
    """The best texts with one token more, each behind the one it grew from; scores (N, V) of the next symbols."""
    scores = scorer.symbols.texts_only(scores)
    full = [len(h.text) >= limit for h in growing]
    scores[full] = NEVER
    added = torch.stack([scorer.added(h.text, row) for h, row in zip(growing, scores, strict=True)])
    base = torch.tensor([h.score for h in growing], device=scores.device, dtype=scores.dtype)
    total = torch.where(scores == NEVER, NEVER, base[:, None] + scores + added).flatten()
    values, places = total.topk(min(beams, len(total)))
    best = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        if value == NEVER:
            break
        row, token = divmod(place, scores.shape[1])
        parent = growing[row]
        log_prob, extra = parent.log_prob + float(scores[row, token]), parent.added + float(added[row, token])
        best.append((parent, _Hypothesis((*parent.text, token), log_prob, extra, None)))
    return best


def _log_sum(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + math.log1p(math.exp(b - a))
