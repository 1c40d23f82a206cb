"""Shallow fusion: an n-gram model has its say at every step of `generate`, greedy or with beams.

With log probabilities p of the recogniser and q of the language model, a finished hypothesis scores

    log p(tokens | audio) + weight · log q(text, end) + insertion_bonus · units of the text

(the "shallow fusion" of Gulcehre et al. 2015, arXiv 1503.03535, with the insertion bonus usual in recognition).

The tokens need not be the units of the language model. A word model over tokens that spell (characters, BPE pieces)
knows a word's probability only at its end. Until then a word is paid for in advance, by the unigram probability of all
words that begin as it does (look-ahead, Ortmanns et al. 1996), and the difference is settled at the word's end. So the
sum above is exact, and a search that looks one token ahead is not surprised at the ends of words.
"""

import math
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from hf_entmax_asr.ngram_lm.fit import check_spelling
from hf_entmax_asr.ngram_lm.scoring import LanguageModelError, NgramModel
from hf_entmax_asr.ngram_lm.spelling import Hypothesis, SpelledCharacters, SpelledWords, Tokens, Vector

FIRST_CANDIDATES = 4  # times the candidates asked for are scored to find the level that others must reach


class LanguageModelFusion(LogitsProcessor):
    """Adds the language model's part to the scores of the next token, for `generate(logits_processor=[fusion])`.

    Where each hypothesis stands is worked out from its tokens, and kept by prefix until the next call: beams may be
    reordered, repeated or dropped as the search likes. With several processors, put this one first. Tokens that
    are no text (padding, the start, a space after a space, numbers beyond the tokenizer) would cost nothing; they get
    the probability 0.

    Works for greedy search, beams and sampling. The scores of a greedy search are then logits plus the language model's
    part; of a beam search, log probabilities plus that part. CTC alone adds it to the probability of each text.
    """

    def __init__(
        self,
        model: NgramModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        weight: float,
        insertion_bonus: float = 0.0,
        candidates: int | None = None,
    ) -> None:
        """
        Args:
            model: of words or characters.
            tokenizer: of the recogniser.
            weight: of the language model's log probability, usually 0.1 to 1.
            insertion_bonus: added for each word (of a word model) or character, against the pull of the language model
                to short texts; in the same logarithmic scale, so a bonus of 1 counts as a factor of e.
            candidates: how many best next tokens of a hypothesis the search can take: 1 for greedy search, twice the
                number of beams for beam search (and at least 2). A character model then does not score all of a large
                vocabulary; the tokens left out get the probability 0, which changes nothing in the search. None, the
                default, scores all, as sampling and CTC alone need.

        Raises:
            LanguageModelError: a weight that is negative or not finite, no candidates, or a tokenizer that the model
                cannot follow, or that cannot write most of the model's words.
        """
        if candidates is not None and candidates < 1:
            raise LanguageModelError(f"candidates is {candidates}; it must be at least 1, or None for all tokens")
        if not (math.isfinite(weight) and weight >= 0 and math.isfinite(insertion_bonus)):
            raise LanguageModelError(
                f"weight is {weight} and insertion_bonus {insertion_bonus}; the weight must be finite and at least 0, "
                "the bonus finite"
            )
        check_spelling(model, tokenizer)
        self.model, self.weight, self.insertion_bonus, self.candidates = model, weight, insertion_bonus, candidates
        self._tokens = Tokens(tokenizer)
        kind = SpelledWords if model.unit == "word" else SpelledCharacters
        self._speller: SpelledWords | SpelledCharacters = kind(model, self._tokens)
        self._start = Hypothesis(model.start())
        self._hypotheses: dict[tuple[int, ...], Hypothesis] = {}
        self._nothing = np.zeros(len(self._tokens), dtype=np.float32)
        self._never = np.array(self._tokens.silent) & (np.arange(len(self._tokens)) != self._tokens.end)
        self._bounded = np.array(self._tokens.bounded)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids (rows, 1 + tokens so far), scores (rows, V) -> (rows, V).

        Raises:
            LanguageModelError: fewer scores than the tokenizer has tokens.
        """
        if scores.shape[1] < len(self._tokens):
            raise LanguageModelError(
                f"the model scores {scores.shape[1]} tokens, but the tokenizer has {len(self._tokens)}: they do not "
                "belong together"
            )
        hypotheses: dict[tuple[int, ...], Hypothesis] = {}
        rows = [tuple(row) for row in input_ids.tolist()]
        for row in rows:
            if row not in hypotheses:
                before = self._hypotheses.get(row[:-1])
                hypotheses[row] = (
                    reduce(self._step, row, self._start) if before is None else self._step(before, row[-1])
                )
        self._hypotheses = hypotheses
        given = scores[:, : len(self._tokens)].float().numpy(force=True)
        added = torch.full((len(rows), scores.shape[1]), -math.inf)
        for index, row in enumerate(rows):
            added[index, : len(self._tokens)] = torch.from_numpy(self._added(hypotheses[row], given[index]))
        return scores + added.to(scores.device, scores.dtype)

    def score(self, text: str) -> float:
        """What the language model adds to a finished hypothesis in all: weight · log q + insertion_bonus · units."""
        units = self.model.units(text)
        return self.weight * self.model.log_probability(text) + self.insertion_bonus * len(units)

    def _step(self, hypothesis: Hypothesis, token: int) -> Hypothesis:
        if hypothesis.ended or token >= len(self._tokens):
            return hypothesis
        if token == self._tokens.end:
            return replace(hypothesis, ended=True)
        if self._tokens.silent[token]:
            return hypothesis
        after_boundary = self._tokens.bounded[token] and not self._tokens.texts[token]
        return replace(self._speller.step(hypothesis, token), after_boundary=after_boundary)

    def _added(self, hypothesis: Hypothesis, scores: Vector) -> Vector:
        """The language model's part for the next token (V,), where the recogniser's is `scores` (V,)."""
        if hypothesis.ended:
            return self._nothing
        never = self._never | self._bounded if hypothesis.after_boundary else self._never
        bonuses = self.insertion_bonus * self._speller.lengths(hypothesis)
        few = self.candidates is not None and FIRST_CANDIDATES * self.candidates < len(self._tokens)
        if few and self.model.unit == "character":
            wanted = self._candidates(hypothesis, np.where(never, -np.inf, scores + bonuses))
            added: Vector = np.full(len(self._tokens), -np.inf, dtype=np.float32)
            added[wanted] = self.weight * self._speller.logs(hypothesis, wanted)[wanted] + bonuses[wanted]
        else:
            added = self.weight * self._speller.logs(hypothesis) + bonuses
        added[never] = -np.inf
        return added

    def _candidates(self, hypothesis: Hypothesis, ceilings: Vector) -> Vector:
        """Tokens among which the best are, and </s>.

        As log q ≤ 0, no token comes out above its ceiling, recogniser's score plus bonus. So whatever has a ceiling
        below the last of so many good ones can be left out.
        """
        count = self.candidates or 1
        first = np.argpartition(-ceilings, FIRST_CANDIDATES * count)[: FIRST_CANDIDATES * count]
        fused = ceilings[first] + self.weight * self._speller.logs(hypothesis, first)[first]
        least = np.partition(fused, -count)[-count]
        return np.union1d(np.flatnonzero(ceilings >= least), [self._tokens.end])


class FusedModel:
    """A recogniser whose `generate` and `stream` have a language model; everything else is the recogniser's own."""

    def __init__(self, model: Any, fusion: LanguageModelFusion) -> None:
        self.model, self.fusion = model, fusion

    def generate(self, *args: Any, logits_processor: Any = None, **kwargs: Any) -> Any:
        """As the recogniser's, the language model before any other logits processor.

        Raises:
            LanguageModelError: CTC alone, in which the recogniser does not say which tokens are candidates, with a
                language model that scores these alone.
        """
        weight = kwargs.get("ctc_weight", getattr(self.model.generation_config, "ctc_weight", None))
        if weight == 1 and self.fusion.candidates is not None:
            raise LanguageModelError(
                f"candidates is {self.fusion.candidates}; ctc_weight = 1 wants the scores of all tokens: "
                "LanguageModelFusion(..., candidates=None)"
            )
        processors = LogitsProcessorList([self.fusion, *(logits_processor or [])])
        return self.model.generate(*args, logits_processor=processors, **kwargs)

    def stream(self, *args: Any, logits_processor: Any = (), **kwargs: Any) -> Any:
        """As the recogniser's, likewise."""
        return self.model.stream(*args, logits_processor=[self.fusion, *logits_processor], **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)
