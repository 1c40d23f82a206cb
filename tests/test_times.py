"""Times of tokens and words: the best paths against all paths, words of every tokenizer, where times come from."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_entmax_asr.model.times import best_path, check_settings, ctc_spans, map_spans, token_times
from hf_entmax_asr.model.words import joined, spelled_pieces, text_mask, timed_texts
from hf_entmax_asr.tokenization import train_bpe_tokenizer, train_character_tokenizer
from support.language_models import byte_tokenizer
from support.small_models import features, small_model

SECONDS = 0.04


def log_probs(positions: int, tokens: int, seed: int) -> np.ndarray:
    logits = torch.randn(positions, tokens, generator=torch.Generator().manual_seed(seed))
    return logits.log_softmax(-1).numpy().astype(float)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [2, 2], [1, 2, 1]])
def test_ctc_spans_are_those_of_the_likeliest_of_all_paths(tokens):
    for seed in range(4):
        scores = log_probs(5, 3, seed)
        paths = (
            (float(scores[np.arange(5), list(path)].sum()), path)
            for path in itertools.product(range(3), repeat=5)
            if [token for token, _ in itertools.groupby(path) if token != 0] == tokens
        )
        best = max(paths)[1]
        groups, place, spans = itertools.groupby(best), 0, []
        for token, run in groups:
            length = len(list(run))
            if token != 0:
                spans.append([place, place + length])
            place += length
        assert ctc_spans(scores, tokens, blank=0).tolist() == spans


def test_tokens_that_no_path_fits_are_spread_evenly():
    assert ctc_spans(log_probs(2, 3, 0), [1, 1], blank=0).tolist() == [[0, 1], [1, 2]]


def test_a_best_path_without_skips_visits_every_state():
    scores = np.random.default_rng(0).normal(size=(6, 3))
    path = best_path(scores)
    every = (p for p in itertools.combinations_with_replacement(range(3), 6) if set(p) == {0, 1, 2})
    assert tuple(path) == max(every, key=lambda p: scores[np.arange(6), list(p)].sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 10_000))
def test_a_best_path_without_skips_is_the_best_of_all_divisions(states, more, seed):
    positions = states + more
    scores = torch.randn(states, positions, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def total(ends: tuple[int, ...]) -> float:
        return sum(float(scores[u, a:b].sum()) for u, (a, b) in enumerate(itertools.pairwise((0, *ends))))

    divisions = [(*cuts, positions) for cuts in itertools.combinations(range(1, positions), states - 1)]
    path = best_path(scores.T.numpy())
    found = tuple(np.searchsorted(path, np.arange(states), side="right").tolist())
    assert found in divisions
    assert total(found) == pytest.approx(max(map(total, divisions)))


def test_map_spans_follow_the_heads_that_walk_among_noise():
    generator = torch.Generator().manual_seed(0)
    ends = [10, 24, 40, 60]
    weights = torch.rand(3, 4, 60, generator=generator) * 0.4
    for token, (begin, end) in enumerate(itertools.pairwise([0, *ends])):
        weights[:, token, begin:end] += 1
    found = map_spans(weights / weights.sum(-1, keepdim=True), torch.ones(4, dtype=torch.bool))
    assert np.abs(found[:, 1] - np.array(ends)).max() <= 1


def test_map_spans_follow_a_diagonal_and_leave_the_silence_to_the_end():
    maps = torch.zeros(2, 4, 40)
    for token, start in enumerate((0, 10, 20, 30)):
        maps[:, token, start : start + 10] = 1.0
    spans = map_spans(maps, torch.tensor([True, True, True, False]))
    assert spans.tolist() == [[0, 10], [10, 20], [20, 30]]


@pytest.mark.parametrize("kind", ["characters", "pieces", "bytes"])
def test_words_take_the_times_of_their_tokens(kind):
    text = "cab ab dad"
    make = {
        "characters": train_character_tokenizer,
        "pieces": lambda texts: train_bpe_tokenizer(texts, 14),
        "bytes": lambda texts: byte_tokenizer(tuple(texts)),
    }
    tokenizer = make[kind](["cab ab dad bad", "ab ab cab"])
    ids = [1, *tokenizer(text).input_ids, 0]
    starts = [float(index) for index in range(len(ids))]
    words = timed_texts(tokenizer, ids, starts, [s + 1 for s in starts], [0.5] * len(ids))
    assert [word.text for word in words] == text.split()
    assert words[0].start == 1.0
    assert [word.confidence for word in words] == pytest.approx([0.5] * 3)
    for before, after in itertools.pairwise(words):
        assert before.end <= after.start
    letters = timed_texts(tokenizer, ids, starts, [s + 1 for s in starts], [0.5] * len(ids), unit="char")
    assert "".join(letter.text for letter in letters) == text
    assert text_mask(tokenizer, ids) == [False, *[True] * (len(ids) - 3), False, False]


def test_bytes_of_one_character_are_one_piece_and_its_word_has_their_time():
    tokenizer = byte_tokenizer(("ab cab",))
    vocab = tokenizer.get_vocab()
    ids = [vocab["a"], vocab["Ã"], vocab["©"], vocab["Ġ"], vocab["b"], vocab["Ã"]]
    pieces = spelled_pieces(tokenizer, ids)
    assert [(piece.text, piece.first, piece.last) for piece in pieces][:3] == [("a", 0, 0), ("é", 1, 2), (" ", 3, 3)]
    words = timed_texts(tokenizer, ids, [0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [1.0] * 6)
    assert [(word.text, word.start, word.end) for word in words] == [("aé", 0, 3), ("b\ufffd", 4, 6)]


def test_characters_without_spaces_are_words_and_overlaps_meet_in_the_middle():
    tokenizer = train_character_tokenizer(["你好吗"], word_boundary=False)
    ids = tokenizer("你好吗").input_ids
    words = timed_texts(tokenizer, ids, [0, 1, 2, 3], [2, 2, 3, 3], [1.0] * 4)
    assert [(w.text, w.start, w.end) for w in words] == [("你", 0, 1.5), ("好", 1.5, 2), ("吗", 2, 3)]
    assert joined(["你好", "吗"]) == "你好吗"
    assert joined([" a b", "", "c "]) == "a b c"


def states_of(model):
    input_features, mask = features(2)
    return model.get_encoder()(input_features, attention_mask=mask, return_dict=True), mask


SEQUENCES = torch.tensor([[1, 5, 6, 7, 2], [1, 8, 9, 2, 0]])
IS_TEXT = torch.tensor([[True, True, True, False], [True, True, False, False]])


def test_stops_of_the_chosen_heads_are_the_times():
    model = small_model(lively=True, first_monotonic_layer=1)
    encoded, mask = states_of(model)
    settings = {"source": "stops", "start": [1, 2], "end": [1, 3], "end_at": "next"}
    settings |= {"start_offset_ms": -10, "end_offset_ms": 20}
    times = token_times(model, SEQUENCES, IS_TEXT, encoded, mask, SECONDS, settings)
    (stops,) = model.head_boundaries(SEQUENCES, attention_mask=mask, encoder_outputs=encoded)
    start = ((stops[:, 2] + 0.5) * SECONDS - 0.01).clamp(min=0)
    torch.testing.assert_close(times.start, start.double())
    torch.testing.assert_close(times.end[:, :3], ((stops[:, 3, 1:] + 0.5) * SECONDS + 0.02).double())
    logits = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=SEQUENCES[:, :-1]).logits
    sure = logits.softmax(-1)[0, 1, SEQUENCES[0, 2]]
    assert float(times.confidence[0, 1]) == pytest.approx(sure.item(), rel=1e-4)


@pytest.mark.parametrize("source", ["ctc", "cross_attention"])
def test_other_sources_give_each_token_a_stretch_in_order(source):
    model = small_model(lively=True, cross_attention="full", ctc_loss_weight=0.3)
    encoded, mask = states_of(model)
    times = token_times(model, SEQUENCES, IS_TEXT, encoded, mask, SECONDS, {"source": source})
    lengths = model.position_mask(mask).sum(1) * SECONDS
    for row, is_text in enumerate(IS_TEXT):
        start, end = times.start[row][is_text], times.end[row][is_text]
        assert (start < end).all()
        assert (end[:-1] <= start[1:] + 1e-9).all()
        assert float(end[-1]) <= float(lengths[row]) + 1e-6


def test_settings_that_do_not_fit_are_refused():
    monotonic, full = small_model(), small_model(cross_attention="full")
    stops = {"source": "stops", "start": [0, 0], "end": [0, 9]}
    for model, wrong, message in (
        (full, {"source": "magic"}, "'magic'; use one of"),
        (full, {"source": "ctc"}, "no CTC head"),
        (full, stops, "cross_attention = 'full'"),
        (monotonic, stops, "head 9 of layer 0, which has 4"),
        (monotonic, stops | {"start": [7, 0]}, "layer 7 for 'start'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_settings(model, wrong)
