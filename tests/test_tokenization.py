"""Tokenizers trained from transcripts: exact round trips, fixed special ids, loading without code, clear refusals."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_entmax_asr import tokenization
from hf_entmax_asr.tokenization import (
    WORD_BOUNDARY,
    train_bpe_tokenizer,
    train_character_tokenizer,
    train_tokenizer,
)

ENGLISH = ["THE CAT SAT ON THE MAT", "THE DOG'S HAT", "A CAT AND A DOG"]
CHINESE = ["而 对 楼市 成交", "抑制 作用 最 大 的 限 购"]
TOKENIZERS = {
    "character": train_character_tokenizer(ENGLISH),
    "bpe": train_bpe_tokenizer(ENGLISH, 24),
    "chinese": train_character_tokenizer(CHINESE, word_boundary=False),
}
words = st.lists(st.text(sorted(set("".join(ENGLISH)) - {" "}), min_size=1, max_size=6), max_size=6)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


def test_special_tokens(tokenizer):
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "<s>", "</s>", "<unk>"]
    ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    assert tokenizer.clean_up_tokenization_spaces is False


@pytest.mark.parametrize("kind", ["character", "bpe"])
@settings(max_examples=60, deadline=None)
@given(words)
def test_round_trip(kind, words):
    tokenizer, text = TOKENIZERS[kind], " ".join(words)
    ids = tokenizer(text).input_ids
    assert ids[-1] == 2
    assert not {0, 1, 2, 3} & set(ids[:-1])
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode(ids) == text + "</s>"


def test_words_are_separated_by_a_visible_symbol():
    tokens = TOKENIZERS["character"].tokenize("A CAT")
    assert tokens == ["A", WORD_BOUNDARY, "C", "A", "T"]
    assert TOKENIZERS["bpe"].tokenize("THE CAT")[0].startswith(WORD_BOUNDARY)
    for kind in ("character", "bpe"):  # runs of any white space are one boundary
        tokenizer = TOKENIZERS[kind]
        assert tokenizer("A \t\n CAT").input_ids == tokenizer("A CAT").input_ids


def test_chinese_drops_spaces():
    tokenizer = TOKENIZERS["chinese"]
    ids = tokenizer(CHINESE[0]).input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == [*"而对楼市成交", "</s>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "而对楼市成交"
    assert WORD_BOUNDARY not in tokenizer.get_vocab()


def test_nfkc_is_a_choice():
    assert train_character_tokenizer(["ＡＢ\u3000Ｃ"], nfkc=True).tokenize("AＢ C") == ["A", "B", WORD_BOUNDARY, "C"]
    plain = train_character_tokenizer(["ＡＢ"])
    assert plain.tokenize("Ａ") == ["Ａ"]
    assert plain("A").input_ids == [3, 2]
    assert train_bpe_tokenizer(["ＡＢＡＢ"], 8, nfkc=True).tokenize("AB") == train_bpe_tokenizer(["ABAB"], 8).tokenize(
        "AB"
    )


def test_unknown_characters_become_unk(tokenizer):
    known = tokenizer.decode([10])
    ids = tokenizer(f"{known}é").input_ids
    assert ids[-2:] == [3, 2]
    assert ids.count(3) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == known
    assert tokenizer.decode(ids) == f"{known}<unk></s>"


def test_saved_as_json_and_loaded_without_code(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*ENGLISH, *CHINESE, "", "A é  A"]
    assert loaded(texts).input_ids == tokenizer(texts).input_ids
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert len(loaded) == len(tokenizer)
    assert loaded.clean_up_tokenization_spaces is False
    again = tmp_path / "again"
    loaded.save_pretrained(again)  # the end of sentence must survive a second saving
    assert AutoTokenizer.from_pretrained(again)(texts).input_ids == tokenizer(texts).input_ids
    assert json.loads((Path(again) / "tokenizer.json").read_text()) == json.loads(
        (tmp_path / "tokenizer.json").read_text()
    )


def test_batches():
    tokenizer = TOKENIZERS["character"]
    batch = tokenizer(["A CAT", "A"], padding=True, return_tensors="pt")
    assert batch.input_ids[1].tolist() == [*tokenizer("A").input_ids, 0, 0, 0, 0]
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    assert tokenizer.batch_decode(batch.input_ids, skip_special_tokens=True) == ["A CAT", "A"]
    assert tokenizer("A CAT", truncation=True, max_length=3).input_ids[-1] == 2


def test_character_vocabulary_is_sorted_and_training_repeatable():
    tokens = TOKENIZERS["character"].convert_ids_to_tokens(range(4, len(TOKENIZERS["character"])))
    assert tokens == sorted(set("".join(ENGLISH)) - {" "} | {WORD_BOUNDARY})
    assert train_character_tokenizer(reversed(ENGLISH)).get_vocab() == TOKENIZERS["character"].get_vocab()
    assert train_bpe_tokenizer(ENGLISH, 24).get_vocab() == TOKENIZERS["bpe"].get_vocab()


def test_bpe_size_is_exact_and_pieces_get_longer():
    assert len(TOKENIZERS["bpe"]) == 24
    assert len(TOKENIZERS["bpe"].tokenize("THE CAT")) < len(TOKENIZERS["character"].tokenize("THE CAT"))


def test_bpe_vocabulary_too_small_or_too_large(monkeypatch):
    characters = set("".join(ENGLISH)) - {" "} | {WORD_BOUNDARY}
    smallest = 4 + len(characters)
    with pytest.raises(ValueError, match=f"vocab_size is {smallest - 1}, .* at least {smallest}"):
        train_bpe_tokenizer(ENGLISH, smallest - 1)
    assert len(train_bpe_tokenizer(ENGLISH, smallest)) == smallest
    warnings = []
    monkeypatch.setattr(tokenization.logger, "warning", warnings.append)
    tokenizer = train_bpe_tokenizer(ENGLISH, 5000)
    assert len(warnings) == 1
    assert f"The texts give {len(tokenizer)} tokens, not 5000" in warnings[0]


@pytest.mark.parametrize("train", [train_character_tokenizer, lambda texts: train_bpe_tokenizer(texts, 100)])
@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ([], ValueError, "the 0 texts hold no characters"),
        (["", "  "], ValueError, "the 2 texts hold no characters"),
        ("A CAT", TypeError, "texts is one string"),
        (["A", None], TypeError, "Text 1 is None"),
        (["A", "B </s>"], ValueError, "Text 1 holds '</s>'"),
        ([f"A{WORD_BOUNDARY}B"], ValueError, "Text 0 holds '▁'"),
    ],
)
def test_bad_texts_are_refused(train, texts, error, message):
    with pytest.raises(error, match=message):
        train(texts)


def test_a_symbol_is_one_token_wherever_it_stands():
    texts = ["WE SAID <NOISE> NO", "<NOISE>SO", "A < B"]
    tokenizer = train_character_tokenizer(texts, symbols=["<NOISE>"])
    assert tokenizer.tokenize(texts[0])[6:] == ["D", WORD_BOUNDARY, "<NOISE>", WORD_BOUNDARY, "N", "O"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert tokenizer.convert_tokens_to_ids("<NOISE>") == len(tokenizer) - 1
    assert tokenizer.convert_tokens_to_ids(">") == tokenizer.unk_token_id  # only the symbol has it
    assert tokenizer.tokenize("<NOIS") == ["<", "N", "O", "I", "S"]


def test_of_two_symbols_the_longer_one_is_found():
    tokenizer = train_character_tokenizer(["AB"], symbols=["[X", "[X]"])
    assert tokenizer.tokenize("A[X]B[X") == ["A", "[X]", "B", "[X"]


@pytest.mark.parametrize(
    ("symbols", "message"),
    [
        ("<NOISE>", "give a list"),
        ([5], "give a list"),
        (["N"], "two characters"),
        (["A B"], "no space"),
        (["<unk>"], "a token already"),
        (["<X>", "<X>"], "a token already"),
    ],
)
def test_symbols_that_cannot_be_are_refused(symbols, message):
    with pytest.raises((ValueError, TypeError), match=message):
        train_character_tokenizer(["AB"], symbols=symbols)


def test_doubled_letters_are_tokens_where_asked():
    texts = ["hello all", "三三 see", "aaa"]
    tokenizer = train_character_tokenizer(texts, doubled_letters=True)
    assert tokenizer.tokenize("hello see") == ["h", "e", "ll", "o", "▁", "s", "ee"]
    assert tokenizer.tokenize("三三aaa bb") == ["三", "三", "aa", "a", "▁", "<unk>", "<unk>"]
    plain = train_character_tokenizer(texts)
    assert tokenizer.get_vocab() == plain.get_vocab() | {"aa": len(plain), "ee": len(plain) + 1, "ll": len(plain) + 2}
    for text in texts:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    assert len(train_tokenizer("character", texts, symbols=["<X>"], doubled_letters=True)) == len(plain) + 4
