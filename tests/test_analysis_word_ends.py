"""Distances between boundaries and true word ends: hand-made utterances, and what they must not depend on."""

import itertools
import random

import pytest
import torch

from hf_entmax_asr.analysis import (
    WordEndErrors,
    align_words,
    best_heads,
    token_words,
    word_end_errors,
    word_times,
)
from hf_entmax_asr.tokenization import train_bpe_tokenizer, train_character_tokenizer

SECONDS = 0.04


def spelled(text: str) -> list[str]:
    return [*text.replace(" ", "▁"), "</s>"]


def boundaries_for(tokens: list[str], times: dict[int, float]) -> torch.Tensor:
    """(U,) boundaries: token u at the position whose middle is times[u]; the others at the one before."""
    stops, last = [], 0
    for u in range(len(tokens)):
        last = round(times[u] / SECONDS - 0.5) if u in times else last
        stops.append(last)
    return torch.tensor(stops)


# Words of tokens


def test_words_of_characters():
    words = token_words([*spelled("to be"), "<pad>", "x", "<pad>"])
    assert [(word.text, word.first, word.last, word.after) for word in words] == [("to", 0, 1, 2), ("be", 3, 4, 5)]


def test_words_of_subwords_end_at_the_next_piece():
    words = token_words(["▁th", "e", "▁", "ca", "t", "▁sat", "</s>"])
    assert [(word.text, word.first, word.last, word.after) for word in words] == [
        ("the", 0, 1, 2),
        ("cat", 3, 4, 5),
        ("sat", 5, 5, 6),
    ]


def test_words_of_text_without_boundaries_are_its_characters():
    words = token_words(["你", "好", "</s>"], word_boundary=None)
    assert [(word.text, word.first, word.last, word.after) for word in words] == [("你", 0, 0, 1), ("好", 1, 1, 2)]


def test_a_word_that_was_cut_off_has_no_end():
    words = token_words(["▁", "a", "▁", "▁", "b", "c"])
    assert [(word.text, word.first, word.last, word.after) for word in words] == [("a", 1, 1, 2), ("bc", 4, 5, None)]
    assert token_words([]) == token_words(["</s>", "a"]) == token_words(["▁", "</s>"]) == []


@pytest.mark.parametrize("kind", ["characters", "subwords"])
def test_words_of_the_packages_tokenizers(kind):
    texts = ["the cat sat on the mat", "that cat", "a hat on a mat"]
    tokenizer = train_character_tokenizer(texts) if kind == "characters" else train_bpe_tokenizer(texts, 25)
    for text in texts:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        words = token_words(tokens)
        assert [word.text for word in words] == text.split()
        assert words[-1].after == len(tokens) - 1


# Alignment


def test_align_pairs_equal_words():
    assert align_words(list("abc"), list("abc")) == [(0, 0), (1, 1), (2, 2)]
    assert align_words(list("abcd"), list("axccd")) in ([(0, 0), (2, 2), (3, 4)], [(0, 0), (2, 3), (3, 4)])
    assert align_words(list("ab"), list("bc")) == [(1, 0)]  # as few edits as two replacements, but one word right
    assert align_words([], ["a"]) == align_words(["a"], []) == align_words([], []) == []


def test_align_has_the_fewest_edits():
    """Hits of the alignment agree with an edit distance computed apart, and never cross."""

    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b[1:]) + (a[0] != b[0]), distance(a[1:], b) + 1, distance(a, b[1:]) + 1)

    draw = random.Random(0)
    for _ in range(60):
        reference = [draw.choice("ab") for _ in range(draw.randint(0, 5))]
        hypothesis = [draw.choice("abc") for _ in range(draw.randint(0, 5))]
        pairs = align_words(reference, hypothesis)
        assert all(reference[i] == hypothesis[j] for i, j in pairs)
        # Between two hits the cheapest edits replace as many words as both sides have there.
        corners = [(-1, -1), *pairs, (len(reference), len(hypothesis))]
        assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(corners))
        edits = sum(max(k - i, m - j) - 1 for (i, j), (k, m) in itertools.pairwise(corners))
        assert edits == distance(reference, hypothesis)


# Distances


def two_heads():
    """ "to be": head 0 ends the words at 0.5 and 1.1 s, head 1 a second later; the last letters come 80 ms before."""
    tokens = spelled("to be")
    precise = boundaries_for(tokens, {0: 0.3, 1: 0.42, 2: 0.5, 3: 0.7, 4: 1.02, 5: 1.1})
    return tokens, torch.stack([precise, precise + 25]).unsqueeze(0)  # (1, 2, U)


def test_distance_at_the_token_after_or_the_last_letter():
    tokens, stops = two_heads()
    arguments = ([stops], [tokens], [["to", "be"]], [[0.5, 1.06]], SECONDS)
    after = word_end_errors(*arguments)
    assert after.heads == ((0, 0), (0, 1))
    assert after.seconds.tolist() == [pytest.approx([0.0, 1.0]), pytest.approx([0.04, 1.04])]
    last = word_end_errors(*arguments, at="last")
    assert last.seconds.tolist() == [pytest.approx([-0.08, 0.92]), pytest.approx([-0.04, 0.96])]


def test_only_words_recognised_right_are_measured():
    tokens, stops = two_heads()
    errors = word_end_errors([stops], [tokens], [["not", "two", "be"]], [[0.1, 0.5, 1.1]], SECONDS)
    assert errors.seconds.tolist() == [pytest.approx([0.0, 1.0])]
    assert errors.reference_words == 3
    none = word_end_errors([stops], [tokens], [["x"]], [[0.5]], SECONDS)
    assert none.seconds.shape == (0, 2)
    with pytest.raises(ValueError, match="none of the 1 reference words"):
        none.scores()


def test_a_cut_off_word_counts_only_at_its_last_letter():
    tokens, stops = two_heads()
    arguments = ([stops[:, :, :5]], [tokens[:5]], [["to", "be"]], [[0.5, 1.1]], SECONDS)
    assert len(word_end_errors(*arguments).seconds) == 1
    assert len(word_end_errors(*arguments, at="last").seconds) == 2


def test_batches_padding_layers_and_sums():
    tokens, stops = two_heads()
    other = ["a", "</s>"]
    other_stops = torch.tensor([[[3, 9], [5, 10]]])
    padded = torch.nn.functional.pad(other_stops, (0, 4), value=99)
    together = torch.cat([stops, padded])
    three = torch.cat([together, together[:, :1]], 1)  # the second layer has three heads
    batch = word_end_errors(
        [together, three],
        [tokens, [*other, "<pad>", "<pad>", "<pad>", "<pad>"]],
        [["to", "be"], ["a"]],
        [[0.5, 1.1], [0.4]],
        SECONDS,
        first_layer=2,
    )
    assert batch.heads == ((2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
    torch.testing.assert_close(batch.seconds[:, :2], batch.seconds[:, 2:4])
    single = word_end_errors([stops], [tokens], [["to", "be"]], [[0.5, 1.1]], SECONDS) + word_end_errors(
        [other_stops], [other], [["a"]], [[0.4]], SECONDS
    )
    torch.testing.assert_close(batch.seconds[:, :2], single.seconds)
    assert single.reference_words == batch.reference_words == 3
    with pytest.raises(ValueError, match="cannot be added"):
        single + batch


def test_scores_are_medians_and_shares():
    seconds = torch.tensor([[-0.2], [-0.12], [0.02], [0.12]], dtype=torch.float64)
    (score,) = WordEndErrors(((1, 5),), seconds, 9).scores()
    assert score.median_absolute_seconds == pytest.approx(0.12)
    assert score.median_signed_seconds == pytest.approx(-0.05)  # between the two middle ones
    assert score.share_within == 0.75  # the limit itself counts
    assert score.words == 4
    text = str(score)
    for part in ("layer 1 head 5", "120 ms", "-50", "75 % within 120 ms", "4 words"):
        assert part in text


def test_the_limit_counts_in_positions_too():
    """Three positions of 40 ms are 120 ms, though not in binary fractions."""
    tokens = ["a", "</s>"]
    stops = torch.arange(0, 200).view(-1, 1, 1).expand(-1, 1, 2)
    ends = [[(position - 3 + 0.5) * SECONDS] for position in range(200)]
    (score,) = word_end_errors([stops], [tokens] * 200, [["a"]] * 200, ends, SECONDS).scores()
    assert score.share_within == 1


def test_heads_chosen_on_held_out_data_are_scored_on_test_data():
    heads = ((0, 0), (0, 1), (1, 0))
    held_out = WordEndErrors(heads, torch.tensor([[0.5, 0.02, -0.1], [0.5, 0.03, -0.1]]).double(), 2)
    test = WordEndErrors(heads, torch.tensor([[0.01, 0.3, 0.2]]).double(), 1)
    chosen = [(score.layer, score.head) for score in best_heads(held_out, count=2)]
    assert chosen == [(0, 1), (1, 0)]
    assert [score.median_absolute_seconds for score in test.scores(chosen)] == pytest.approx([0.3, 0.2])
    with pytest.raises(ValueError, match=r"\(2, 0\) was not measured"):
        test.scores([(2, 0)])


def test_equal_medians_are_parted_by_the_share_within():
    seconds = torch.tensor([[0.05, 0.05], [0.05, 0.05], [0.9, 0.1]]).double()
    (best,) = best_heads(WordEndErrors(((0, 0), (0, 1)), seconds, 3))
    assert (best.layer, best.head) == (0, 1)


# Word times


def test_word_times_of_one_head():
    tokens, stops = two_heads()
    (words,) = word_times([stops, stops + 50], [tokens], (0, 0), SECONDS)
    assert [(word.text, word.start, word.end) for word in words] == [
        ("to", pytest.approx(0.3), pytest.approx(0.5)),
        ("be", pytest.approx(0.7), pytest.approx(1.1)),
    ]
    (late,) = word_times([stops, stops + 50], [tokens], (3, 1), SECONDS, at="last", first_layer=2, lag_seconds=3.0)
    assert [(word.start, word.end) for word in late] == [
        (pytest.approx(0.3), pytest.approx(0.42)),
        (pytest.approx(0.7), pytest.approx(1.02)),
    ]


def test_word_times_never_fall_below_zero_and_survive_a_cut():
    tokens, stops = two_heads()
    (words,) = word_times([stops[:, :, :5]], [tokens[:5]], (0, 0), SECONDS, lag_seconds=0.4)
    assert words[0].start == 0
    assert words[1].end == pytest.approx(1.02 - 0.4)
    assert all(word.start <= word.end for word in words)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": "end"}, "at = 'end'"),
        ({"seconds_per_position": 0}, "seconds_per_position = 0"),
        ({"boundaries": []}, "no boundaries"),
        ({"boundaries": [torch.zeros(2, 2, 6)]}, r"boundaries\[0\] has shape \(2, 2, 6\).*1 utterances"),
        ({"boundaries": [torch.zeros(1, 2, 5)]}, "at least 6 tokens"),
        ({"words": []}, "1, 0 and 1 utterances"),
        ({"word_ends": [[0.5]]}, "utterance 0 has 2 words but 1 word ends"),
    ],
)
def test_sizes_that_do_not_agree_are_refused(change, message):
    tokens, stops = two_heads()
    arguments = {
        "boundaries": [stops],
        "tokens": [tokens],
        "words": [["to", "be"]],
        "word_ends": [[0.5, 1.1]],
        "seconds_per_position": SECONDS,
    }
    with pytest.raises(ValueError, match=message):
        word_end_errors(**(arguments | change))


@pytest.mark.parametrize("head", [(1, 0), (0, 2), (0, -1)])
def test_word_times_of_no_head_are_refused(head):
    tokens, stops = two_heads()
    with pytest.raises(ValueError, match="does not exist"):
        word_times([stops], [tokens], head, SECONDS)
