"""Composed sentences: the grammar and its splits, trimming, exact word times, the corpus written from them."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from conftest import script
from hf_entmax_asr.analysis.phonemes import Interval
from hf_entmax_asr.audio import read_audio
from hf_entmax_asr.corpora import prompts, sentences
from hf_entmax_asr.corpora.folder import load_folder
from hf_entmax_asr.corpora.prompts import (
    MARGIN_S,
    SAMPLING_RATE,
    Recording,
    compose,
    load_recordings,
    read_word_times,
    render,
    speech_bounds,
    split_prompts,
    write_compositions,
)
from hf_entmax_asr.corpora.sentences import GRAMMAR, cardinal, draw_splits, ordinal
from hf_entmax_asr.recognition import DataError

CORPUS = Path(__file__).parent.parent / "sample_corpus"


@pytest.fixture(scope="module")
def recordings():
    return load_recordings(CORPUS)


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """A small corpus written from the sample corpus: (folder, summary)."""
    output = tmp_path_factory.mktemp("composed") / "corpus"
    return output, write_small(output)


def write_small(output, **changes):
    options = {"seed": 3, "train": 30, "validation": 5, "test": 8, "longest_prompt_s": 1.6}
    return write_compositions(CORPUS, output, **{**options, **changes})


@pytest.mark.parametrize(
    ("number", "words", "rank"),
    [
        (7, "seven", "seventh"),
        (12, "twelve", "twelfth"),
        (20, "twenty", "twentieth"),
        (42, "forty two", "forty second"),
        (300, "three hundred", "three hundredth"),
        (1_204, "one thousand two hundred four", "one thousand two hundred fourth"),
        (5_000_013, "five million thirteen", "five million thirteenth"),
    ],
)
def test_numbers_in_words(number, words, rank):
    assert (cardinal(number), ordinal(number)) == (words, rank)


@given(st.integers(0, 10**9 - 1))
def test_cardinals_can_be_read_back(number):
    values = {**{word: i for i, word in enumerate(sentences.ONES)}}
    values |= {word: 10 * i for i, word in enumerate(sentences.TENS, 1)}
    total = part = 0
    for word in cardinal(number).split():
        if word == "hundred":
            part *= 100
        elif word in ("thousand", "million"):
            total += part * (1000 if word == "thousand" else 10**6)
            part = 0
        else:
            part += values[word]
    assert total + part == number


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="from 0 to 999999999, got -1"):
        cardinal(-1)
    with pytest.raises(ValueError, match="from 1 to 999999999, got 0"):
        ordinal(0)


def test_every_word_of_the_grammar_is_recorded(recordings):
    fixed = {
        word
        for rule in GRAMMAR.values()
        if not callable(rule)
        for text in rule
        for word in re.sub(r"\{\w+\}", " ", text).split()
    }
    numbers = {word for n in [*range(1, 100), 100, 1000, 10**6] for word in f"{cardinal(n)} {ordinal(n)}".split()}
    drawn = {word for text in draw_splits(0, {"all": 3000})["all"] for word in text.split()}
    assert (fixed | numbers | drawn) - recordings.keys() == set()
    assert len(drawn) > 200  # nearly all of the single words are used


def test_grammar_has_no_unknown_and_no_unused_rule():
    used = {
        name
        for rule in GRAMMAR.values()
        if not callable(rule)
        for text in rule
        for name in re.findall(r"\{(\w+)\}", text)
    }
    assert used | {"sentence"} == GRAMMAR.keys()


def test_splits_are_disjoint_reproducible_and_alike():
    counts = {"train": 2000, "validation": 100, "test": 200}
    splits = draw_splits(5, counts)
    everything = [text for texts in splits.values() for text in texts]
    lengths = {split: np.mean([len(text.split()) for text in texts]) for split, texts in splits.items()}

    assert {split: len(texts) for split, texts in splits.items()} == counts
    assert len(set(everything)) == len(everything) == 2300
    assert {len(text.split()) for text in everything} <= set(range(2, 10))
    assert abs(lengths["train"] - lengths["test"]) < 0.5
    assert draw_splits(5, counts) == splits
    assert draw_splits(6, counts) != splits


def test_excluded_sentences_are_not_drawn():
    first = draw_splits(1, {"all": 300})["all"]
    again = draw_splits(1, {"all": 300}, exclude=first[:200])["all"]
    assert not set(first[:200]) & set(again)
    assert draw_splits(1, {"train": 0, "test": 0}) == {"train": [], "test": []}


def test_counts_that_cannot_be_met_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"must not be negative, got \{'test': -1\}"):
        draw_splits(0, {"train": 3, "test": -1})
    monkeypatch.setattr(sentences, "GRAMMAR", {"sentence": ("one {x}",), "x": ("two", "three", "four")})
    assert len(draw_splits(0, {"all": 3})["all"]) == 3
    with pytest.raises(ValueError, match="gave 3 distinct sentences of the 4 wanted"):
        draw_splits(0, {"all": 4})


def test_speech_bounds_find_the_word_and_pass_over_clicks():
    waveform = np.random.default_rng(0).normal(0, 1e-4, SAMPLING_RATE)
    waveform[[500, 15_000]] = 0.2
    waveform[4_000:9_000] += 0.3 * np.sin(np.arange(5_000) / 3)
    start, end = speech_bounds(waveform)
    assert abs(start - 4_000) <= 160
    assert abs(end - 9_000) <= 160
    for quiet in (np.zeros(1_000), np.eye(1, 1_000, 400)[0]):
        with pytest.raises(ValueError, match="silent, or nothing but clicks"):
            speech_bounds(quiet)
    with pytest.raises(ValueError, match="100 samples are too few"):
        speech_bounds(waveform[:100])


def test_recordings_are_single_words_with_margins(recordings):
    takes = Counter({word: len(found) for word, found in recordings.items()})
    assert len(takes) > 200
    assert sum(takes.values()) > len(takes)
    assert takes["extension"] == takes["minutes"] == 3
    for word, found in recordings.items():
        assert " " not in word
        for take in found:
            assert 0 <= take.start <= MARGIN_S * SAMPLING_RATE
            assert 0 <= len(take.waveform) - take.end <= MARGIN_S * SAMPLING_RATE
            assert 0.25 < (take.end - take.start) / SAMPLING_RATE < 1.4, word
            assert abs(take.waveform[[0, -1]]).max() < 1e-3  # faded at both ends


def test_word_times_are_exact_to_the_sample():
    """Words as constant levels: the composed waveform holds each level exactly where its times say."""
    margin = 480
    takes = {}
    for name, level, length in (("low", 0.2, 3_000), ("high", 0.8, 5_000), ("high", 0.8, 7_000)):
        waveform = np.zeros(length + 2 * margin, np.float32)
        waveform[margin:-margin] = level
        takes.setdefault(name, []).append(Recording(waveform, margin, margin + length))
    heard = set()
    for seed in range(10):
        made = render("low high high low", takes, np.random.default_rng(seed))
        inside = np.zeros(len(made.waveform), bool)
        levels = []
        for word, start_s, end_s in made.words:
            start, end = round(start_s * SAMPLING_RATE), round(end_s * SAMPLING_RATE)
            assert (start / SAMPLING_RATE, end / SAMPLING_RATE) == (start_s, end_s)
            heard.add((word, end - start))
            levels.append(made.waveform[start:end].mean())
            inside[start:end] = True
        assert [word for word, _, _ in made.words] == made.text.split() == ["low", "high", "high", "low"]
        ends = [time for _, start_s, end_s in made.words for time in (start_s, end_s)]
        assert ends == sorted(ends)
        np.testing.assert_allclose(np.array(levels) / levels[0], [1, 4, 4, 1], rtol=0.02)
        assert abs(made.waveform[~inside]).max() < 0.02 < made.waveform[inside].min()
        assert made.waveform[~inside].std() > 1e-4  # noise, not digital silence
    assert heard == {("low", 3_000), ("high", 5_000), ("high", 7_000)}  # recordings of a word take turns


def test_composed_words_are_the_recordings(recordings):
    """Every word of a real composition correlates with one of its recordings at exactly the given time."""
    for made in compose(CORPUS, seed=11, count=3):
        assert 1 < len(made.waveform) / SAMPLING_RATE < 10
        assert made.waveform.dtype == np.float32
        assert abs(made.waveform).max() < 1
        for word, start_s, end_s in made.words:
            heard = made.waveform[round(start_s * SAMPLING_RATE) : round(end_s * SAMPLING_RATE)]
            correlations = [
                np.corrcoef(heard, take.waveform[take.start : take.end])[0, 1]
                for take in recordings[word]
                if take.end - take.start == len(heard)
            ]
            assert max(correlations) > 0.98


def test_compositions_repeat_with_the_seed_only():
    first, again = (list(compose(CORPUS, seed=2, count=3)) for _ in range(2))
    other = list(compose(CORPUS, seed=4, count=3))
    for one, two, three in zip(first, again, other, strict=True):
        assert (one.text, one.words) == (two.text, two.words)
        np.testing.assert_array_equal(one.waveform, two.waveform)
        assert one.text != three.text
    texts = {made.text for made in first}
    assert not texts & {made.text for made in compose(CORPUS, seed=2, count=3, exclude=texts)}


def test_words_without_a_recording_are_named(recordings):
    with pytest.raises(ValueError, match="cannot speak 'one elephant': no recording of elephant"):
        render("one elephant", recordings, np.random.default_rng(0))
    with pytest.raises(ValueError, match="no words"):
        render(" ", recordings, np.random.default_rng(0))


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5])
def test_prompts_are_split_by_text(share):
    clips = [{"id": number, "text": f"text {number % 60}"} for number in range(100)]
    train, heldout = split_prompts(clips, share, seed=1)
    assert sorted(clip["id"] for clip in [*train, *heldout]) == list(range(100))
    assert not {clip["text"] for clip in train} & {clip["text"] for clip in heldout}
    assert 100 * share <= len(heldout) < 100 * share + 2
    assert split_prompts(clips, share, seed=1) == (train, heldout)
    with pytest.raises(ValueError, match="heldout_share must be at least 0 and below 1, got 1"):
        split_prompts(clips, 1.0, seed=1)


def test_written_corpus_is_whole_and_disjoint(composed):
    output, summary = composed
    corpus, times = load_folder(output), read_word_times(output)
    texts = {split: set(rows["text"]) for split, rows in corpus.items()}
    prompts_in_train = [identity for identity in corpus["train"]["id"] if identity.startswith("prompts/")]

    assert {split: len(rows) for split, rows in corpus.items()} == {
        split: counts["clips"] for split, counts in summary["splits"].items()
    }
    assert (len(corpus["validation"]), len(corpus["test"])) == (5, 8)
    assert len(corpus["train"]) == 30 + len(prompts_in_train)
    assert len(corpus["heldout_prompts"]) >= 0.15 * (len(prompts_in_train) + len(corpus["heldout_prompts"])) > 5
    for split in ("validation", "test", "heldout_prompts"):
        assert not texts[split] & texts["train"]
    assert not texts["validation"] & texts["test"]
    assert {name: len(words) for name, words in times.items()} == {
        "train": 30,
        "validation": 5,
        "test": 8,
        "heldout_prompts": 0,
    }
    for row in corpus["test"]:
        words = times["test"][row["id"]]
        assert " ".join(word for word, _, _ in words) == row["text"]
        assert 0 < words[0].start_s < words[-1].end_s < row["duration"]
        assert soundfile.info(row["audio"]["path"]).format == "FLAC"
        assert row["speaker"] == "Allison Smith"
    hours = sum(row["duration"] for row in corpus["train"]) / 3600
    assert summary["splits"]["train"]["hours"] == pytest.approx(hours, abs=1e-3)
    assert set(summary["heldout_words_not_in_train"]) <= {w for text in texts["heldout_prompts"] for w in text.split()}
    assert "clips/demo-instruct" in summary["prompts_left_out_for_length"]
    assert (output / "LICENSE").read_bytes() == (CORPUS / "LICENSE").read_bytes()


def test_written_audio_is_the_composition(composed, recordings):
    output, _ = composed
    row = load_folder(output)["test"][2]
    made = render(row["text"], recordings, np.random.default_rng([3, 2, 2]))
    np.testing.assert_allclose(read_audio(row["audio"]), made.waveform, atol=2**-15)
    assert read_word_times(output)["test"][row["id"]] == list(made.words)


def test_a_corpus_is_reused_or_replaced(tmp_path):
    output = tmp_path / "corpus"
    summary = write_small(output, train=4, longest_prompt_s=1.0)
    stamp = (output / "train" / "metadata.csv").stat().st_mtime_ns
    assert write_small(output, train=4, longest_prompt_s=1.0) == summary
    assert (output / "train" / "metadata.csv").stat().st_mtime_ns == stamp
    assert write_small(output, train=6, longest_prompt_s=1.0) != summary
    assert len(read_word_times(output)["train"]) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_what_others_wrote_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="was not written by write_compositions"):
        write_small(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(FileNotFoundError, match=r"no word_times\.json"):
        read_word_times(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        '{"train/a": 3}',
        '{"train/a": [["one", 0.1]]}',
        '{"train/a": [["one", 0.1, NaN]]}',
        '{"train/a": [["one", 0.5, 0.1]]}',
        '{"train/a": [["one", 0.5, 0.6], ["two", 0.1, 0.2]]}',
        '{"train/a": [[1, 0.5, 0.6]]}',
        '{"train/a": ',
    ],
)
def test_damaged_word_times_are_named(tmp_path, content):
    file = tmp_path / "train" / "word_times.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ValueError, match=str(file)):
        read_word_times(tmp_path)


def test_a_split_without_word_times_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "word_times.json").write_text('{"a": [["one", 0.1, 0.2]]}')
    true_words = script("choose_word_times").true_words
    assert true_words(tmp_path, "train", None) == {"a": [Interval(0.1, 0.2, "one")]}
    with pytest.raises(DataError, match=f"there is no {tmp_path / 'test' / 'word_times.json'}: name a CTM file"):
        true_words(tmp_path, "test", None)


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path, monkeypatch):
    output = tmp_path / "corpus"
    write_small(output, train=2, longest_prompt_s=1.0)
    before = (output / prompts.MANIFEST).read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(prompts, "read_audio", fail)
    with pytest.raises(OSError, match="disk full"):
        write_small(output, train=3, longest_prompt_s=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert (output / prompts.MANIFEST).read_bytes() == before
    assert json.loads(before)["parameters"]["train"] == 2


def test_a_corpus_in_splits_is_refused(composed):
    output, _ = composed
    with pytest.raises(ValueError, match=r"has the splits .*; one metadata\.csv at its top is wanted"):
        load_recordings(output)
