"""CTC alone: prefix beam search against all paths, greedy search against the likeliest one, and with a language model.
Joint decoding with a language model: the scores are the sums of what each part says."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr import EntmaxAsrForConditionalGeneration
from hf_entmax_asr.model.ctc_search import likeliest_texts
from hf_entmax_asr.ngram_lm import FusedModel, LanguageModelError, LanguageModelFusion, NgramModel
from hf_entmax_asr.tokenization import train_bpe_tokenizer, train_character_tokenizer
from support.language_models import (
    SENTENCES,
    character_ngrams,
    needs_kenlm,
    word_ngrams,
    write_arpa,
)
from support.small_models import features, small_model
from test_ctc_prefix import probabilities, text_of

BLANK, START, END = 0, 1, 2
NO_LIMIT = torch.tensor([100, 100])


def log_probs(seed: int, positions: int = 5, tokens: int = 5, sharpness: float = 1.0) -> torch.Tensor:
    """(2, S, V) in which the end and the start have no share."""
    logits = sharpness * torch.randn(2, positions, tokens, generator=torch.Generator().manual_seed(seed)).double()
    logits[..., [START, END]] = -math.inf
    return logits.log_softmax(-1)


def of_beam(texts, row: int) -> dict[tuple[int, ...], float]:
    """Text -> score, of the beams that hold one."""
    rows = zip(texts.tokens[row].tolist(), texts.lengths[row].tolist(), texts.scores[row].tolist(), strict=True)
    found = [(tuple(tokens[:length]), score) for tokens, length, score in rows if score > -math.inf]
    assert len(dict(found)) == len(found)  # no text twice
    return dict(found)


@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(1, 5), min_size=2, max_size=2))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_beams_that_hold_everything_find_every_text_and_its_probability(seed, lengths):
    scores = log_probs(seed)
    texts = likeliest_texts(scores, torch.tensor(lengths), NO_LIMIT, END, BLANK, 100, None)
    for row, length in enumerate(lengths):
        every = {text: p for text, p in probabilities(scores[row, :length]).items() if p > 0}
        found = of_beam(texts, row)
        assert found.keys() == every.keys()
        assert {text: math.exp(score) for text, score in found.items()} == pytest.approx(every, rel=1e-9)
        assert list(found.values()) == sorted(found.values(), reverse=True)


@given(seed=st.integers(0, 1000))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_greedy_search_takes_the_likeliest_path(seed):
    scores, lengths = log_probs(seed, 4), torch.tensor([4, 3])
    texts = likeliest_texts(scores, lengths, NO_LIMIT, END, BLANK, 1, None)
    for row, length in enumerate(lengths.tolist()):
        paths = itertools.product(range(5), repeat=length)
        best = max(paths, key=lambda path: float(scores[row, range(length), list(path)].sum()))
        assert of_beam(texts, row) == {
            text_of(best): pytest.approx(math.log(probabilities(scores[row, :length])[text_of(best)]))
        }


def test_few_beams_lose_little_and_no_text_is_longer_than_it_may_be():
    scores, lengths = log_probs(3, positions=40, tokens=30, sharpness=3), torch.tensor([40, 25])
    few, many = (likeliest_texts(scores, lengths, NO_LIMIT, END, BLANK, beams, None) for beams in (8, 60))
    for row in range(2):
        best, score = next(iter(of_beam(many, row).items()))
        assert next(iter(of_beam(few, row).items())) == (best, pytest.approx(score))
        assert ctc_log_probability(scores[row, : lengths[row]], best) == pytest.approx(score)
    for beams in (1, 8):
        texts = likeliest_texts(scores, lengths, torch.tensor([7, 0]), END, BLANK, beams, None)
        assert [len(next(iter(of_beam(texts, row)))) for row in range(2)] == [7, 0]


def ctc_log_probability(scores: torch.Tensor, text: Sequence[int]) -> float:
    """By torch's own recursion; scores (S, V)."""
    target = torch.tensor([list(text)], dtype=torch.long)
    return -float(F.ctc_loss(scores[:, None], target, (len(scores),), (len(text),), BLANK, reduction="sum"))


def with_ctc(**options) -> EntmaxAsrForConditionalGeneration:
    """Whose CTC says neither the end nor the start."""
    model = small_model(lively=True, ctc_loss_weight=0.3, **options)
    with torch.no_grad():
        model.ctc_head.bias[[START, END]] = -50.0
        model.ctc_head.weight.mul_(3)
    return model


@pytest.mark.parametrize("beams", [1, 4])
def test_generate_gives_the_texts_and_their_scores(beams):
    model = with_ctc()
    model.get_decoder().forward = None  # nobody asks it
    input_features, mask = features(3)
    result = model.generate(
        input_features,
        attention_mask=mask,
        ctc_weight=1.0,
        num_beams=beams,
        num_return_sequences=beams,
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.no_grad():
        states = model.get_encoder()(input_features, attention_mask=mask).last_hidden_state
        scores = model.ctc_head(states).log_softmax(-1)
    for row, length in enumerate(model.position_mask(mask).sum(1).tolist()):
        for index in range(row * beams, (row + 1) * beams):
            tokens = result.sequences[index].tolist()
            end = tokens.index(END)
            assert tokens[0] == START
            assert set(tokens[end + 1 :]) <= {BLANK}
            if beams == 1:
                assert tuple(tokens[1:end]) == text_of(scores[row, :length].argmax(-1).tolist())
            of_text = ctc_log_probability(scores[row, :length], tokens[1:end])
            assert float(result.sequences_scores[index]) == pytest.approx(of_text, abs=1e-4)
    alone = model.generate(input_features[2:, : mask[2].sum()], ctc_weight=1.0, num_beams=beams)[0]
    together = result.sequences[2 * beams]
    assert together.tolist()[: len(alone)] == alone.tolist()


def test_options_of_generate_that_say_something_about_tokens_hold_and_others_are_refused():
    model = with_ctc()
    input_features, mask = features(2)
    asked = {"attention_mask": mask, "ctc_weight": 1.0, "num_beams": 4}
    said = set(model.generate(input_features, **asked)[0].tolist()) - {BLANK, START, END}
    suppressed = model.generate(input_features, suppress_tokens=sorted(said), **asked)[0]
    assert not said & set(suppressed.tolist())
    assert model.generate(input_features, max_new_tokens=3, **asked).shape[1] <= 4
    given = torch.tensor([[START, 7], [START, 7]])
    assert model.generate(input_features, decoder_input_ids=given, **asked)[:, :2].tolist() == given.tolist()
    silence = model.generate(torch.zeros(1, 40, 12), ctc_weight=1.0, num_beams=2)
    assert silence.tolist() == [[START, END]]
    for option in ({"repetition_penalty": 1.2}, {"streamer": object()}, {"prefix_allowed_tokens_fn": max}):
        with pytest.raises(ValueError, match=f"CTC alone, in which {next(iter(option))} mean nothing"):
            model.generate(input_features, **asked, **option)


def test_the_weight_travels_in_the_generation_config(tmp_path):
    model = with_ctc()
    model.generation_config.ctc_weight = 1.0
    model.save_pretrained(tmp_path)
    again = EntmaxAsrForConditionalGeneration.from_pretrained(tmp_path)
    assert again.generation_config.ctc_weight == 1.0
    input_features, mask = features(2)
    texts = model.generate(input_features, attention_mask=mask, num_beams=3)
    assert torch.equal(again.generate(input_features, attention_mask=mask, num_beams=3), texts)
    assert not torch.equal(again.generate(input_features, attention_mask=mask, num_beams=3, ctc_weight=0.0), texts)


# With a language model

TOKENIZERS = {
    "characters": lambda: train_character_tokenizer(SENTENCES),
    "pieces": lambda: train_bpe_tokenizer(SENTENCES, 16),
}


@pytest.fixture(scope="module")
def language_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    return {
        "words": NgramModel(write_arpa(folder / "w.arpa", word_ngrams()), unknown_words=40),
        "characters": NgramModel(write_arpa(folder / "c.arpa", character_ngrams()), unknown_words=40),
    }


@needs_kenlm
@pytest.mark.parametrize("weight", [0.4, 1.0])
@pytest.mark.parametrize("kind", ["characters, words", "pieces, words", "characters, characters"])
def test_decoder_ctc_language_model_and_lengths_are_summed(language_models, kind, weight):
    tokens, units = kind.split(", ")
    tokenizer = TOKENIZERS[tokens]()
    model = with_ctc(vocab_size=len(tokenizer), max_tokens_per_position=3.0)
    with torch.no_grad():
        model.ctc_head.bias[tokenizer.unk_token_id] = -50.0
        model.lm_head.weight[[BLANK, START, tokenizer.unk_token_id]] = 0.0
    fusion = LanguageModelFusion(language_models[units], tokenizer, weight=0.6, insertion_bonus=0.5)
    (input_features, mask), beams, penalty = features(2, frames=25), 12, 0.7 if weight < 1 else 0.0
    result = FusedModel(model, fusion).generate(
        input_features,
        attention_mask=mask,
        ctc_weight=weight,
        num_beams=beams,
        num_return_sequences=3,
        length_penalty=penalty,
        bad_words_ids=[[BLANK], [START], [tokenizer.unk_token_id]],
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.no_grad():
        states = model.get_encoder()(input_features, attention_mask=mask).last_hidden_state
    scores = model.ctc_head(states).log_softmax(-1).detach()
    for index, (sequence, score) in enumerate(zip(result.sequences.tolist(), result.sequences_scores, strict=True)):
        row, end = index // 3, sequence.index(END)
        length, ids = int(model.position_mask(mask)[row].sum()), torch.tensor([sequence[: end + 1]])
        with torch.no_grad():
            logits = model(
                encoder_outputs=(states[row : row + 1],),
                attention_mask=mask[row : row + 1],
                decoder_input_ids=ids[:, :-1],
            ).logits[0]
        said = float(logits.log_softmax(-1).gather(1, ids[0, 1:, None]).sum())
        of_ctc = ctc_log_probability(scores[row, :length], sequence[1:end])
        fused = fusion.score(tokenizer.decode(ids[0], skip_special_tokens=True))
        total = (1 - weight) * said + weight * of_ctc + fused
        assert float(score) == pytest.approx(total / end**penalty, abs=1e-3)


@needs_kenlm
def test_the_best_of_all_texts_is_found_by_ctc_and_a_language_model(language_models):
    tokenizer = TOKENIZERS["characters"]()
    fusion = LanguageModelFusion(language_models["words"], tokenizer, weight=1.5, insertion_bonus=0.2)
    model = with_ctc(vocab_size=len(tokenizer))
    input_features, _ = features(1, frames=12)  # 3 positions
    options = {"ctc_weight": 1.0, "num_beams": 400, "return_dict_in_generate": True, "output_scores": True}
    found = FusedModel(model, fusion).generate(input_features, **options)
    with torch.no_grad():
        scores = model.ctc_head(model.get_encoder()(input_features).last_hidden_state).log_softmax(-1)[0]
    letters = [token for token in range(len(tokenizer)) if token > END]
    totals = {}
    for text in (text for count in range(4) for text in itertools.product(letters, repeat=count)):
        of_ctc = ctc_log_probability(scores, list(text))
        added = fusion(torch.tensor([[START, *text]]), torch.zeros(1, len(tokenizer)))[0, END]
        if math.isfinite(of_ctc) and math.isfinite(added):
            totals[text] = of_ctc + fusion.score(tokenizer.decode(text))
    best = max(totals, key=totals.get)
    assert found.sequences[0].tolist() == [START, *best, END]
    assert float(found.sequences_scores[0]) == pytest.approx(totals[best], abs=1e-4)


@needs_kenlm
def test_a_language_model_that_scores_few_tokens_is_refused_by_ctc_alone(language_models):
    tokenizer = TOKENIZERS["characters"]()
    fusion = LanguageModelFusion(language_models["words"], tokenizer, weight=0.5, candidates=4)
    model = with_ctc(vocab_size=len(tokenizer))
    with pytest.raises(LanguageModelError, match=r"candidates is 4.*candidates=None"):
        FusedModel(model, fusion).generate(features(1)[0], ctc_weight=1.0)


class Stubborn(torch.nn.Module):
    """An output projection that gives the same scores (V,) whatever it hears."""

    def __init__(self, scores: torch.Tensor):
        super().__init__()
        self.scores = scores

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(*x.shape[:-1], -1)


@pytest.mark.parametrize("ends", [-12.0, 12.0])
@pytest.mark.parametrize("beams", [1, 5])
def test_beams_neither_loop_nor_stop_before_the_audio_ends(ends, beams):
    """A decoder that would never end, or at once, and says one token again and again; CTC that is sure of its text."""
    model = with_ctc()
    said = torch.zeros(24)
    said[END], said[5] = ends, 2.0
    model.lm_head = Stubborn(said)
    text = [5, 9, 9, 4, 7]
    path = [BLANK, 5, 5, BLANK, 9, BLANK, 9, 9, 4, BLANK, BLANK, 7, BLANK, BLANK, BLANK, BLANK]
    model.ctc_head = Stubborn(torch.zeros(24))
    certain = 30.0 * F.one_hot(torch.tensor([path]), 24).float()
    model.ctc_head.forward = lambda states: certain[:, : states.shape[1]]
    options = {"num_beams": beams} | ({"length_penalty": 0.0} if beams > 1 and ends > 0 else {})
    alone = model.generate(features(1)[0], **options)
    assert alone.shape[1] == (18 if ends < 0 else 2)  # at its limit, or at once
    joint = model.generate(features(1)[0], ctc_weight=0.5, **options)
    assert joint.tolist() == [[START, *text, END]]
