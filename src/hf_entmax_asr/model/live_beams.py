"""Beam search by monotonic heads while audio comes in: what all that can still win agree on is written.

The search is that of transformers' `generate`, a step at a time: a step is taken once the heads of every beam have
stopped in the audio heard so far.

Axes: N beams, V vocabulary, U tokens.
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .hearing import Step, TokenWriter, WrittenToken

IMPOSSIBLE = -1e9  # the score of a beam that does not exist yet


class Hypothesis(NamedTuple):
    """tokens: those that are not written yet; score: sum of log-probabilities, normalised by length once it ended."""

    tokens: tuple[WrittenToken, ...]
    score: float


class BeamWriter(TokenWriter):
    """As `TokenWriter`, but what comes out is the text of `generate(num_beams=N)` for all of the audio.

    What is written is what the running hypotheses and the best ended one have in common: the text of the search begins
    so, whatever comes.
    """

    def __init__(
        self,
        model: Any,
        prompt: Sequence[int],
        settings: Any = None,
        limit: int | None = None,
        num_beams: int = 2,
        processors: Sequence[LogitsProcessor] = (),
    ):
        super().__init__(model, prompt, settings, limit, num_beams, processors)
        settings = model.generation_config if settings is None else settings
        if settings.early_stopping == "never":
            raise ValueError(
                "early_stopping = 'never' needs the length of the audio, which is not known while it comes in: set "
                "generation_config.early_stopping to False or True."
            )
        self._stops_when_full = settings.early_stopping is True
        self._length_penalty = 1.0 if settings.length_penalty is None else settings.length_penalty
        nothing = Hypothesis((), IMPOSSIBLE)
        self._running = [Hypothesis((), 0.0), *[nothing] * (num_beams - 1)]
        self._ended: list[Hypothesis] = []  # the best first, at most as many as there are beams
        self._agreed: deque[WrittenToken] = deque()

    def pending(self) -> list[int]:
        """Ids of the likeliest text behind what is written."""
        return [] if self.ended else [token.id for token in self._running[0].tokens]

    def write(self) -> Generator[Step, Tensor | None, WrittenToken | None]:
        """Asks for steps of the decoder, and returns the next token on which the search has settled; None if it has
        not, or at the end of the text."""
        while not self._agreed and not self.ended and self.positions:
            if not (yield from self._advance()):
                return None
        if not self._agreed:
            return None
        written = self._agreed.popleft()
        self.sequence.append(written.id)
        if written.id not in self._ends:
            return written
        self.end_stops = written.stops
        return None

    def _advance(self) -> Generator[Step, Tensor | None, bool]:
        """Takes a step of the search; whether it could."""
        rows = [self.sequence + [token.id for token in hypothesis.tokens] for hypothesis in self._running]
        length = len(rows[0])
        log_probs: Tensor
        if length - len(self.given) < self._most_tokens:
            logits = yield Step(self, [row[self.read] for row in rows])
            if logits is None:
                return False
            if self.read < length:  # a token of the prompt: the next one is given
                return True
            ids = torch.tensor(rows, device=logits.device)
            log_probs = self._processors(ids, logits.float().log_softmax(-1))
        elif self._more:
            return False
        else:  # as many tokens as speech so long can have: all end, as `EndWithAudio` has it
            log_probs = torch.full((len(rows), self.model.config.vocab_size), -torch.inf)
            log_probs[:, self._ends[:1]] = 0.0
        self._extend(log_probs, length + 1)
        self._settle(length + 1)
        return True

    def _extend(self, log_probs: Tensor, length: int) -> None:
        """Each hypothesis by one token (N, V); sequences then have `length` tokens."""
        beams, vocabulary = log_probs.shape
        scores = torch.tensor([hypothesis.score for hypothesis in self._running], device=log_probs.device)
        kept = min(max(2, 1 + len(self._ends)) * beams, beams * vocabulary)
        best, indices = (log_probs + scores[:, None]).flatten().topk(kept)
        parents = (indices // vocabulary).tolist()
        stops = [held.progress[:, :, -1].tolist() for held in self.held if held.progress is not None]
        running, normalised = [], (length - len(self.given)) ** self._length_penalty
        each = zip(best.tolist(), parents, (indices % vocabulary).tolist(), strict=True)
        for rank, (score, parent, token) in enumerate(each):
            step = WrittenToken(token, float(log_probs[parent, token]), [layer[parent] for layer in stops])
            tokens = (*self._running[parent].tokens, step)
            if token not in self._ends and length < self._longest:
                running.append((parent, Hypothesis(tokens, score)))
            elif rank < beams:
                self._ended.append(Hypothesis(tokens, score / normalised))
        self._ended = sorted(self._ended, key=lambda hypothesis: -hypothesis.score)[:beams]
        self._running = [hypothesis for _, hypothesis in running[:beams]]
        if len(self._running) == beams:
            rows = torch.tensor([parent for parent, _ in running[:beams]], device=self.model.device)
            self.cache.reorder_cache(rows)  # type: ignore[arg-type]

    def _settle(self, length: int) -> None:
        """Ends the search where nothing can win any more, and moves what is certain to what is written."""
        beams, full = self.rows, len(self._ended) == self.rows
        if len(self._running) < beams:
            self.ended = True
        elif full:
            hope = self._running[0].score / (length - len(self.given)) ** self._length_penalty
            self.ended = self._stops_when_full or hope <= self._ended[-1].score
        if self.ended:
            self._agreed.extend(self._ended[0].tokens)
            return
        open_ = [hypothesis.tokens for hypothesis in self._running if hypothesis.score > IMPOSSIBLE / 2]
        if not open_:
            return
        texts = [[token.id for token in tokens] for tokens in (*open_, *(best.tokens for best in self._ended[:1]))]
        agreed = 0
        while agreed < min(map(len, texts)) and len({text[agreed] for text in texts}) == 1:
            agreed += 1
        self._agreed.extend(open_[0][:agreed])
        self._running = [hypothesis._replace(tokens=hypothesis.tokens[agreed:]) for hypothesis in self._running]
        self._ended = [hypothesis._replace(tokens=hypothesis.tokens[agreed:]) for hypothesis in self._ended]
