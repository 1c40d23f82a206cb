"""Fusion: the score of a hypothesis is the sum computed apart, for every kind of token and language model, greedy and
with beams, in batches of unequal lengths; an exhaustive search agrees."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList

from hf_entmax_asr.ngram_lm import FusedModel, LanguageModelError, LanguageModelFusion, NgramModel
from hf_entmax_asr.pretrained import convert_whisper
from hf_entmax_asr.tokenization import train_bpe_tokenizer, train_character_tokenizer
from support.language_models import (
    SENTENCES,
    WORDS,
    byte_tokenizer,
    character_ngrams,
    make_ngrams,
    needs_kenlm,
    recogniser,
    word_ngrams,
    write_arpa,
)
from support.small_models import features
from support.small_whisper import SHAPES, make_whisper

pytestmark = needs_kenlm
PAD, BOS, EOS, UNK = range(4)
UNKNOWN_WORDS = 40
WEIGHT, BONUS = 0.6, 0.25
KINDS = ("characters, words", "characters, characters", "pieces, words", "pieces, characters", "no spaces, characters")
BYTE_KINDS = ("bytes, words", "bytes, characters")


@pytest.fixture(scope="module")
def systems(tmp_path_factory) -> dict:
    """Kind -> (language model, tokenizer)."""
    folder = tmp_path_factory.mktemp("lm")
    models = {
        "words": NgramModel(write_arpa(folder / "w.arpa", word_ngrams()), unknown_words=UNKNOWN_WORDS),
        "characters": NgramModel(write_arpa(folder / "c.arpa", character_ngrams()), unknown_words=UNKNOWN_WORDS),
    }
    tokenizers = {
        "characters": train_character_tokenizer(SENTENCES),
        "pieces": train_bpe_tokenizer(SENTENCES, 16),
        "no spaces": train_character_tokenizer(SENTENCES, word_boundary=False),
        "bytes": byte_tokenizer(SENTENCES),
    }
    assert any(len(piece) > 2 for piece in tokenizers["pieces"].get_vocab() if "▁" in piece)
    pairs = (kind.split(", ") for kind in (*KINDS, *BYTE_KINDS))
    return {f"{tokens}, {units}": (models[units], tokenizers[tokens]) for tokens, units in pairs}


def make(systems, kind: str, weight: float = WEIGHT, bonus: float = BONUS) -> tuple:
    model, tokenizer = systems[kind]
    return LanguageModelFusion(model, tokenizer, weight=weight, insertion_bonus=bonus), tokenizer


def contribution(fusion: LanguageModelFusion, tokens: list[int], vocabulary: int) -> float:
    """What the processor adds for each of the tokens behind the first, in sum."""
    ids, total = torch.tensor([tokens]), 0.0
    for position in range(1, len(tokens)):
        added = fusion(ids[:, :position], torch.zeros(1, vocabulary))
        total += float(added[0, tokens[position]])
    return total


def has_two_boundaries(tokenizer, tokens: list[int]) -> bool:
    names = tokenizer.convert_ids_to_tokens(tokens)
    return any(a in ("▁", "Ġ") and b.startswith(a) for a, b in itertools.pairwise(names))


def decode(tokenizer, tokens) -> str:
    return tokenizer.decode(tokens, skip_special_tokens=True)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS + BYTE_KINDS), st.lists(st.integers(4, 100), max_size=9), st.integers(0, 2))
def test_the_parts_of_all_tokens_sum_to_the_score_of_the_text(systems, kind, numbers, padding):
    fusion, tokenizer = make(systems, kind)
    size = len(tokenizer)
    tokens = [BOS, *(number % (size - 4) + 4 for number in numbers), EOS]
    total = contribution(fusion, tokens + [PAD] * padding, size + 3)
    text = decode(tokenizer, tokens)
    model = systems[kind][0]
    apart = WEIGHT * model.log_probability(text) + BONUS * len(model.units(text))
    assert fusion.score(text) == pytest.approx(apart)
    assert total == pytest.approx(-math.inf if has_two_boundaries(tokenizer, tokens) else apart, abs=1e-4)


def paid_so_far(model: NgramModel, text: str) -> float:
    """Naive twin of the look-ahead: finished words in full, and the share of words that begin as the last one does."""
    *words, last = text.split(" ")
    state, total = model.start(), 0.0
    for word in filter(None, words):
        state, score = model.advance(state, word)
        total += WEIGHT * score + BONUS
    shares = {word: math.exp(score) for word, score in model.unigrams.items()}
    begun = sum(share for word, share in shares.items() if word.startswith(last))
    return total + WEIGHT * (math.log(begun / sum(shares.values())) if begun else model.unknown)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([kind for kind in KINDS if kind.endswith("words")]), st.lists(st.integers(4, 100), max_size=7))
def test_an_unfinished_word_is_paid_for_by_what_it_can_become(systems, kind, numbers):
    fusion, tokenizer = make(systems, kind)
    size = len(tokenizer)
    tokens = [number % (size - 4) + 4 for number in numbers]
    text = "".join(tokenizer.convert_ids_to_tokens(tokens)).replace("▁", " ")
    apart = -math.inf if has_two_boundaries(tokenizer, tokens) else paid_so_far(systems[kind][0], text)
    assert contribution(fusion, [BOS, *tokens], size) == pytest.approx(apart, abs=1e-4)


def test_a_words_letters_are_paid_for_in_advance(systems):
    """Letters and end of a word together cost what the word costs; letters that no word has are dear at once."""
    fusion, tokenizer = make(systems, "characters, words", weight=1.0, bonus=0.0)
    spell = tokenizer.get_vocab()
    ids = torch.tensor([[BOS, *(spell[c] for c in "ab▁dad")]])
    added = fusion(ids, torch.zeros(1, len(tokenizer)))[0]
    state = fusion.model.advance(fusion.model.start(), "ab")[0]
    whole = fusion.model.advance(state, "dad")[1]
    begun = contribution(fusion, ids[0].tolist(), len(tokenizer))
    before = contribution(fusion, [BOS, *(spell[c] for c in "ab▁")], len(tokenizer))
    assert begun - before + float(added[spell["▁"]]) == pytest.approx(whole, abs=1e-5)
    assert float(added[spell["d"]]) < -2  # no word goes on so
    assert float(added[spell["▁"]]) > float(added[spell["a"]])


def test_tokens_that_are_no_text_are_not_taken_for_free_ones(systems):
    fusion, tokenizer = make(systems, "characters, words", weight=0.0)
    size = len(tokenizer)
    added = fusion(torch.tensor([[BOS], [BOS]]), torch.zeros(2, size + 2))
    assert torch.isinf(added[0]).nonzero().flatten().tolist() == [PAD, BOS, size, size + 1]
    ended = fusion(torch.tensor([[BOS, EOS]]), torch.zeros(1, size))
    assert float(ended[0, PAD]) == 0


def test_an_unknown_token_spells_an_unknown_word(systems):
    fusion, tokenizer = make(systems, "characters, words")
    spell = tokenizer.get_vocab()
    tokens = [BOS, spell["a"], UNK, spell["▁"], spell["b"], spell["a"], EOS]
    assert contribution(fusion, tokens, len(tokenizer)) == pytest.approx(fusion.score("a\ufffd ba"), abs=1e-4)


@pytest.mark.parametrize("kind", KINDS + BYTE_KINDS)
def test_hypotheses_follow_rows_that_are_reordered_repeated_and_dropped(systems, kind):
    fusion, tokenizer = make(systems, kind)
    random = torch.Generator().manual_seed(0)
    ids = torch.full((4, 1), BOS)
    for step in range(8):
        scores = torch.randn(len(ids), len(tokenizer), generator=random)
        fresh = make(systems, kind)[0]
        torch.testing.assert_close(fusion(ids, scores), fresh(ids, scores), rtol=0, atol=0)
        if step == 5:  # assisted decoding takes back several tokens
            ids = ids[:, :3]
        rows = torch.randint(len(ids), (1 + step % 5,), generator=random)
        ids = torch.cat([ids[rows], torch.randint(2, len(tokenizer), (len(rows), 1), generator=random)], 1)


def test_bytes_are_paid_for_as_the_words_and_characters_that_they_begin(tmp_path):
    """Two pieces of one character, each a byte of it."""
    tokenizer = byte_tokenizer(SENTENCES)
    spell = tokenizer.get_vocab()
    words = NgramModel(write_arpa(tmp_path / "w.arpa", make_ngrams([["cab", "é"], ["中"]])), unknown_words=40)
    fusion = LanguageModelFusion(words, tokenizer, weight=1.0)
    first, second, other = spell["Ã"], spell["©"], spell["ä"]
    text = [BOS, *tokenizer("cab").input_ids[:-1], spell["Ġ"]]
    added = fusion(torch.tensor([text]), torch.zeros(1, len(tokenizer)))[0]
    assert float(added[first]) == pytest.approx(float(added[other]))  # each the beginning of one word of three
    assert float(added[second]) == pytest.approx(words.unknown)
    assert contribution(fusion, [*text, first, second, EOS], len(spell)) == pytest.approx(fusion.score("cab é"))
    characters = NgramModel(write_arpa(tmp_path / "c.arpa", make_ngrams([list("cab▁é"), ["中"]])), unknown_words=40)
    fusion = LanguageModelFusion(characters, tokenizer, weight=1.0, insertion_bonus=0.5)
    before = contribution(fusion, text, len(spell))
    assert contribution(fusion, [*text, first], len(spell)) == pytest.approx(before)  # nothing is read yet
    assert contribution(fusion, [*text, first, second, EOS], len(spell)) == pytest.approx(fusion.score("cab é"))
    assert contribution(fusion, [*text, first, EOS], len(spell)) == pytest.approx(fusion.score("cab \ufffd"))


def test_fusion_with_a_converted_whisper_takes_its_prompt_for_no_text(tmp_path):
    model, processor = convert_whisper(make_whisper(tmp_path / "whisper", **SHAPES["multilingual"]))
    tokenizer = processor.tokenizer
    texts = [["the", "quick", "fox"], ["the", "lazy", "dog"]]
    words = NgramModel(write_arpa(tmp_path / "w.arpa", make_ngrams(texts)), unknown_words=40)
    fusion = LanguageModelFusion(words, tokenizer, weight=30.0)
    given = [model.config.decoder_start_token_id, *model.config.decoder_prompt_ids]
    added = fusion(torch.tensor([given]), torch.zeros(1, len(tokenizer)))
    forbidden = set(tokenizer.added_tokens_decoder) - {tokenizer.eos_token_id}
    assert forbidden <= set(added[0].isinf().nonzero().flatten().tolist())
    assert tokenizer.get_vocab()["Ċ"] not in forbidden
    assert math.isinf(float(added[0, tokenizer.get_vocab()["Ċ"]]))
    inputs = processor(torch.randn(16000).numpy(), sampling_rate=16000)
    model.generation_config.begin_suppress_tokens = None
    for beams in (1, 3):
        ids = FusedModel(model, fusion).generate(**inputs, num_beams=beams, max_new_tokens=20)
        said = tokenizer.decode(ids[0], skip_special_tokens=True).split()
        assert len(said) > 1
        assert set(said[:-1]) <= {"the", "quick", "fox", "lazy", "dog"}


# generate


def log_probability(model, inputs, row: int, tokens: list[int]) -> float:
    """log p of the tokens behind the first for one utterance, alone and without a cache."""
    input_features, mask = inputs
    frames = int(mask[row].sum())
    with torch.no_grad():
        logits = model(
            input_features[row : row + 1, :frames],
            attention_mask=mask[row : row + 1, :frames],
            decoder_input_ids=torch.tensor([tokens[:-1]]),
        ).logits[0]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None]).sum())


class MustEnd(LogitsProcessor):
    """Leaves only </s> once an utterance has so many tokens, at its own score."""

    def __init__(self, limits: tuple[int, ...]) -> None:
        self.limits = torch.tensor(limits)

    def __call__(self, input_ids, scores):
        over = (input_ids.shape[1] > self.limits).repeat_interleave(len(scores) // len(self.limits))
        others = torch.arange(scores.shape[1]) != EOS
        return scores.masked_fill(over[:, None] & others, float("-inf"))


NEVER = [[PAD], [BOS], [UNK]]


def finished(sequence) -> list[int] | None:
    """The tokens up to </s>; None if there is no end."""
    tokens = sequence.tolist()
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else None


@pytest.mark.parametrize("kind", KINDS + BYTE_KINDS)
def test_greedy_scores_are_the_recognisers_plus_the_language_models(systems, kind):
    lengths = set()
    for seed in range(2):
        fusion, tokenizer = make(systems, kind)
        model, inputs = recogniser(tokenizer, seed), features(3)
        output = model.generate(
            inputs[0],
            attention_mask=inputs[1],
            logits_processor=[fusion, MustEnd((9, 7, 4))],
            bad_words_ids=NEVER,
            max_new_tokens=14,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        fused = torch.stack(output.scores, 1)
        assert torch.equal(output.sequences[:, 1:][:, 0], fused[:, 0].argmax(-1))
        logits = torch.stack(output.logits, 1)
        for row, sequence in enumerate(output.sequences):
            tokens = finished(sequence)
            lengths.add(len(tokens))
            chosen = torch.tensor(tokens[1:])[:, None]
            constants = logits[row, : len(chosen)].logsumexp(-1, keepdim=True)
            total = float((fused[row, : len(chosen)] - constants).gather(1, chosen).sum())
            apart = log_probability(model, inputs, row, tokens) + fusion.score(decode(tokenizer, tokens))
            assert total == pytest.approx(apart, abs=2e-4)
    assert len(lengths) >= 3


@pytest.mark.parametrize("kind", KINDS + BYTE_KINDS)
def test_scores_of_beams_are_the_sum_computed_apart(systems, kind):
    lengths = set()
    for seed in range(2):
        fusion, tokenizer = make(systems, kind)
        model, inputs = recogniser(tokenizer, seed), features(3)
        output = model.generate(
            inputs[0],
            attention_mask=inputs[1],
            logits_processor=[fusion, MustEnd((8, 6, 3))],
            bad_words_ids=NEVER,
            num_beams=5,
            num_return_sequences=5,
            length_penalty=0.0,
            max_new_tokens=10,
            return_dict_in_generate=True,
            output_scores=True,
        )
        for index, (sequence, score) in enumerate(zip(output.sequences, output.sequences_scores, strict=True)):
            tokens = finished(sequence)
            lengths.add(len(tokens))
            apart = log_probability(model, inputs, index // 5, tokens) + fusion.score(decode(tokenizer, tokens))
            assert float(score) == pytest.approx(apart, abs=2e-4)
    assert len(lengths) >= 3


@pytest.mark.parametrize("kind", ["characters, words", "pieces, words", "characters, characters"])
def test_a_beam_that_holds_everything_finds_the_best_of_all(systems, kind):
    """All 3-token sequences, scored one by one, against a search wide enough to keep them."""
    fusion, tokenizer = make(systems, kind, weight=1.5)
    model, inputs = recogniser(tokenizer), features(1)
    letters = [token for token in range(len(tokenizer)) if token not in (PAD, BOS, EOS, UNK)]
    every = ([BOS, *tokens, EOS] for length in range(3) for tokens in itertools.product(letters, repeat=length))
    every = (tokens for tokens in every if not has_two_boundaries(tokenizer, tokens))
    best = max(every, key=lambda t: log_probability(model, inputs, 0, t) + fusion.score(decode(tokenizer, t)))
    output = model.generate(
        inputs[0],
        attention_mask=inputs[1],
        logits_processor=[fusion],
        num_beams=len(letters) ** 2 + 40,
        length_penalty=0.0,
        max_new_tokens=3,
        forced_eos_token_id=None,
        bad_words_ids=NEVER,
        num_return_sequences=30,
    )
    found = [finished(sequence) for sequence in output]
    assert best in found
    ends = [tokens for tokens in found if tokens is not None]
    assert ends[0] == best


def test_without_weight_and_bonus_nothing_changes(systems):
    for kind in KINDS:
        fusion, tokenizer = make(systems, kind, weight=0.0, bonus=0.0)
        model, inputs = recogniser(tokenizer), features(3)
        boundary = tokenizer.get_vocab().get("▁")
        after = [t for name, t in tokenizer.get_vocab().items() if name.startswith("▁")]
        never = [[PAD], [BOS], *([boundary, token] for token in after)]
        for beams in (1, 3):
            options = {"attention_mask": inputs[1], "num_beams": beams, "max_new_tokens": 10, "bad_words_ids": never}
            plain = model.generate(inputs[0], **options)
            assert torch.equal(model.generate(inputs[0], logits_processor=[fusion], **options), plain)


def test_a_heavy_language_model_decides(systems):
    """Against a weight of 50 the random recogniser has no say: with beams only words of the model are left."""
    fusion, tokenizer = make(systems, "characters, words", weight=50.0, bonus=0.0)
    model, inputs = recogniser(tokenizer), features(3)
    output = model.generate(
        inputs[0],
        attention_mask=inputs[1],
        logits_processor=[fusion],
        num_beams=6,
        length_penalty=0.0,
        max_new_tokens=16,
    )
    for sequence in output:
        tokens = finished(sequence)
        assert tokens is not None
        assert set(decode(tokenizer, tokens).split()) <= set(WORDS)


def test_a_fused_model_puts_the_language_model_first_and_is_else_the_model(systems):
    fusion, tokenizer = make(systems, "characters, words")
    model, inputs = recogniser(tokenizer), features(2)
    fused = FusedModel(model, fusion)
    assert fused.config is model.config
    assert fused.eval() is model
    seen = []

    def last(ids, scores):
        seen.append(scores)
        return scores

    options = {"attention_mask": inputs[1], "max_new_tokens": 6}
    both = fused.generate(inputs[0], logits_processor=LogitsProcessorList([last]), **options)
    assert torch.equal(both, model.generate(inputs[0], logits_processor=[fusion], **options))
    assert seen
    streamed = []
    model.stream = lambda *given, **asked: streamed.append((given, asked))
    fused.stream("processor", chunk_ms=160, logits_processor=[last])
    assert streamed == [(("processor",), {"chunk_ms": 160, "logits_processor": [fusion, last]})]


def test_refusals(systems, tmp_path):
    model, tokenizer = systems["characters, words"]
    for weight, bonus in ((-1, 0), (math.nan, 0), (0, math.inf)):
        with pytest.raises(LanguageModelError, match=r"weight must be finite and at least 0"):
            LanguageModelFusion(model, tokenizer, weight=weight, insertion_bonus=bonus)
    with pytest.raises(LanguageModelError, match="candidates is 0"):
        LanguageModelFusion(model, tokenizer, weight=1, candidates=0)
    with pytest.raises(LanguageModelError, match=r"marks no word boundaries \(▁\)"):
        LanguageModelFusion(model, systems["no spaces, characters"][1], weight=1)
    fusion = LanguageModelFusion(model, tokenizer, weight=1)
    with pytest.raises(LanguageModelError, match="scores 5 tokens, but the tokenizer has"):
        fusion(torch.tensor([[BOS]]), torch.zeros(1, 5))
    tokenizer = train_character_tokenizer(SENTENCES)
    tokenizer.add_tokens(["a▁b"])
    with pytest.raises(LanguageModelError, match="'a▁b' spells more than one word"):
        LanguageModelFusion(model, tokenizer, weight=1)
