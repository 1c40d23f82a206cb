"""Fusion that looks at the best candidates only: equal to fusion over all tokens where it matters."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.ngram_lm import LanguageModelFusion, NgramModel
from hf_entmax_asr.tokenization import train_character_tokenizer
from support.language_models import make_ngrams, needs_kenlm, recogniser, write_arpa
from support.small_models import features

pytestmark = needs_kenlm
BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple:
    """300 characters, as in Chinese: (language model, tokenizer)."""
    random = torch.Generator().manual_seed(0)
    letters = [chr(0x4E00 + index) for index in range(300)]
    texts = ["".join(letters[i] for i in (300 * torch.rand(12, generator=random) ** 2).int()) for _ in range(200)]
    path = write_arpa(tmp_path_factory.mktemp("lm") / "z.arpa", make_ngrams([list(text) for text in texts]))
    tokenizer = train_character_tokenizer(["".join(letters)], word_boundary=False)
    return NgramModel(path, unknown_words=100), tokenizer


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.0, 0.3, 3.0]), st.sampled_from([-1.0, 0.0, 2.0]), st.integers(1, 12))
def test_the_best_candidates_are_the_best_of_all_tokens(large, seed, weight, bonus, candidates):
    model, tokenizer = large
    options = {"weight": weight, "insertion_bonus": bonus}
    random = torch.Generator().manual_seed(seed)
    ids = torch.cat([torch.full((3, 1), BOS), torch.randint(4, 304, (3, 2), generator=random)], 1)
    scores = 5 * torch.randn(3, 304, generator=random)
    scores[0, torch.randint(304, (150,), generator=random)] = -math.inf
    scores[1, 3:] = -math.inf  # only </s> is left
    whole = LanguageModelFusion(model, tokenizer, **options)(ids, scores)
    fused = LanguageModelFusion(model, tokenizer, candidates=candidates, **options)(ids, scores)
    for row in range(3):
        best, few = whole[row].topk(candidates), fused[row].topk(candidates)
        assert torch.equal(best.values, few.values)
        assert torch.equal(best.indices[best.values > -math.inf], few.indices[few.values > -math.inf])
        assert float(fused[row, EOS]) == float(whole[row, EOS])
    if weight == 0.3:
        assert fused.isinf().sum() > whole.isinf().sum() + 300


@pytest.mark.parametrize("beams", [1, 4])
def test_candidates_do_not_change_a_search(large, beams):
    model, tokenizer = large
    recognising, inputs = recogniser(tokenizer), features(3)
    sequences = [
        recognising.generate(
            inputs[0],
            attention_mask=inputs[1],
            logits_processor=[LanguageModelFusion(model, tokenizer, weight=0.4, candidates=candidates)],
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=8,
        )
        for candidates in (None, 2 * beams)
    ]
    assert torch.equal(*sequences)
